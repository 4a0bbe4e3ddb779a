#!/usr/bin/env bash
# Installs the test extra into .venv and runs every check: ruff, mypy, pytest.
#
#   bash scripts/test.sh                       everything
#   bash scripts/test.sh tests/cross -k exact  the linters, then pytest with these arguments
#
# CPIC_DATA names a folder of real scans; without it the tests on real scans are skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/install.sh test
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/python -m pytest -q "$@"
