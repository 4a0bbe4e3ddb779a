"""Error against evaluations of cross-approximations: this package's, tntorch's, teneva's and torchTT's.

Problems are functions, and encodings of scans known in every voxel, so that every error is the relative Frobenius
error over all voxels and channels, and TT-SVD of the same rank (channels as the train's free last bond) says what can
be had. ``evaluations`` are distinct voxels looked at: the channels of a voxel cost one encoder call, however often and
for however many channels a method asks. ``ratio`` is error over TT-SVD's, ``explained`` 1 - error^2 (an error of 1 is
that of the zero tensor). The packages approximate a scalar function of the spatial modes and binary channel modes;
besides their sweeps at the full rank, rows with a budget give the best of several ranks up to it and numbers of sweeps
that look at no more voxels than the row of this package with that oversampling.

The packages come with the extra ``bench``; one that is not installed is left out, saying so.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from bench_cross_methods import PACKAGES, best_within, ours, package_settings
from bench_cross_problems import Problem, analytic, encoder, encodings, intensities
from bench_table import markdown
from tqdm import tqdm

from cpic_monai.atomic import write_text_atomically
from cpic_monai.cohorts import write_phantom_cohort
from cpic_monai.cross import Ridge

MODULES = {"tntorch": "tntorch", "teneva": "teneva", "torchTT": "torchtt"}
KINDS = ("analytic", "phantom", "ixi", "ct", "ixi_intensities")
COLUMNS = (
    "problem", "rank", "method", "setting", "evaluations", "requests", "error", "svd_error", "ratio", "explained",
    "seconds",
)  # fmt: skip


def problems(given: argparse.Namespace) -> Iterator[Problem]:
    """The problems asked for; real scans need ``CPIC_DATA`` and are left out, saying so, where it is unset."""
    network = encoder(given.checkpoint, given.seed)
    data = os.environ.get("CPIC_DATA")
    slab, cube = (32, 128, 128), (64, 64, 64)
    for kind in given.problems.split(","):
        if kind not in KINDS:
            raise SystemExit(f"unknown problem {kind!r}: choose of {', '.join(KINDS)}")
        if kind == "analytic":
            yield from analytic()
        elif kind == "phantom":
            with tempfile.TemporaryDirectory() as folder:
                cohort = write_phantom_cohort(Path(folder) / "phantom", given.scans, progress=False)
                paths = sorted((cohort / "train").iterdir())
                yield encodings("phantom CT, encoded", paths, slab, True, network, given.unfolding)
        elif not data:
            print(f"{kind}: left out, CPIC_DATA is not set")
        elif kind == "ct":
            series = sorted(p for p in (Path(data) / "dicom_lung_ct").iterdir() if p.is_dir())[: given.scans]
            yield encodings("lung CT, encoded", series, slab, True, network, given.unfolding)
        else:
            table = pd.read_csv(Path(data) / "ixi_age" / "cohort.csv").head(given.scans)
            paths = [Path(data) / "ixi_age" / p for p in table["image"]]
            if kind == "ixi":
                yield encodings("IXI brain, encoded", paths, cube, False, network, given.unfolding)
            else:
                yield intensities("IXI brain, intensities", paths, cube, False, given.unfolding)


def row(problem: Problem, rank: int, method: str, setting: str, found: list[Any], seconds: float) -> dict[str, Any]:
    """Means over seeds and scans."""
    error = torch.stack([f.error for f in found])
    best = problem.svd_error(rank)
    return {
        "problem": problem.name,
        "rank": rank,
        "method": method,
        "setting": setting,
        "evaluations": round(sum(f.voxels for f in found) / len(found)),
        "requests": round(sum(f.requests for f in found) / len(found)),
        "searched": round(sum(f.searched for f in found) / len(found)),
        "error": float(error.mean()),
        "svd_error": float(best.mean()),
        "ratio": float((error / best).mean()),
        "explained": float(1 - error.square().mean()),
        "seconds": seconds / len(found),
    }


def compare(problem: Problem, rank: int, given: argparse.Namespace, packages: list[str]) -> list[dict[str, Any]]:
    """All methods on one problem at one rank."""
    rows, budgets = [], {}
    # A function without noise is interpolated without a ridge; encodings by the network's default.
    ridge = Ridge(1e-14, 0.0, 2) if problem.noiseless else Ridge()
    for mode in given.modes.split(","):
        for oversampling in map(float, given.oversampling.split(",")):
            for alternations in map(int, given.alternations.split(",")):
                settings = {"oversampling": oversampling, "alternations": alternations}
                start = time.perf_counter()
                found = [ours(problem, rank, s, mode, ridge, **settings) for s in range(given.seeds)]
                label = f"oversampling {oversampling:g}" + (f", {alternations} alternations" if alternations else "")
                rows.append(row(problem, rank, f"cpic {mode}", label, found, time.perf_counter() - start))
                if not alternations:
                    budgets[oversampling] = rows[-1]["evaluations"]
    for name in packages:
        start = time.perf_counter()
        ranks = sorted({*range(1, rank + 1, max(1, rank // 5)), rank})
        runs = package_settings(name, problem, ranks, range(1, given.sweeps + 1), 0)
        seconds = (time.perf_counter() - start) / max(1, len(runs))
        for lower, count, found_one in runs:
            if lower == rank:
                label = f"rank {rank}, {count} sweep{'s' if count > 1 else ''}"
                rows.append(row(problem, rank, name, label, [found_one], seconds))
        for oversampling, budget in budgets.items():
            best = best_within(runs, budget)
            if best is not None:
                label = f"budget of oversampling {oversampling:g}: rank {best[0]}, {best[1]} sweeps"
                rows.append(row(problem, rank, name, label, [best[2]], seconds))
    return rows


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", default=",".join(KINDS), help=f"of {','.join(KINDS)}")
    parser.add_argument("--ranks", default="10", help="TT ranks, e.g. 5,10,20")
    parser.add_argument("--scans", type=int, default=2, help="scans a cohort")
    parser.add_argument("--modes", default="scan,cohort", help="whose index sets: scan, cohort")
    parser.add_argument("--oversampling", default="1,1.5,2", help="of this package's index sets")
    parser.add_argument("--alternations", default="0", help="rounds of alternation before the sweep")
    parser.add_argument("--packages", default=",".join(PACKAGES), help=f"of {','.join(PACKAGES)}; '' for none")
    parser.add_argument("--sweeps", type=int, default=3, help="most sweeps of the packages")
    parser.add_argument("--seeds", type=int, default=3, help="draws of seed voxels that this package's rows average")
    parser.add_argument("--seed", type=int, default=0, help="of the random encoder")
    parser.add_argument("--checkpoint", type=Path, help="a network's model.pt whose encoder to take; random by default")
    parser.add_argument("--unfolding", default="interleaved", help="of the grid of scans")
    parser.add_argument("--table", action="store_true", help="print nothing but the table, once, at the end")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the rows here")
    given = parser.parse_args()
    wanted = [name for name in given.packages.split(",") if name]
    packages = [name for name in wanted if importlib.util.find_spec(MODULES[name]) is not None]
    if len(packages) < len(wanted):
        print(f"not installed, left out: {', '.join(sorted(set(wanted) - set(packages)))} (extra `bench`)")
    rows: list[dict[str, Any]] = []
    for problem in tqdm(problems(given), desc="problems", unit="problem", disable=given.table):
        for rank in map(int, given.ranks.split(",")):
            new = compare(problem, rank, given, packages)
            rows += new
            if not given.table:
                print(markdown(new, COLUMNS), flush=True)
    if given.table:
        print(markdown(rows, COLUMNS))
    if given.json:
        encoded = str(given.checkpoint.name) if given.checkpoint else f"random, seed {given.seed}"
        about = {"encoder": encoded, "scans": given.scans, "seeds": given.seeds, "torch": torch.__version__}
        write_text_atomically(given.json, json.dumps({"about": about, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
