#!/usr/bin/env bash
# Installs framepack-daemon as a systemd service, upgrades it, or removes it. It may be run again at any time: the queue
# and an edited configuration always stay.
set -euo pipefail
umask 022

usage() {
    cat <<'USAGE'
usage: install.sh [OPTIONS]

  --inbox DIR      folder in which pictures are dropped          (/srv/framepack/inbox)
  --outputs DIR    folder for the videos                         (/srv/framepack/outputs)
  --model NAME     framepack-i2v, framepack-f1 or tiny, a toy    (tiny)
  --user NAME      the daemon's user                             (framepack)
  --gpu N          a daemon for this GPU alone, with folders of its own in /srv/framepack/N; may be given again
  --prefix DIR     where the program goes                        (/opt/framepack-daemon)
  --wheels DIR     take every package from this folder; needs no network
  --python FILE    the Python to use, 3.11 or newer              (/usr/bin/python3)
  --dry-run        print what would be done, and change nothing
  --uninstall      remove the service and the program; configuration, queue, videos and model files stay
  --purge          with --uninstall: remove those too, with all that is in these folders, and the user
USAGE
}

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly HERE
# shellcheck source=/dev/null
. "$HERE/program.sh"
readonly SHARE=/srv/framepack
readonly STATE=/var/lib/framepack-daemon
readonly CONFIG=/etc/framepack-daemon/config.toml
readonly UNITS=/etc/systemd/system
readonly SYSUSERS=/etc/sysusers.d/framepack-daemon.conf
readonly COMMAND=/usr/local/bin/framepack-daemon
readonly DROP_IN=10-install.conf
readonly UNIT_FILES="framepack-daemon.service framepack-daemon@.service framepack-daemon-models.service
    framepack-daemon-web.service"
readonly STOP_MARGIN_SECONDS=30 # beyond stop_timeout_seconds: to put the job back

inbox='' outputs='' model='' user='' prefix='' wheels='' python=/usr/bin/python3
gpus=() dry_run='' uninstall='' purge=''

main() {
    parse "$@"
    check_machine
    choose
    if [ -n "$uninstall" ]; then
        stop_service
        remove_service
        [ -z "$purge" ] || remove_data
        return
    fi
    check_choice
    make_user
    make_folders
    stop_service
    install_program
    write_config
    write_units
    start_service
    tell
}

# -- what was asked for ------------------------------------------------------------------------------------------------

parse() {
    while [ $# -gt 0 ]; do
        case $1 in
        --inbox | --outputs | --model | --user | --gpu | --prefix | --wheels | --python)
            [ $# -ge 2 ] || fail "$1 needs a value" "install.sh --help shows which"
            take_option "$1" "$2"
            shift
            ;;
        --dry-run) dry_run=yes ;;
        --uninstall) uninstall=yes ;;
        --purge) purge=yes ;;
        -h | --help) usage && exit ;;
        *) fail "unknown option: $1" "install.sh --help shows them all" ;;
        esac
        shift
    done
    [ -z "$purge" ] || [ -n "$uninstall" ] || fail "--purge belongs to --uninstall" "install.sh --uninstall --purge"
    [ ${#gpus[@]} = 0 ] || [ -z "$inbox$outputs" ] || fail "--gpu gives each daemon folders of its own" \
        "leave out --inbox and --outputs; systemctl edit framepack-daemon@${gpus[0]} changes them afterwards"
}

take_option() {
    case $1 in
    --inbox) inbox=$(absolute "$1" "$2") ;;
    --outputs) outputs=$(absolute "$1" "$2") ;;
    --prefix) prefix=$(absolute "$1" "$2") ;;
    --wheels) wheels=$(realpath -- "$2") ;;
    --python) python=$2 ;;
    --model)
        model=$2
        one_of "$2" tiny framepack-i2v framepack-f1 || fail "--model $2: unknown" "tiny, framepack-i2v or framepack-f1"
        ;;
    --user)
        user=$2
        [[ $2 =~ ^[a-z_][a-z0-9_-]*$ && $2 != root ]] || fail "--user $2: not a user for a service" "leave it out"
        ;;
    --gpu)
        gpus+=("$2")
        [[ $2 =~ ^[0-9]+$ ]] || fail "--gpu $2: not a number" "nvidia-smi --list-gpus shows them, from 0"
        ;;
    esac
}

# What goes into unit files and TOML is kept to what means the same in both.
absolute() {
    [[ $2 =~ ^[A-Za-z0-9._/+-]+$ ]] ||
        fail "$1 $2: only letters, digits and . _ + - / can be used" "choose another folder, or make a link to this one"
    realpath --canonicalize-missing --no-symlinks -- "$2"
}

check_machine() {
    [ -n "$dry_run" ] || [ "$(id -u)" = 0 ] || fail "only root can install a service" "sudo $0"
    [ -d /run/systemd/system ] || fail "systemd does not run here" "run the daemon itself: framepack-daemon run"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        fail "$python is not Python 3.11 or newer" "apt install python3 python3-venv, or --python FILE"
}

# What is installed stays as it is; the rest is as asked for, or else the default.
choose() {
    user=$(kept --user "$user" "$(sed -n 's/^u \([^ ]*\) .*/\1/p' "$SYSUSERS" 2>/dev/null || true)" framepack)
    prefix=$(kept --prefix "$prefix" "$({ readlink -- "$COMMAND" || true; } | sed -n 's|/bin/framepack-daemon$||p')" \
        /opt/framepack-daemon)
    if [ ${#gpus[@]} = 0 ] && [ -z "$inbox$outputs" ]; then
        mapfile -t gpus < <(installed_gpus)
    fi
    inbox=$(setting inbox "$inbox" "$SHARE/inbox")
    outputs=$(setting outputs "$outputs" "$SHARE/outputs")
    model=$(setting model "$model" tiny)
    queue=$(setting queue_dir '' "$(dirname "$inbox")/queue")
    loras=$(setting loras_dir '' "$(dirname "$inbox")/loras")
    stop_seconds=$(setting stop_timeout_seconds '' 60)
    folders=("$loras")
    [ ${#gpus[@]} != 0 ] || folders+=("$inbox" "$outputs" "$queue")
    for gpu in "${gpus[@]}"; do
        folders+=("$SHARE/$gpu/inbox" "$SHARE/$gpu/outputs" "$SHARE/$gpu/queue")
    done
    # All that is in them is removed by --purge.
    for folder in "${folders[@]}"; do
        [[ $(realpath --canonicalize-missing -- "$folder") == /*/* ]] ||
            fail "$folder: is too much to be a folder for this" "choose one in it, such as $SHARE/inbox"
    done
}

installed_gpus() {
    find "$UNITS/multi-user.target.wants" -name 'framepack-daemon@*.service' 2>/dev/null |
        sed 's/.*@//; s/\.service$//' | sort -n
}

# kept OPTION ASKED INSTALLED DEFAULT: what is installed, where something is.
kept() {
    [ -z "$2" ] || [ -z "$3" ] || [ "$2" = "$3" ] || fail "it is installed with $1 $3, not $2" \
        "leave $1 out; to have it otherwise, remove it first: --uninstall, for another user with --purge"
    echo "${3:-${2:-$4}}"
}

# setting NAME ASKED DEFAULT: the configuration's value, where there is one.
setting() {
    local found=''
    if [ -r "$CONFIG" ]; then
        found=$("$python" -c 'import sys, tomllib; print(tomllib.load(open(sys.argv[1], "rb")).get(sys.argv[2], ""))' \
            "$CONFIG" "$1") || fail "$CONFIG is not TOML" "mend it, or move it away and a new one is written"
    fi
    [ -z "$found" ] || [ -z "$2" ] || [ "$found" = "$2" ] || fail "$CONFIG says $1 = \"$found\", not \"$2\"" \
        "an installed configuration is not changed: edit it, then run install.sh without that option"
    echo "${found:-${2:-$3}}"
}

check_choice() {
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python cannot make virtual environments" "apt install python3-venv"
    check_visible "$("$python" -c 'import sys; print(sys.base_prefix)')" "choose another Python by --python FILE"
    check_visible "$prefix" "choose another by --prefix, such as /opt/framepack-daemon"
    [ ! -e "$prefix" ] || [ -e "$prefix/pyvenv.cfg" ] ||
        fail "$prefix is there already and is not ours" "choose another by --prefix, such as /opt/framepack-daemon"
    for folder in "${folders[@]}"; do
        check_visible "$folder" "choose another, such as $SHARE/inbox"
    done
    [ -z "$wheels" ] || compgen -G "$wheels/framepack_daemon-*.whl" >/dev/null ||
        fail "$wheels: holds no wheel of framepack-daemon" "pip wheel --wheel-dir $wheels CHECKOUT puts all there"
    [ -n "$wheels" ] || [ -e "$HERE/../pyproject.toml" ] ||
        fail "there is no checkout around $HERE" "run install.sh from a checkout, or give --wheels DIR"
}

check_visible() {
    case $1/ in ~root/* | /home/* | /run/user/*) fail "$1: the service sees no home folders" "$2" ;; esac
}

# -- installing --------------------------------------------------------------------------------------------------------

make_user() {
    for_here "$HERE/sysusers.d/framepack-daemon.conf" | put "$SYSUSERS"
    getent passwd "$user" >/dev/null || run systemd-sysusers "$SYSUSERS"
    group=$(id --group --name "$user" 2>/dev/null || echo "$user")
}

# The group's, and with the bit that hands the group on: so everybody in it may put files in and take them out.
make_folders() {
    for folder in "${folders[@]}"; do
        [ -d "$folder" ] || run install --directory --owner "$user" --group "$group" --mode 2775 "$folder"
    done
}

# A job that runs goes back to the queue, with what it has rendered.
stop_service() {
    mapfile -t running < <(systemctl list-units --plain --no-legend --state=active,activating,reloading \
        'framepack-daemon*.service' | awk '{ print $1 }')
    [ ${#running[@]} = 0 ] || run systemctl stop "${running[@]}"
}

install_program() {
    make_venv "$python" "$prefix"
    if [ -n "$wheels" ]; then
        # That folder alone, whatever pip is configured to do on this machine.
        export PIP_CONFIG_FILE=/dev/null
        into_venv "$prefix" framepack-daemon --isolated --no-index --find-links "$wheels"
    else
        for_pip "$HERE/../constraints.txt" | put "$prefix/constraints.txt"
        into_venv "$prefix" "$(dirname "$HERE")" --constraint "$prefix/constraints.txt"
    fi
    run ln --symbolic --force --no-dereference "$prefix/bin/framepack-daemon" "$COMMAND"
}

write_config() {
    for_here "$HERE/config.toml" | put "$prefix/config.toml" # every setting of this version, to look up
    [ -e "$CONFIG" ] || for_here "$HERE/config.toml" | put "$CONFIG"
}

write_units() {
    for file in $UNIT_FILES; do
        for_here "$HERE/$file" | put "$UNITS/$file"
    done
    for file in framepack-daemon.service framepack-daemon@.service framepack-daemon-web.service; do
        drop_in | put "$UNITS/$file.d/$DROP_IN"
    done
    run systemctl daemon-reload
}

drop_in() {
    local mounts places
    mounts=$(mount_units | sort -u | tr '\n' ' ')
    places=$(writable | sort -u | sed 's/^/-/' | tr '\n' ' ')
    cat <<UNIT
# Written by install.sh from $CONFIG. Run it again after a change of a folder or of stop_timeout_seconds.

[Unit]
# The file systems that the folders are on, or may come to be on, are mounted first. RequiresMountsFor= would say so in
# one line, but then a share that is away when the machine boots keeps the daemon down for good. The daemon bears with
# that: it waits, says so in its status, and goes on when the share is mounted.
Wants=$mounts
After=$mounts

[Service]
ReadWritePaths=$places
NoExecPaths=$places
TimeoutStopSec=$(("${stop_seconds%.*}" + STOP_MARGIN_SECONDS))
UNIT
}

# A unit for each folder above a folder: whichever of them are mount points, or become some, count.
mount_units() {
    for folder in "${folders[@]}"; do
        while [ "$folder" != / ]; do
            systemd-escape --path --suffix=mount "$folder"
            folder=$(dirname "$folder")
        done
    done
}

# Of a mounted file system the whole: a part of it, bound for the service, would hold it there when it is unmounted.
writable() {
    for folder in "${folders[@]}"; do
        mount=$(findmnt --noheadings --output TARGET --target "$folder" || true)
        one_of "$mount" '' / && echo "$folder" || echo "$mount"
    done
}

start_service() {
    local units=(framepack-daemon.service)
    [ ${#gpus[@]} = 0 ] || units=("${gpus[@]/#/framepack-daemon@}")
    run systemctl enable --quiet framepack-daemon-models.service "${units[@]}"
    # The toy is made in seconds; forty gigabytes are not waited for, neither here nor by the daemon.
    local wait=()
    [ "$model" = tiny ] || wait=(--no-block)
    run systemctl start "${wait[@]}" framepack-daemon-models.service ||
        echo "The daemon will wait for its model files: journalctl -eu framepack-daemon-models says why." >&2
    run systemctl start "${units[@]}" || fail "the service did not start" "journalctl -eu '${units[0]}'"
    # The gateway, where somebody has it.
    ! systemctl is-enabled --quiet framepack-daemon-web.service 2>/dev/null ||
        run systemctl start --no-block framepack-daemon-web.service
}

tell() {
    [ -z "$dry_run" ] || return 0
    echo "framepack-daemon runs."
    if [ ${#gpus[@]} = 0 ]; then
        echo "  drop a picture and a JSON file of the same name into  $inbox"
        echo "  videos come out in                                    $outputs"
    else
        echo "  drop a picture and a JSON file of the same name into  $(printf "$SHARE/%s/inbox " "${gpus[@]}")"
        echo "  videos come out in                                    $(printf "$SHARE/%s/outputs " "${gpus[@]}")"
    fi
    echo "  somebody else who may do so:   usermod -aG $group NAME   (they have to log in again)"
    echo "  what it does:                  systemctl status 'framepack-daemon*';  framepack-daemon status"
    echo "  settings:                      $CONFIG"
    if [ "$model" = tiny ]; then
        echo "tiny is a toy. For real videos set model = \"framepack-i2v\" there, then run install.sh again."
    else
        echo "  the model files are fetched:   journalctl -fu framepack-daemon-models"
    fi
}

# -- removing ----------------------------------------------------------------------------------------------------------

remove_service() {
    for file in $UNIT_FILES; do
        [ ! -e "$UNITS/$file" ] || run systemctl disable --quiet "$file"
        remove "$UNITS/$file.d/$DROP_IN" "$UNITS/$file"
        [ ! -d "$UNITS/$file.d" ] || run rmdir --ignore-fail-on-non-empty "$UNITS/$file.d"
    done
    for gpu in "${gpus[@]}"; do
        remove "$UNITS/multi-user.target.wants/framepack-daemon@$gpu.service"
    done
    remove "$COMMAND"
    [ ! -e "$prefix/pyvenv.cfg" ] || run rm --recursive "$prefix"
    run systemctl daemon-reload
    [ -n "$purge" ] || echo "What stays: $CONFIG, $STATE, ${folders[*]}, the user $user. --purge removes that too."
}

remove_data() {
    for folder in "${folders[@]}" "$STATE"; do
        [ ! -d "$folder" ] || run find "$folder" -xdev -mindepth 1 -delete
        [ ! -d "$folder" ] || mountpoint --quiet "$folder" || run rmdir "$folder"
    done
    for gpu in "${gpus[@]}"; do run rmdir --ignore-fail-on-non-empty "$SHARE/$gpu"; done
    [ ! -d "$SHARE" ] || run rmdir --ignore-fail-on-non-empty "$SHARE"
    [ ! -d "${CONFIG%/*}" ] || run rm --recursive "${CONFIG%/*}"
    # A user who was there before us, and has a home of their own, stays.
    [ "$(getent passwd "$user" | cut -d: -f6)" != "$STATE" ] || run userdel "$user"
    remove "$SYSUSERS"
}

# -- small things ------------------------------------------------------------------------------------------------------

# A file of ours with what was chosen in place of the defaults.
for_here() {
    sed -e "s|/opt/framepack-daemon|$prefix|g" \
        -e "s|^u framepack |u $user |; s|^User=framepack\$|User=$user|; s|^Group=framepack\$|Group=${group:-$user}|" \
        -e "s|^inbox = .*|inbox = \"$inbox\"|; s|^outputs = .*|outputs = \"$outputs\"|" \
        -e "s|^queue_dir = .*|queue_dir = \"$queue\"|; s|^loras_dir = .*|loras_dir = \"$loras\"|" \
        -e "s|^#model = .*|model = \"$model\"|" "$1"
}

# put FILE: write standard input into it, unless that is what it holds.
put() {
    local text
    text=$(cat)
    ! cmp --quiet "$1" - <<<"$text" || return 0
    if [ -n "$dry_run" ]; then echo "would write $1"; else install -D --mode 644 <(echo "$text") "$1"; fi
}

remove() {
    for file in "$@"; do
        if [ -e "$file" ] || [ -L "$file" ]; then run rm "$file"; fi
    done
}

run() {
    if [ -n "$dry_run" ]; then echo "would run: $*"; else "$@"; fi
}

one_of() {
    local word=$1
    shift
    for each in "$@"; do [ "$word" != "$each" ] || return 0; done
    return 1
}

fail() {
    echo "install.sh: $1" >&2
    echo "  mend: $2" >&2
    exit 1
}

main "$@"
