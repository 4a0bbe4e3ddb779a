#!/usr/bin/env bash
# The README's first command on one seed of the phantom cohort, held against its baselines; leaves nothing behind.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

output="$(mktemp -d)"
trap 'rm -rf "$output"' EXIT
.venv/bin/python scripts/check_phantom.py --seeds 0 --output_dir "$output"
