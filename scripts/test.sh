#!/usr/bin/env bash
# Installs the test extra into .venv and runs every check: ruff, mypy, pytest. Fails if one of them does, after all ran.
#
#   bash scripts/test.sh                       everything
#   bash scripts/test.sh tests/cross -k exact  the linters, then pytest with these arguments
#
# CPIC_DATA names a folder of real scans; without it the tests on real scans are skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/install.sh test

failed=()
check() {
    echo "-- $*"
    "$@" || failed+=("$1")
}
check .venv/bin/ruff check .
check .venv/bin/ruff format --check .
check .venv/bin/mypy
check .venv/bin/python -m pytest -q "$@"

if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]##*/}" >&2
    exit 1
fi
