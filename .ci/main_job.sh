#!/usr/bin/env bash
# The README's first command on one seed of the phantom cohort, held against its baselines.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ ! -f scripts/check_phantom.py ]; then
    echo "scripts/check_phantom.py is not there: nothing to run"
    exit 0
fi
.venv/bin/python scripts/check_phantom.py --seeds 0
