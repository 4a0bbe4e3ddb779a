#!/usr/bin/env bash
# The bundle in a real MONAI Label server, over HTTP: infer, overlay, fine-tune, infer, restart, and the stock app.
# Trains and packs a small bundle in .venv (scripts/install.sh), and serves it from .venv-label (3.7 GB, made if it is
# not there or its pins have changed).
#
#   bash scripts/check_monai_label.sh [FOLDER]    keeps bundle, scans and logs in FOLDER, which must be empty or absent
#
# PYTHON names the interpreter that makes the environments (CPython 3.11; default: python3.11).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

environment=.venv-label
interpreter="${PYTHON:-python3.11}"
wanted="$(sha256sum constraints-label.txt | cut -d ' ' -f 1)"

if [ "$(cat "$environment/installed" 2>/dev/null)" != "$wanted" ]; then
    "$interpreter" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || {
        echo "$("$interpreter" -V) found; constraints-label.txt needs CPython 3.11: set PYTHON=python3.11" >&2
        exit 1
    }
    echo "-- installing MONAI Label into $environment (some minutes)"
    rm -rf "$environment"
    "$interpreter" -m venv "$environment"
    # torch first and pinned, with what this build of it needs; then the whole list as it is.
    "$environment/bin/python" -m pip install --quiet -c constraints-label.txt torch
    "$environment/bin/python" -m pip install --quiet --no-deps -r constraints-label.txt
    # Last, so that an installation that was broken off is made again.
    printf '%s\n' "$wanted" > "$environment/installed"
fi

PYTHON="$interpreter" bash scripts/install.sh

if [ $# -gt 0 ]; then
    work="$1"
    mkdir -p "$work"
    [ -z "$(ls -A "$work")" ] || { echo "$work is not empty" >&2; exit 1; }
else
    work="$(mktemp -d)"
    trap 'rm -rf "$work"' EXIT
fi
echo "-- a small bundle and its scans"
.venv/bin/python -W ignore scripts/make_label_check.py "$work"
echo "-- MONAI Label"
PYTHONPATH="$PWD" "$environment/bin/python" -W ignore scripts/check_monai_label.py "$work"
