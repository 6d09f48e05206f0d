# Sourced by quickstart.sh and run_tests.sh: `set_up FILE...` makes .venv in the checkout where it is missing, brings it
# up to date where these requirements or constraints.txt have changed, and leaves it untouched otherwise.
# Sets PYTHON to its interpreter. PYTHON3 chooses the Python to make it from.

set_up() {
    venv=$here/.venv
    PYTHON=$venv/bin/python
    if ! "$PYTHON" -c '' 2>/dev/null; then
        base=${PYTHON3:-$(some_python)}
        echo "making $venv with $base"
        rm -rf "$venv"
        "$base" -m venv "$venv" || {
            echo "error: '$base -m venv' failed; on Debian and Ubuntu: apt install python3-venv" >&2
            exit 2
        }
    fi
    for file in "$@"; do
        stamp=$venv/.installed-$file
        wanted=$(cat "$here/$file" "$here/constraints.txt")
        if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
            echo "installing $file (a few minutes the first time)"
            (cd "$here" && "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$file" -c constraints.txt)
            printf '%s\n' "$wanted" >"$stamp"
        fi
    done
}

some_python() {
    for name in python3 python3.14 python3.13 python3.12 python3.11 python3.10 python; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    echo "error: no Python 3.10 or newer found; install one, or name it with PYTHON3=..." >&2
    exit 2
}
