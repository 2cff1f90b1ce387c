#!/usr/bin/env bash
# Makes the Debian package from this checkout: build.sh PYTHON FOLDER. PYTHON has the project installed; it makes the wheel,
# the man page and the completions. The package itself holds no dependency: pip fetches those when it is configured.
set -euo pipefail
umask 022

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(cd "$HERE/../.." && pwd)
readonly HERE ROOT NAME=framepack-daemon
python=$1
mkdir -p "$2"
folder=$(cd "$2" && pwd)
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
readonly package=$stage/package
readonly data=$package/usr/share/$NAME docs=$package/usr/share/doc/$NAME
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' "$ROOT/framepack_daemon/__init__.py")
date=${SOURCE_DATE_EPOCH:-$(git -C "$ROOT" -c safe.directory="$ROOT" log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH=$date

main() {
    wheel
    from_the_command
    units
    documents
    control
    find "$package" -newermt "@$date" -exec touch --no-dereference --date "@$date" {} +
    dpkg-deb --root-owner-group -Zxz --build "$package" "$folder/${NAME}_${version}_all.deb"
}

# From a copy: building writes beside the sources, and what lies there from another time would get into the wheel.
wheel() {
    mkdir -p "$stage/source" "$data"
    cp -r "$ROOT"/{framepack_daemon,pyproject.toml,README.md,LICENSE} "$stage/source"
    find "$stage/source" -name __pycache__ -exec rm -r {} +
    "$python" -m pip --quiet --disable-pip-version-check wheel --no-deps --wheel-dir "$data" "$stage/source"
    install -m 644 -t "$data" "$ROOT/constraints.txt" "$HERE/../program.sh"
}

from_the_command() {
    local man=$package/usr/share/man/man1 bash=$package/usr/share/bash-completion/completions
    local zsh=$package/usr/share/zsh/vendor-completions fish=$package/usr/share/fish/vendor_completions.d
    mkdir -p "$man" "$bash" "$zsh" "$fish" "$package/usr/bin"
    export PYTHONPATH=$stage/source PYTHONDONTWRITEBYTECODE=1
    "$python" "$HERE/../manpage.py" | gzip -9n >"$man/$NAME.1.gz"
    "$python" -m framepack_daemon completion bash >"$bash/$NAME"
    "$python" -m framepack_daemon completion zsh >"$zsh/_$NAME"
    "$python" -m framepack_daemon completion fish >"$fish/$NAME.fish"
    ln -s /opt/$NAME/bin/$NAME "$package/usr/bin/$NAME"
}

units() {
    local systemd=$package/usr/lib/systemd/system
    install -D -m 644 -t "$systemd" "$HERE"/../framepack-daemon*.service
    install -D -m 644 -t "$package/usr/lib/sysusers.d" "$HERE"/../sysusers.d/*
    install -D -m 644 -t "$package/usr/lib/tmpfiles.d" "$HERE"/../tmpfiles.d/*
    install -D -m 644 -t "$package/etc/$NAME" "$HERE/../config.toml"
}

documents() {
    install -D -m 644 -t "$docs" "$ROOT/README.md" "$HERE/copyright"
    install -D -m 644 "$ROOT/CHANGELOG.md" "$docs/NEWS.md"
    gzip -9n "$docs/NEWS.md"
    {
        printf '%s (%s) unstable; urgency=medium\n\n' $NAME "$version"
        printf '  * What changed for its users: NEWS.md.gz.\n\n'
        printf ' -- %s  %s\n' "$(sed -n 's/^Maintainer: //p' "$HERE/control")" "$(date --utc --rfc-email --date "@$date")"
    } | gzip -9n >"$docs/changelog.gz"
    install -D -m 644 "$HERE/lintian-overrides" "$package/usr/share/lintian/overrides/$NAME"
}

control() {
    mkdir -p "$package/DEBIAN"
    { cat "$HERE/control" && printf 'Version: %s\nInstalled-Size: %s\n' "$version" "$(du -sk "$package" | cut -f1)"; } |
        awk '/^(Description:| )/ { last = last $0 "\n"; next } { print } END { printf "%s", last }' >"$package/DEBIAN/control"
    echo "/etc/$NAME/config.toml" >"$package/DEBIAN/conffiles"
    install -m 755 -t "$package/DEBIAN" "$HERE"/{preinst,postinst,prerm,postrm}
    (cd "$package" && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | sort -z | xargs -0 md5sum) >"$package/DEBIAN/md5sums"
}

main
