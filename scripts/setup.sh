#!/usr/bin/env bash
# Makes .venv with everything that agentmem needs, or leaves it alone when nothing changed; with
# --clients also the environments that the clients' tests run in (.venv-clients, .venv-openai1).
# PYTHON=/path/to/python chooses the interpreter (3.11 or 3.12).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
unset PYTHONPATH PYTHONHOME

if [ "$(uname -s)" != Linux ] || [ "$(uname -m)" != x86_64 ]; then
    echo "setup: agentmem runs on Linux x86-64; this is $(uname -s) $(uname -m)." >&2
    exit 1
fi

# The clients' environments share .venv's Python.
finish() {
    if [ "${1:-}" = --clients ] && ! .venv/bin/python -I -S scripts/client_environments.py --check; then
        exec .venv/bin/python -I scripts/client_environments.py
    fi
    exit 0
}

# Nothing changed: say nothing, be quick. -I -S keeps Python's own start short.
checker=${PYTHON:-.venv/bin/python}
if [ -x .venv/bin/python ] && "$checker" -I -S scripts/environment.py --check 2>/dev/null; then
    finish "$@"
fi

# Prints the interpreter's real path if it can do the job, else says on fd 3 why not. It is run, not
# just found: a version manager's shim may exist for a version that it does not have.
usable() {
    local found
    found=$("$1" -I -c 'import sys; print(sys.executable, *sys.version_info[:2])' 2>/dev/null) || return 1
    case "$found" in
        *" 3 11" | *" 3 12") found=${found% 3 *} ;;
        *) return 1 ;;
    esac
    if ! "$found" -I -c 'import ctypes, ensurepip, sqlite3, ssl, venv' 2>/dev/null; then
        echo "setup: $found lacks $("$found" -I -c '
for name in ("ctypes", "ensurepip", "sqlite3", "ssl", "venv"):
    try:
        __import__(name)
    except ImportError:
        print(name, end=" ")
' 2>/dev/null)(on Debian and Ubuntu: apt-get install python3-venv, or python3.12-venv for that version)." >&3
        return 1
    fi
    echo "$found"
}

exec 3>&2
if [ -n "${PYTHON:-}" ]; then
    if ! python=$(usable "$PYTHON"); then
        echo "setup: PYTHON=$PYTHON is not a working Python 3.11 or 3.12." >&2
        exit 1
    fi
else
    python=
    exec 3>/dev/null
    for candidate in python3.11 python3.12 python3 python \
        /usr/bin/python3.11 /usr/bin/python3.12 /usr/local/bin/python3.11 /usr/local/bin/python3.12 \
        "${PYENV_ROOT:-${HOME:-/nonexistent}/.pyenv}"/versions/3.1[12]*/bin/python \
        "${HOME:-/nonexistent}"/.local/share/uv/python/cpython-3.1[12]*/bin/python3 \
        /opt/python*/bin/python3 /opt/python/3.1[12]*/bin/python3; do
        if python=$(usable "$candidate"); then break; fi
        python=
    done
    if [ -z "$python" ]; then
        exec 3>&2
        for candidate in python3.11 python3.12 python3; do usable "$candidate" >/dev/null || true; done
        echo "setup: no working Python 3.11 or 3.12 was found." >&2
        echo "  On Debian 12: apt-get install python3.11 python3.11-venv" >&2
        echo "  On Ubuntu 24.04: apt-get install python3.12 python3.12-venv" >&2
        echo "  On Fedora, RHEL: dnf install python3.12" >&2
        echo "  Or name one: make PYTHON=/path/to/python3.12" >&2
        exit 1
    fi
fi
exec 3>&-

"$python" -I scripts/environment.py
finish "$@"
