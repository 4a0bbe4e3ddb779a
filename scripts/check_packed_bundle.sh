#!/usr/bin/env bash
# Checks that the packed bundle needs nothing but what its metadata name: copies it to an empty folder, makes a virtual
# environment with `required_packages_version` (and monai, torch, numpy) alone, and there runs verify_bundle, training,
# evaluation of the weights it came with, and inference. Leaves nothing behind. Takes minutes, most of them to install.
#
#   bash scripts/check_packed_bundle.sh [BUNDLE]    default: dist/cpic_fvc_regression, made by pack_bundle.py
#
# PYTHON names the interpreter that makes the environment (default: python3).
set -euo pipefail

checkout="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
bundle="$(cd "${1:-$checkout/dist/cpic_fvc_regression}" && pwd)"
interpreter="${PYTHON:-python3}"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

"$interpreter" -m venv "$work/venv"
python="$work/venv/bin/python"
"$python" - "$bundle/configs/metadata.json" >"$work/required.txt" <<'PYTHON'
import json, sys

metadata = json.load(open(sys.argv[1]))
base = {"monai": "monai_version", "torch": "pytorch_version", "numpy": "numpy_version"}
needed = {name: metadata[key] for name, key in base.items()} | metadata["required_packages_version"]
print("\n".join(f"{name}=={version}" for name, version in needed.items()))
PYTHON
# torch comes first and pinned, so that nothing that depends on it can pull another build of it.
"$python" -m pip install --quiet -c "$checkout/constraints.txt" torch
"$python" -m pip install --quiet -c "$checkout/constraints.txt" -r "$work/required.txt"

mkdir "$work/empty"
cp -r "$bundle" "$work/empty/"
name="$(basename "$bundle")"
cd "$work/empty"
unset PYTHONPATH
for variable in $(compgen -e | grep '^MLFLOW_' || true); do unset "$variable"; done
if "$python" -c 'import cpic_monai' 2>/dev/null; then
    echo "cpic_monai can be imported without the bundle: the environment is not clean" >&2
    exit 1
fi

"$python" "$name/scripts/verify_bundle.py"
cd "$name"
run() { "$python" -W ignore -m monai.bundle run "$@"; }
run training --config_file configs/train.json --output_dir "$work/out" --phantom_subjects 12 --max_epochs 1 --passes 1 \
    --batch_size 6 --folds 4 --head "{'steps': 30}"
run evaluating --config_file configs/evaluate.json --dataset_dir "$work/out/data/phantom" --eval_dir "$work/evaluated"
run --config_file configs/inference.json --dataset_dir "$work/out/data/phantom" --eval_dir "$work/predictions"
for file in out/models/model.pt out/eval/report.html evaluated/metrics.json predictions/predictions.csv; do
    [ -s "$work/$file" ] || { echo "$file was not written" >&2; exit 1; }
done
echo "$name: verified, trained, evaluated and predicted with nothing but its required packages"
