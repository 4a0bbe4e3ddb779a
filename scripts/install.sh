#!/usr/bin/env bash
# Makes .venv in this checkout, if there is none, and installs the project into it with the pinned versions.
#
#   bash scripts/install.sh          the project
#   bash scripts/install.sh test     the project and an extra of pyproject.toml
#
# PYTHON names the interpreter that makes the environment (default: python3).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extra="${1:+[$1]}"
interpreter="${PYTHON:-python3}"

if [ ! -x .venv/bin/python ]; then
    "$interpreter" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "$("$interpreter" -V) found; constraints.txt needs CPython 3.11 or later: set PYTHON=python3.11" >&2
        exit 1
    }
    "$interpreter" -m venv .venv
fi
# torch comes first and pinned, so that nothing that depends on it can pull another build of it.
.venv/bin/python -m pip install --quiet -c constraints.txt torch
.venv/bin/python -m pip install --quiet -c constraints.txt -e ".$extra"
