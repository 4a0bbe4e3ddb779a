"""What an evaluation writes, of quantiles and of a task, with predictions that are given."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch

from cpic_monai.evaluation import Evaluation
from cpic_monai.report import predictions_frame
from cpic_monai.tasks import ClassTask, TaskEvaluation


class Told(Evaluation):
    """Its loaders are the predictions."""

    def predict(self, split: str, loader: Any) -> pd.DataFrame:
        return loader


class ToldClasses(TaskEvaluation):
    """Its loaders are the labels; the first class is always predicted."""

    def _predict(self, loader: Any) -> list[dict[str, Any]]:
        pred = torch.tensor([[0.9, 0.1]], dtype=torch.float64)
        return [{"subject": f"s{k}", "pred": pred, "label": torch.tensor([[float(k)]])} for k in loader]


def evaluation(folder: Any, truths: dict[str, Any], **given: Any) -> Told:
    loaders = {}
    for split, truth in truths.items():
        truth = np.asarray(truth, dtype=float)
        pred = np.array([[-1.0, 0.0, 1.0]] * len(truth))
        names = [f"{split}{k}" for k in range(len(truth))]
        loaders[split] = predictions_frame(split=split, subject=names, pred=pred, truth=truth)
    evaluator = cast(Any, SimpleNamespace(network=SimpleNamespace(indices=None)))
    return Told(evaluator, loaders, folder, target_name="age", unit="years", pictures=0, **given)


def test_results_of_a_former_run_do_not_stay_beside_new_ones(tmp_path):
    """Some scans with outcomes, the same folder without, and again with."""
    known, unknown = {"inference": [1.0, 2.0, 3.0]}, {"inference": [np.nan, np.nan]}
    guess = evaluation(tmp_path, known).loaders["inference"]
    for _ in range(2):
        evaluation(tmp_path, known, baselines={"guess": lambda: {"inference": guess}}).run()
        names = {path.name for path in tmp_path.iterdir()}
        assert {"metrics.json", "baselines.csv"} <= names
        assert "predictions.json" not in names
        assert evaluation(tmp_path, unknown).run() == {}
        names = {path.name for path in tmp_path.iterdir()}
        assert "predictions.json" in names
        assert not {"metrics.json", "baselines.csv"} & names


def test_the_constant_baseline_learns_from_the_scans_that_the_network_learned_from(tmp_path):
    truths = {"train": [0.0, 2.0], "validation": [10.0, 12.0], "test": [6.0]}
    for fitted, error in ((["train"], 5.0), (["train", "validation"], 0.0)):
        metrics = evaluation(tmp_path, truths, fitted=fitted, sigma_min=1e-3, error_max=1e12).run()
        assert metrics["test"]["baselines"]["constant"]["mae"] == pytest.approx(error)
    without = evaluation(tmp_path, {"test": [6.0, 7.0]}, fitted=["train", "validation"])
    assert "baselines" not in without.run()["test"], "nobody is there to learn from"


def test_the_constant_answer_of_a_task_does_too(tmp_path):
    loaders = {"train": [0, 0, 0, 1], "validation": [1, 1, 1, 1], "test": [1, 1]}
    task = ClassTask(["no", "yes"])
    for fitted, share in ((["train"], 1 / 4), (["train", "validation"], 5 / 8)):
        told = ToldClasses(cast(Any, None), loaders, tmp_path, task=task, target_name="event", fitted=fitted)
        losses = {split: entry["baselines"]["constant"]["log_loss"] for split, entry in told.run().items()}
        assert losses["test"] == pytest.approx(-np.log(share))
        assert set(losses) == set(loaders)


def test_the_report_of_a_task_names_no_place_and_is_strict_json(tmp_path):
    cohort = {
        "table": "/home/anna/study/study.csv", "share": float("nan"), "rows": np.int64(3),
        "left_out": [{"subject": "s9", "reason": "no scan at '/home/anna/study/s9.nii'"}],
    }  # fmt: skip
    settings = {"config": {"cohort_csv": "/home/anna/study/study.csv", "rate": float("inf")}}
    task = ClassTask(["no", "yes"])
    told = ToldClasses(
        cast(Any, None), {"test": [0, 1]}, tmp_path, task=task, target_name="event", cohort=cohort,
        provenance=lambda: settings,
    )  # fmt: skip
    told.run()
    for name in ("report.html", "report.md", "report.json"):
        assert "/home" not in (tmp_path / name).read_text(), name

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    content = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    facts = content["cohort"]["facts"]
    assert (facts["table"], facts["share"], facts["rows"]) == ("study.csv", None, 3)
    assert facts["left out"] == "s9 (no scan at 's9.nii')"
    assert content["provenance"]["config"] == {"cohort_csv": "study.csv", "rate": None}
