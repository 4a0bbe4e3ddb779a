"""The overlays: calibrated intervals, classes, right-censored survival."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch

from cpic_monai.cohorts import ClassTableCohort, SurvivalTableCohort
from tests.bundle.conftest import SMALL, run_config

MODEL: dict[str, Any] = {"spatial_shape": [16, 16, 16], "rank": 4, "channels": 6}
SHORT: dict[str, Any] = {"batch_size": 12, "passes": 2, "max_epochs": 1, "folds": 4, "head": {"steps": 120}, "draws": 1}


def study(folder: Path, scans: int = 48) -> pd.DataFrame:
    """A table of scans whose blob grows with the severity, with a grade and a time that follow from it."""
    generator = np.random.default_rng(0)
    severity = generator.uniform(0, 1, scans)
    for k, value in enumerate(severity):
        image = generator.normal(100, 10, (20, 20, 20)).astype(np.float32)
        edge = 3 + round(6 * value)
        image[10 - edge : 10 + edge, 10 - edge : 10 + edge, 10 - edge : 10 + edge] += 300
        nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), folder / f"{k}.nii")
    table = pd.DataFrame({"image": [f"{k}.nii" for k in range(scans)], "age": generator.normal(60, 8, scans).round()})
    table["grade"] = np.array(["mild", "middling", "severe"])[(3 * severity).astype(int)]
    death = 1000 * np.exp(-3 * severity) * generator.uniform(0.7, 1.3, scans)
    end = generator.uniform(100, 1200, scans)
    table["days"], table["died"] = np.minimum(death, end).round() + 1, (death <= end).astype(int)
    return table


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    study(folder).to_csv(folder / "study.csv", index=False)
    return folder / "study.csv"


def results(folder: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    page = (folder / "report.html").read_text()
    assert "<table" in page
    assert "test" in page
    assert "config_sha256" in page
    return json.loads((folder / "metrics.json").read_text()), pd.read_csv(folder / "predictions.csv")


@pytest.mark.parametrize("task", ["classify", "survival"])
@pytest.mark.parametrize("recipe", ["closed_form", "paper"])
def test_a_task_is_learned_and_evaluated_again(task: str, recipe: str, bundle_folder, table, tmp_path) -> None:
    outcome = {"classify": {"target_column": "grade"}, "survival": {"time_column": "days", "event_column": "died"}}[
        task
    ]
    common = {**MODEL, **SHORT, **outcome, "cohort_csv": str(table), "tabular_columns": ["age"]}
    epochs = {"max_epochs": 3, "draws": 2} if recipe == "paper" else {}
    run_config("training", ["train", "table", task], output_dir=str(tmp_path), recipe=recipe, **common | epochs)
    metrics, predictions = results(tmp_path / "eval")
    assert sum(entry["n"] for entry in metrics.values()) == len(predictions) == 48
    score = "auc" if task == "classify" else "concordance"
    assert set(metrics["test"]) >= {score, "n", "subjects"}
    if recipe == "closed_form":
        assert metrics["train"][score] > 0.8, "the blob's size tells"
        assert metrics["test"][score] > 0.65
    truth = pd.read_csv(table).set_index("image")
    if task == "classify":
        names = ["p(mild)", "p(middling)", "p(severe)"]
        np.testing.assert_allclose(predictions[names].sum(axis=1), 1, rtol=1e-5)
        assert (predictions["truth"].to_numpy() == truth.loc[predictions["subject"], "grade"].to_numpy()).all()
    else:
        expected = truth.loc[predictions["subject"]]
        np.testing.assert_allclose(predictions["time"], expected["days"], rtol=1e-5)
        assert (predictions["event"].to_numpy() == expected["died"].to_numpy()).all()
    again = {**common, "eval_dir": str(tmp_path / "again"), "ckpt_path": str(tmp_path / "models" / "model.pt")}
    for key in ("max_epochs", "passes"):
        again.pop(key)
    run_config("evaluating", ["evaluate", "table", task], **again)
    assert results(tmp_path / "again")[0]["test"][score] == pytest.approx(metrics["test"][score])
    assert metrics["test"]["baselines"]["constant"][score] == pytest.approx(0.5)
    if task == "classify" and recipe == "closed_form":
        swapped = {**again, "classes": ["severe", "middling", "mild"], "eval_dir": str(tmp_path / "swapped")}
        with pytest.raises((RuntimeError, ValueError)) as raised:
            run_config("evaluating", ["evaluate", "table", task], **swapped)
        assert (
            "p(middling), p(mild), p(severe), this configuration p(severe)"
            in f"{raised.value} {raised.value.__cause__}"
        )


@pytest.mark.parametrize("source", ["validation", "train_leave_one_out"])
def test_calibration_is_part_of_the_checkpoint(source: str, bundle_folder, phantom, tmp_path) -> None:
    overrides = {**SMALL, "dataset_dir": str(phantom), "output_dir": str(tmp_path), "calibration_source": source}
    run_config("training", ["train", "calibrate"], validation_fraction=0.3, **overrides)
    record = json.loads((tmp_path / "eval" / "calibration.json").read_text())
    state = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert state["model"]["head.widths"].tolist() == pytest.approx(record["widths"])
    assert record["widths"][0] != 1
    assert record["patients"] == (4 if source == "validation" else 8)
    predictions = pd.read_csv(tmp_path / "eval" / "predictions.csv")
    split = predictions[predictions["split"] == "validation"]
    if source == "validation":
        below = [
            float((split["truth"] <= split[q] * (1 + 1e-6)).groupby(split["subject"]).mean().mean())
            for q in ("q0.2", "q0.5", "q0.8")
        ]
        assert below == pytest.approx(record["below_after"], abs=2 / len(split)), "what evaluation wrote is calibrated"
    again = {key: overrides[key] for key in ("spatial_shape", "rank", "channels", "folds", "batch_size", "head")}
    again |= {"dataset_dir": str(phantom), "ckpt_path": str(tmp_path / "models" / "model.pt")}
    run_config("evaluating", "evaluate", eval_dir=str(tmp_path / "again"), validation_fraction=0.3, **again)
    repeated = pd.read_csv(tmp_path / "again" / "predictions.csv")
    np.testing.assert_allclose(repeated["q0.8"], predictions["q0.8"], rtol=1e-6)


@pytest.mark.parametrize(
    ("overlays", "message"),
    [
        (["ridge"], "`evaluation#baselines` has ridge on voxels, which predict quantiles, not p.middling., p.mild"),
        (["resnet"], "ScanResNet has 3 outputs of a QuantileHead, the task wants 3 of a LogitHead"),
    ],
)
def test_overlays_for_quantiles_are_refused_before_training(overlays, message, bundle_folder, table, tmp_path) -> None:
    settings = {**MODEL, **SHORT, "cohort_csv": str(table), "target_column": "grade", "output_dir": str(tmp_path)}
    more = {"depth": 10} if overlays == ["resnet"] else {}
    with pytest.raises(RuntimeError) as raised:
        run_config("training", ["train", "table", "classify", *overlays], **settings | more)
    causes, error = [], raised.value
    while error is not None:
        causes.append(str(error))
        error = error.__cause__
    assert re.search(message, " ".join(causes)), causes
    assert not (tmp_path / "models" / "model.pt").exists()


def test_outcomes_that_cannot_be_read_are_reported(tmp_path) -> None:
    frame = study(tmp_path, 8)
    frame["code"] = [1, 0, 1, 0, np.nan, 1, 0, 2]
    frame.loc[2, "days"] = -4
    frame["died"] = frame["died"].astype(object)
    frame.loc[3, "died"] = "perhaps"
    frame.loc[[0, 1], "died"] = "yes"
    frame.to_csv(tmp_path / "study.csv", index=False)
    coded = ClassTableCohort(tmp_path / "study.csv", target_column="code", classes=["0", "1"], tabular_columns=["age"])
    assert [item["target"].tolist() for item in coded.items] == [[1], [0], [1], [0], [1], [0]]
    assert [left.reason for left in coded.left_out] == ["no class", "class '2' is none of 0, 1"]
    assert coded.describe()["classes"] == {"0": 3, "1": 3}
    assert coded.feature_names == ("age",)
    assert all("code" not in {*item["covariates"], *item["strata"]} for item in coded.items)
    cohort = SurvivalTableCohort(tmp_path / "study.csv", "days", "died")
    reasons = [left.reason for left in cohort.left_out]
    assert reasons == [
        "days is -4.0; times are positive",
        "died is 'perhaps'; write 1 for an event, 0 for the end of follow-up",
    ]
    assert len(cohort) == 6
    assert cohort.items[0]["target"][0] > 0
    with pytest.raises(ValueError, match="age is the outcome: take it out of tabular_columns"):
        ClassTableCohort(tmp_path / "study.csv", target_column="age", tabular_columns="age")
    frame.assign(died=0).to_csv(tmp_path / "none.csv", index=False)
    with pytest.raises(ValueError, match="no scan has an event"):
        SurvivalTableCohort(tmp_path / "none.csv", "days", "died")
    frame.assign(code=1).to_csv(tmp_path / "one.csv", index=False)
    with pytest.raises(ValueError, match=r"code has the classes \['1'\]; two are needed"):
        ClassTableCohort(tmp_path / "one.csv", target_column="code")
