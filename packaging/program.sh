# shellcheck shell=sh
# How the program gets into its virtual environment, for install.sh and for the Debian package. Whoever sources this has
# a function run, which does a command or only says it.

# With an NVIDIA GPU, pip may choose the build of torch that fits it.
for_pip() {
    if command -v nvidia-smi >/dev/null; then grep -v '^torch==' "$1"; else cat "$1"; fi
}

# make_venv PYTHON PREFIX. Where pip is not found, PYTHON has become another version, whose packages lie elsewhere.
make_venv() {
    "$2/bin/python" -c 'import pip' 2>/dev/null || run "$1" -m venv --clear "$2"
}

# into_venv PREFIX WHAT [OPTION…]: install or upgrade WHAT, with these options of pip.
into_venv() {
    program=$1/bin/python what=$2
    shift 2
    # First with what is missing or too old: nothing is installed unless all of it is there. Then the project alone once
    # more, as its version may be the same.
    in_venv --upgrade "$@" "$what" && in_venv --force-reinstall --no-deps "$@" "$what"
}

in_venv() {
    run "$program" -m pip --quiet --disable-pip-version-check --no-cache-dir install "$@"
}
