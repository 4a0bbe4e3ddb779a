"""Is a checkpoint a better start than random weights, on a small cohort of another kind? Held-out MAE and R2, seconds.

Of the cohort's scans some learn (``--training_scans``), all others are held out; every seed draws another split, other
random weights and other voxels, the same for all methods:

``constant``       the median of the training targets
``random_head``    random encoder, never trained; voxels, basis and head fitted to it
``transfer_head``  the checkpoint's encoder, untouched; the same fit
``scratch``        random encoder, trained for ``--epochs``; the same fit
``transfer_fine``  the checkpoint's encoder, trained for ``--epochs``; the same fit

No validation split: all training scans learn, and the last epoch counts. Data, preprocessing and training are those of
configs/train.json with table.json and finetune.json (and align.json, with ``--align``). By default the cohort is IXI
(brain MRI, age) in the folder that the environment variable CPIC_DATA names.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from monai.bundle import ConfigParser
from monai.utils import set_determinism
from sklearn.metrics import mean_absolute_error, r2_score

from cpic_monai.atomic import write_text_atomically
from cpic_monai.cohorts import TableCohort, prepare
from cpic_monai.evaluation import Evaluation
from cpic_monai.export import read_checkpoint
from cpic_monai.finetune import take_encoder
from cpic_monai.handlers.select import select_index_sets
from cpic_monai.transforms import fit_transforms

ROOT = Path(__file__).resolve().parents[1]
METHODS = ("constant", "random_head", "transfer_head", "scratch", "transfer_fine")
KEPT = ("SeedEpoch", "SelectIndexSets", "FitBasisAndHead", "ProgressBar")  # of the trainer's handlers: no files written


class Job:
    """One split; methods share its scans, opened and aligned once."""

    def __init__(self, cohort: TableCohort, seed: int, loading: list[Any], given: argparse.Namespace) -> None:
        self.seed, self.given, self.loading = seed, given, loading
        groups = np.unique([str(item["group"]) for item in cohort.items])
        learn = set(np.random.default_rng(seed).permutation(groups)[: given.training_scans].tolist())
        parts: dict[str, list[Any]] = {"train": [], "validation": [], "test": []}
        for item in cohort.items:
            parts["train" if str(item["group"]) in learn else "test"].append(item)
        self.parts, self.splits, self.alignment = parts, prepare(cohort, parts), []
        parser = self.parser()
        if not loading:  # of the first split; its cache of blocks serves all
            loading.extend(parser.get_parsed_content("loading"))
        self.alignment = parser.get_parsed_content("alignment")
        fit_transforms([*loading, *self.alignment], list[Any](self.splits.train))

    def parser(self) -> ConfigParser:
        """The bundle's configuration for this split, with the transforms that are there already."""
        names = ["train", "table", *(["align"] if self.given.align else []), "finetune"]
        parser = ConfigParser(ConfigParser.load_config_files([str(ROOT / "configs" / f"{n}.json") for n in names]))
        given = self.given
        settings: dict[str, Any] = {
            "seed": self.seed, "spatial_shape": [given.size] * 3, "rank": given.rank, "draws": given.draws,
            "channels": given.channels, "max_epochs": given.epochs, "passes": given.passes, "handlers": [],
            "batch_size": given.batch_size, "learning_rate": given.learning_rate, "cohort_csv": str(given.cohort_csv),
            "output_dir": str(given.folder / f"seed{self.seed}"), "splits": self.splits,
        }  # fmt: skip
        for key, value in settings.items():
            parser[key] = value
        if self.loading:
            parser["loading"] = self.loading
        if self.alignment:
            parser["alignment"] = self.alignment
        parser["train"]["handlers"] = [h for h in parser["train"]["handlers"] if h["_target_"].endswith(KEPT)]
        parser["train"]["trainer"]["train_handlers"] = "@train#handlers"
        return parser

    def run(self, method: str) -> dict[str, Any]:
        """One method: seconds of the fit (without reading the scans the first time) and held-out scores."""
        set_determinism(self.seed)
        parser = self.parser()
        network, fit = (parser.get_parsed_content(key) for key in ("network_def", "finetuning#fit"))
        if method.startswith("transfer"):
            take_encoder(network, read_checkpoint(self.given.pretrained)["model"], str(self.given.pretrained))
        begun = time.perf_counter()
        if method.endswith("head"):
            scans, draws = parser.get_parsed_content("train#scans"), self.given.draws
            select_index_sets(network, scans, scans=20, draws=draws, seed=self.seed + 1000003)
            fit()
        else:
            parser.get_parsed_content("train#trainer").run()
        seconds = time.perf_counter() - begun
        return {"method": method, "seed": self.seed, "seconds": seconds, **self.score(parser)}

    def constant(self) -> dict[str, Any]:
        """The median of the training targets for everyone."""
        train, test = (np.concatenate([i["target"] for i in self.parts[name]]) for name in ("train", "test"))
        return {
            "method": "constant",
            "seed": self.seed,
            "seconds": 0.0,
            **scores(test, np.full(test.shape, np.median(train))),
        }

    def score(self, parser: ConfigParser) -> dict[str, float]:
        """Of the middle quantile on the held-out scans."""
        evaluator = parser.get_parsed_content("evaluator")
        loader = parser.get_parsed_content("validate#test_dataloader")
        frame = Evaluation(evaluator, {}, self.given.folder, target_name="", unit="").predict("test", loader)
        return scores(frame["truth"].to_numpy(), frame["q0.5"].to_numpy())


def scores(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """MAE in the target's unit, and R2."""
    return {"mae": float(mean_absolute_error(truth, predicted)), "r2": float(r2_score(truth, predicted))}


def summary(rows: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over the seeds, as Markdown; and what the checkpoint gains over random weights."""
    frame = pd.DataFrame(rows)
    lines = ["| method | MAE | R2 | seconds |", "|---|---|---|---|"]
    for method in [m for m in METHODS if m in set(frame["method"])]:
        part = frame[frame["method"] == method]
        cells = [f"{part[k].mean():.{n}f} ± {part[k].std(ddof=0):.{n}f}" for k, n in (("mae", 2), ("r2", 3))]
        lines.append(f"| {method} | {' | '.join(cells)} | {part['seconds'].mean():.1f} |")
    mae = frame.pivot(index="seed", columns="method", values="mae")
    for ours, theirs in (("transfer_fine", "scratch"), ("transfer_head", "random_head"), ("transfer_head", "scratch")):
        if {ours, theirs} <= set(mae):
            gain = mae[theirs] - mae[ours]
            lines.append(
                f"\n{ours} against {theirs}: MAE smaller by {gain.mean():.2f} ± {gain.std(ddof=0):.2f}, "
                f"on {int((gain > 0).sum())} of {len(gain)} splits"
            )
    return "\n".join(lines)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained", type=Path, required=True, help="the checkpoint: model.pt")
    parser.add_argument("--cohort_csv", type=Path, help="the table; default: IXI below CPIC_DATA")
    parser.add_argument("--target_column", default="age_years", help="column of the outcome")
    parser.add_argument("--group_column", default="subject_id", help="column of the patient")
    parser.add_argument("--tabular_columns", nargs="*", default=[], help="columns that the head sees")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="which to compare")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of split, weights and voxels")
    parser.add_argument("--training_scans", type=int, default=40, help="patients that learn; all others are held out")
    parser.add_argument("--size", type=int, default=48, help="voxels of the view along each axis")
    parser.add_argument("--rank", type=int, default=6, help="TT rank")
    parser.add_argument("--channels", type=int, default=16, help="of the encoding, the checkpoint's")
    parser.add_argument("--draws", type=int, default=2, help="draws of voxels averaged over")
    parser.add_argument("--epochs", type=int, default=2, help="of scratch and transfer_fine")
    parser.add_argument("--passes", type=int, default=4, help="over the training scans in an epoch")
    parser.add_argument("--batch_size", type=int, default=20, help="scans a step")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="of scratch and transfer_fine")
    parser.add_argument("--align", action="store_true", help="align the scans to a template of the training scans")
    parser.add_argument("--json", type=Path, help="write rows and settings here, after every row")
    given = parser.parse_args(arguments)
    if given.cohort_csv is None:
        if not os.environ.get("CPIC_DATA"):
            parser.error("CPIC_DATA is not set: name a table by --cohort_csv")
        given.cohort_csv = Path(os.environ["CPIC_DATA"]) / "ixi_age" / "cohort.csv"
    return given


def main(arguments: list[str] | None = None) -> int:
    """See the module."""
    given = parse(arguments)
    columns = {"target_column": given.target_column, "tabular_columns": given.tabular_columns}
    cohort = TableCohort(given.cohort_csv, group_column=given.group_column, **columns)
    rows: list[dict[str, Any]] = []
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        given.folder = Path(folder)
        loading: list[Any] = []
        for seed in given.seeds:
            job = Job(cohort, seed, loading, given)
            for method in given.methods:
                row = job.constant() if method == "constant" else job.run(method)
                rows.append(row)
                print(f"{time.perf_counter() - begun:6.0f} s  {row}", file=sys.stderr)
                if given.json:
                    settings = {key: str(value) for key, value in vars(given).items() if key not in ("json", "folder")}
                    content = {"settings": settings, "cores": os.cpu_count(), "rows": rows}
                    write_text_atomically(given.json, json.dumps(content, indent=2) + "\n")
    print(summary(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
