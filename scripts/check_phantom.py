"""Does C-PIC learn from the phantom what tabular data cannot tell? The main job on several seeds, and its margins.

Runs ``training`` of ``configs/train.json`` for each seed on one phantom cohort, and compares held-out mLLL with the
constant prediction and with the same head on tabular values alone. Writes a table and JSON; fails if a margin is
below ``--margin``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def train(seed: int, output: Path, phantom: Path | None, overrides: list[str]) -> dict[str, float]:
    """One training run in a process of its own; its held-out scores and its wall time in seconds."""
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", "configs/train.json"]
    command += ["--output_dir", str(output), "--seed", str(seed), *overrides]
    if phantom is not None:
        command += ["--phantom_dir", str(phantom)]
    start = time.monotonic()
    subprocess.run(command, cwd=ROOT, check=True)
    test = json.loads((output / "eval" / "metrics.json").read_text())["test"]
    return {
        "seed": seed,
        "seconds": time.monotonic() - start,
        "mlll": test["mlll"],
        "rmse": test["rmse"],
        "coverage": test["coverage"],
        **{f"{name}_mlll": entry["mlll"] for name, entry in test["baselines"].items()},
    }


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of split, weights and voxels")
    parser.add_argument("--output_dir", type=Path, required=True, help="one folder a seed is made below")
    parser.add_argument("--margin", type=float, default=0.15, help="least gain in mLLL over both baselines")
    parser.add_argument("overrides", nargs="*", help="further arguments of the run, behind --, e.g. -- --max_epochs 2")
    given = parser.parse_args()
    output = given.output_dir.resolve()
    output.mkdir(parents=True, exist_ok=True)
    rows = [train(seed, output / f"seed{seed}", output / "phantom", given.overrides) for seed in given.seeds]
    (output / "check_phantom.json").write_text(json.dumps(rows, indent=2) + "\n")
    names = list(rows[0])
    print(" | ".join(names))
    for row in rows:
        print(" | ".join(f"{row[name]:.3f}" if isinstance(row[name], float) else str(row[name]) for name in names))
    worst = min(row["mlll"] - max(row["constant_mlll"], row["tabular_mlll"]) for row in rows)
    print(f"least gain in mLLL over both baselines: {worst:.3f} (wanted: {given.margin})")
    return 0 if worst >= given.margin else 1


if __name__ == "__main__":
    sys.exit(main())
