"""Cross-validation of classes and of survival: what each fold's evaluation wrote, in one table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from monai.bundle import run
from sklearn.metrics import log_loss

from cpic_monai.cross_validation import aggregate, read_method
from cpic_monai.cross_validation.page import write_results
from cpic_monai.report import write_metrics
from cpic_monai.tasks import read_task_predictions
from tests.bundle.test_tasks import MODEL, SHORT, study

HELD_OUT = [["007", "p3"], ["p1", "p4"], ["p2"]]
SPLITS = {"folds": 3, "seed": 0, "stratify": True, "validation_fraction": 0.2}


def folds_of(folder: Path, auc: list[float | None], constant: float = 0.5) -> Path:
    everyone = [name for held in HELD_OUT for name in held]
    for k, held in enumerate(HELD_OUT):
        place = folder / f"fold_{k}" / "eval"
        place.mkdir(parents=True)
        table = pd.DataFrame({"subject": everyone, "p(a)": 0.25, "p(b)": 0.75, "truth": "b"})
        table.insert(0, "split", ["test" if name in held else "train" for name in everyone])
        table.to_csv(place / "predictions.csv", index=False)
        scores = {"auc": auc[k], "accuracy": 1.0, "log_loss": 0.29, "n": len(held), "subjects": len(held)}
        beside = {"constant": {"auc": constant, "accuracy": 0.5, "log_loss": 0.69}}
        write_metrics({"test": {**scores, "baselines": beside}}, place / "metrics.json")
        (place / "report.json").write_text(json.dumps({"target": {"name": "grade"}}))
        (folder / f"fold_{k}" / "fold.json").write_text(json.dumps({"seconds": 60.0}))
    return folder


def test_metrics_of_classes_over_folds(tmp_path):
    aucs = {"cpic": [0.8, 0.9, 0.7], "resnet": [0.6, None, 0.5]}
    methods = {
        name: read_method(name, folds_of(tmp_path / name, auc), 3, read=read_task_predictions)
        for name, auc in aucs.items()
    }
    result = aggregate(methods, SPLITS, "auc")
    entry = result["methods"]["cpic"]
    assert (result["subjects"], result["n"]) == (5, 5)
    assert entry["mean"]["auc"] == pytest.approx(0.8)
    assert entry["sd"]["auc"] == pytest.approx(0.1)
    assert "pooled" not in entry
    assert np.isnan(result["methods"]["resnet"]["mean"]["auc"]), "a fold has one class only: no mean over folds"
    assert result["baselines"]["constant"]["mean"] == pytest.approx({"auc": 0.5, "accuracy": 0.5, "log_loss": 0.69})
    _, table, page = write_results(tmp_path, result, methods)
    text = table.read_text()
    assert "| cpic | 0.800 ± 0.100 |" in text
    assert "All held-out rows together" not in text
    assert "a constant prediction has 0.500" in page.read_text()
    rows = read_task_predictions(tmp_path / "cpic" / "predictions.csv")
    assert rows["subject"].tolist() == ["007", "p3", "p1", "p4", "p2"], "names stay text"
    assert rows["fold"].tolist() == ["0", "0", "1", "1", "2"]


def test_a_table_that_is_no_tasks_predictions_is_refused(tmp_path):
    (tmp_path / "predictions.csv").write_text("patient,p(a)\n1,0.5\n")
    with pytest.raises(ValueError, match=r"predictions.csv: lacks the columns \['split', 'subject'\]"):
        read_task_predictions(tmp_path / "predictions.csv")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classify", "survival"])
def test_a_task_is_cross_validated(task, bundle_folder, tmp_path):
    study(tmp_path).to_csv(tmp_path / "study.csv", index=False)
    outcome = {"classify": {"target_column": "grade"}, "survival": {"time_column": "days", "event_column": "died"}}
    short = {key: value for key, value in SHORT.items() if key != "folds"}
    run(
        run_id="cross_validating",
        config_file="configs/cross_validate.json",
        config_files=["configs/train.json", "configs/table.json", f"configs/{task}.json"],
        overrides={**MODEL, **short, **outcome[task], "cohort_csv": str(tmp_path / "study.csv")},
        methods={"cpic": {}, "joint": {"overrides": {"recipe": "paper"}}},
        folds=2,
        stratify=task == "classify",
        output_dir=str(tmp_path / "cv"),
    )
    result = json.loads((tmp_path / "cv" / "cv_metrics.json").read_text())
    score = "auc" if task == "classify" else "concordance"
    assert result["methods"]["cpic"]["mean"][score] > 0.65
    assert result["baselines"]["constant"]["mean"][score] == pytest.approx(0.5)
    rows = read_task_predictions(tmp_path / "cv" / "cpic" / "predictions.csv")
    assert rows["subject"].nunique() == len(rows) == 48
    assert "joint" in (tmp_path / "cv" / "cv_report.html").read_text()
    if task == "classify":
        names = ["middling", "mild", "severe"]  # sorted, as scikit-learn has them
        own = rows[rows["fold"] == "0"]
        expected = log_loss(own["truth"], own[[f"p({name})" for name in names]].astype(float), labels=names)
        assert result["methods"]["cpic"]["folds"][0]["log_loss"] == pytest.approx(expected, rel=1e-4)
