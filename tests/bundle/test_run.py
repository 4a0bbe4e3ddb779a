"""The bundle's runs on a small phantom: train, evaluate, infer, resume."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch

from cpic_monai.report import read_predictions
from cpic_monai.report.bootstrap import metric_intervals
from cpic_monai.report.provenance import PLACES
from tests.bundle.conftest import ROOT, SMALL, run_config

MODEL = {key: SMALL[key] for key in ("spatial_shape", "rank", "channels")}
SPLIT = {key: SMALL[key] for key in ("folds", "batch_size", "head", "tabular_columns")}


def plain_settings(name: str) -> dict[str, Any]:
    """Keys of a config that are numbers, text or lists of such, with the values that it gives or takes over."""
    train, config = (json.loads((ROOT / "configs" / f"{n}.json").read_text()) for n in ("train", name))
    taken = {key for key, value in config.items() if isinstance(value, str) and value.startswith("%configs/train")}
    values = {key: train[key] if key in taken else value for key, value in config.items() if key not in PLACES}

    def plain(value: Any) -> bool:
        if isinstance(value, list):
            return all(map(plain, value))
        return isinstance(value, int | float) or (isinstance(value, str) and not value.startswith(("$", "@", "%")))

    return {key: value for key, value in values.items() if plain(value)}


def check_provenance(folder: Path, config: str, given: dict[str, Any]) -> None:
    """The report holds every plain setting as run, and which data it was."""
    found = json.loads((folder / "report.json").read_text())["provenance"]
    expected = {key: given.get(key, value) for key, value in plain_settings(config).items()}
    assert {"rank", "draws", "index_sets", "grid_step", "spatial_shape", "seed"} <= set(expected)
    assert {key: found["config"].get(key) for key in expected} == expected
    assert found["config"]["head"] == given["head"] if "head" in given else "head" not in found["config"]
    assert found["config"]["ckpt_path"] == "model.pt"
    assert list(found["data"]["tables"]) == ["train.csv"]
    assert found["data"]["files"] > 0
    page = (folder / "report.html").read_text()
    assert "<details><summary>config</summary>" in page, "long, so collapsed"
    assert "&#34;spatial_shape&#34;: [16, 48, 48]" in page


def test_training_leaves_checkpoint_metrics_report_and_tracking(trained, phantom):
    metrics = json.loads((trained / "eval" / "metrics.json").read_text())
    assert list(metrics) == ["train", "validation", "test"]
    for entry in metrics.values():
        assert {"mlll", "rmse", "mae", "r2", "pinball", "coverage", "n"} <= set(entry)
        assert set(entry["baselines"]) == {"constant", "tabular"}
        assert all(np.isfinite(entry[name]) for name in ("mlll", "rmse", "mae", "pinball"))
    predictions = pd.read_csv(trained / "eval" / "predictions.csv")
    assert list(predictions.columns[:8]) == ["split", "subject", "week", "q0.2", "q0.5", "q0.8", "truth", "offset"]
    truth = pd.read_csv(phantom / "train.csv")
    assert len(predictions) == len(truth.drop_duplicates(["Patient", "Weeks"]))
    assert set(predictions["subject"]) == set(truth["Patient"])
    assert (predictions["q0.2"] <= predictions["q0.5"]).all()
    assert (predictions["q0.5"] <= predictions["q0.8"]).all()
    check_provenance(trained / "eval", "train", SMALL)
    page = (trained / "eval" / "report.html").read_text()
    assert "FVC" in page
    assert "<img" in page or "<svg" in page
    assert "MLFLOW_TRACKING_URI" not in os.environ, "a run leaves the process as it was: it may hold another run"
    client = mlflow.MlflowClient(f"sqlite:///{trained / 'mlruns.db'}")
    experiment = client.get_experiment_by_name("cpic")
    (found,) = client.search_runs(experiment.experiment_id)
    assert found.info.status == "FINISHED"
    assert found.data.metrics["test_mlll"] == pytest.approx(metrics["test"]["mlll"])
    assert found.data.params["rank"] == str(SMALL["rank"])
    assert any(f.path == "eval/report.html" for f in client.list_artifacts(found.info.run_id, "eval"))


def test_checkpoint_holds_tensors_and_plain_containers(trained):
    checkpoint = torch.load(trained / "models" / "model.pt", weights_only=True)
    assert set(checkpoint) == {"model", "encoder", "trained_on", "ridge"}
    assert any(key.startswith("basis.core_0_") for key in checkpoint["model"])


def test_evaluating_repeats_the_numbers(bundle_folder, trained, phantom, tmp_path):
    """From the checkpoint alone, with the data elsewhere, training's own evaluation comes out again."""
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(phantom, elsewhere)
    overrides = {**MODEL, **SPLIT, "dataset_dir": str(elsewhere), "eval_dir": str(tmp_path / "eval")}
    run_config("evaluating", "evaluate", ckpt_path=str(trained / "models" / "model.pt"), **overrides)
    check_provenance(tmp_path / "eval", "evaluate", overrides)
    again = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    first = json.loads((trained / "eval" / "metrics.json").read_text())
    for split, entry in first.items():
        for name in ("mlll", "rmse", "coverage", "n"):
            assert again[split][name] == pytest.approx(entry[name], rel=1e-6), (split, name)


def test_inference_on_a_cohort_and_on_bare_scans(bundle_folder, trained, phantom, tmp_path):
    checkpoint = str(trained / "models" / "model.pt")
    common = {**MODEL, "ckpt_path": checkpoint}
    run_config("run", "inference", dataset_dir=str(phantom), output_dir=str(tmp_path / "a"), **common)
    check_provenance(tmp_path / "a" / "predictions", "inference", common)
    table = pd.read_csv(tmp_path / "a" / "predictions" / "predictions.csv")
    assert len(table) == 16 * 5
    assert table["truth"].isna().all()
    records = json.loads((tmp_path / "a" / "predictions" / "predictions.json").read_text())
    assert len(records) == len(table)
    assert records[0]["q0.5"] == pytest.approx(table["q0.5"][0], rel=1e-6)
    bare = tmp_path / "bare"
    bare.mkdir()
    name = sorted((phantom / "train").iterdir())[0].name
    shutil.copytree(phantom / "train" / name, bare / name)
    run_config("run", "inference", dataset_dir=str(bare), output_dir=str(tmp_path / "b"), **common)
    fraction = pd.read_csv(tmp_path / "b" / "predictions" / "predictions.csv")
    known = table[table["subject"] == name]
    np.testing.assert_allclose(fraction["q0.5"].to_numpy(), (known["q0.5"] / known["offset"]).to_numpy(), rtol=1e-5)


def test_resume_is_bit_for_bit(bundle_folder, phantom, tmp_path):
    """Two epochs in one run, and one epoch resumed for a second, give the same weights, optimizer and ridge."""
    common = {**SMALL, "dataset_dir": str(phantom)}
    for name, epochs, resume in (("whole", 2, False), ("parts", 1, False), ("parts", 2, True)):
        run = {"max_epochs": epochs, "output_dir": str(tmp_path / name), "resume": resume}
        run_config("training", "train", **{**common, **run})
    whole, parts = (torch.load(tmp_path / n / "models" / "last.pt", weights_only=True) for n in ("whole", "parts"))
    assert whole["epoch"] == parts["epoch"] == 2
    for key, value in whole["model"].items():
        assert torch.equal(value, parts["model"][key]), key
    for a, b in zip(whole["optimizer"]["state"].values(), parts["optimizer"]["state"].values(), strict=True):
        assert torch.equal(a["exp_avg"], b["exp_avg"])
    for key, value in whole["ridge"].items():
        assert torch.equal(value, parts["ridge"][key]), key


def test_a_finished_run_is_evaluated_and_not_trained_again(bundle_folder, trained, phantom, tmp_path):
    shutil.copytree(trained / "models", tmp_path / "models")
    files = [tmp_path / "models" / name for name in ("model.pt", "last.pt")]
    before = [file.read_bytes() for file in files]
    run_config("training", "train", **SMALL, dataset_dir=str(phantom), output_dir=str(tmp_path), resume=True)
    assert [file.read_bytes() for file in files] == before
    found, expected = (json.loads((f / "eval" / "metrics.json").read_text()) for f in (tmp_path, trained))
    assert found["test"]["mlll"] == pytest.approx(expected["test"]["mlll"], rel=1e-6)


def test_paper_recipe_trains(bundle_folder, phantom, tmp_path):
    overrides = {**SMALL, "dataset_dir": str(phantom), "output_dir": str(tmp_path)}
    run_config("training", ["train", "paper"], **overrides)
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert np.isfinite(metrics["test"]["mlll"])
    checkpoint = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    state = checkpoint["model"]["indices._extra_state"]
    assert not state["digests"], "an epoch's own index sets end with it"
    # Voxels of the scans predicted follow from the number of the draw.
    shutil.copytree(tmp_path / "models", tmp_path / "again" / "models")
    again = {**MODEL, **SPLIT, "index_sets": "scan", "sampling": []}
    run_config("evaluating", "evaluate", **again, dataset_dir=str(phantom), output_dir=str(tmp_path / "again"))
    repeated = json.loads((tmp_path / "again" / "eval" / "metrics.json").read_text())
    assert repeated["test"]["rmse"] == pytest.approx(metrics["test"]["rmse"], rel=1e-4)


def test_early_stopping_ends_a_run_that_gets_no_better(bundle_folder, phantom, tmp_path):
    """With a learning rate of zero the second and third epoch cannot differ by more than the choice of voxels."""
    overrides = {**SMALL, "max_epochs": 6, "patience": 1, "dataset_dir": str(phantom), "output_dir": str(tmp_path)}
    run_config("training", "train", **overrides)
    last = torch.load(tmp_path / "models" / "last.pt", weights_only=True)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlruns.db'}")
    (found,) = client.search_runs(client.get_experiment_by_name("cpic").experiment_id)
    scores = [m.value for m in client.get_metric_history(found.info.run_id, "mlll")]
    worse = [i for i in range(1, len(scores)) if scores[i] <= max(scores[:i])]
    expected = worse[0] + 1 if worse else 6
    assert last["epoch"] == len(scores) == expected
    # The count goes on in a run that is resumed: this one has nothing left to train.
    run_config("training", "train", **overrides, resume=True)
    assert torch.load(tmp_path / "models" / "last.pt", weights_only=True)["epoch"] == expected


def test_basis_and_head_are_fitted_to_validation_scans_in_the_end(bundle_folder, phantom, tmp_path):
    """The encoder is that of the run without; basis, baselines and report know of the scans added; twice is once."""
    held = {}
    for name, both in (("train", False), ("both", True), ("both", True)):
        given = {**SMALL, "dataset_dir": str(phantom), "output_dir": str(tmp_path / name), "fit_on_validation": both}
        run_config("training", ["train", "ridge"], **given, resume=name in held)
        eval_dir = tmp_path / name / "eval"
        metrics = json.loads((eval_dir / "metrics.json").read_text())
        facts = json.loads((eval_dir / "report.json").read_text())["cohort"]["facts"]
        state = torch.load(tmp_path / name / "models" / "model.pt", weights_only=True)["model"]
        if name in held:
            assert metrics["test"]["mlll"] == pytest.approx(held[name][0]["test"]["mlll"])
        held[name] = metrics, facts, state
    (train, train_facts, old), (both, both_facts, new) = held["train"], held["both"]
    scans = train["train"]["subjects"] + train["validation"]["subjects"]
    basis = "basis.vectors"
    assert train["validation"]["subjects"] > 0
    assert (len(old[basis]), len(new[basis])) == (train["train"]["subjects"], scans)
    assert all(torch.equal(value, new[key]) for key, value in old.items() if key.startswith("encoder.layers"))
    assert train["test"]["mlll"] != both["test"]["mlll"]
    for baseline in train["test"]["baselines"]:
        assert train["test"]["baselines"][baseline] != both["test"]["baselines"][baseline]
    assert "fitted to" not in train_facts
    assert both_facts["fitted to"] == "training and validation scans together"
    # Evaluation knows it of the checkpoint.
    again = {key: value for key, value in SMALL.items() if key not in ("passes", "max_epochs")}
    model, eval_dir = tmp_path / "both" / "models" / "model.pt", tmp_path / "again"
    run_config(
        "evaluating",
        ["evaluate", "ridge"],
        **again,
        dataset_dir=str(phantom),
        ckpt_path=str(model),
        eval_dir=str(eval_dir),
    )
    assert json.loads((eval_dir / "report.json").read_text())["cohort"]["facts"]["fitted to"] == both_facts["fitted to"]
    test = json.loads((eval_dir / "metrics.json").read_text())["test"]
    assert test["baselines"]["ridge on voxels"]["mlll"] == pytest.approx(
        both["test"]["baselines"]["ridge on voxels"]["mlll"]
    )


def test_intervals_of_a_table_are_over_its_groups(bundle_folder, brats, tmp_path):
    """Two scans a patient, each named by its path: the patient goes from the table into the predictions."""
    table = pd.read_csv(brats / "table.csv")
    small = {key: SMALL[key] for key in ("rank", "channels", "passes", "max_epochs", "head")}
    run_config(
        "training", ["train", "table"], cohort_csv=str(brats / "table.csv"), target_column="age",
        group_column="patient", spatial_shape=[16, 16, 16], batch_size=6, folds=2, output_dir=str(tmp_path), **small,
    )  # fmt: skip
    frame = read_predictions(tmp_path / "eval" / "predictions.csv")
    assert frame.set_index("subject")["patient"].to_dict() == table.set_index("image")["patient"].to_dict()
    test, entry = frame[frame["split"] == "test"], json.loads((tmp_path / "eval" / "metrics.json").read_text())["test"]
    assert (entry["subjects"], test["patient"].nunique()) == (6, 3)
    scoring = json.loads((tmp_path / "eval" / "report.json").read_text())["scoring"]
    expected = metric_intervals(test.assign(subject=test["patient"]), **scoring)
    assert entry["intervals"]["mae"] == pytest.approx(expected["mae"], rel=1e-4)
    assert "gains" in entry["baselines"]["tabular"], "of the same patients"
    assert "On 6 subjects of 3 patients held out for testing" in (tmp_path / "eval" / "report.md").read_text()


def test_brats_overlay_reads_four_sequences(bundle_folder, brats, tmp_path):
    given: dict[str, Any] = {
        "dataset_dir": str(brats), "output_dir": str(tmp_path / "out"), "sequences": ["t1", "t1ce", "t2", "flair"],
        "spatial_shape": [16, 16, 16], "rank": SMALL["rank"], "channels": SMALL["channels"],
    }  # fmt: skip
    small = {key: SMALL[key] for key in ("passes", "max_epochs", "head", "folds")}
    run_config("training", ["train", "brats"], batch_size=5, **given, **small)
    metrics = json.loads((tmp_path / "out" / "eval" / "metrics.json").read_text())
    assert sum(entry["n"] for entry in metrics.values()) == 11, "the patient alive is left out"
    assert "ALIVE" in (tmp_path / "out" / "eval" / "report.html").read_text(), "and reported"
    first = torch.load(tmp_path / "out" / "models" / "model.pt", weights_only=True)["model"]["encoder.layers.0.weight"]
    assert first.shape[1] == 4
    # New patients: no outcome is asked for, so the one who is alive is predicted as well.
    known = {"target_name": "survival", "unit": "days", "cohort#require_target": False}
    run_config("run", ["inference", "brats"], **given, **known)
    assert len(pd.read_csv(tmp_path / "out" / "predictions" / "predictions.csv")) == 12
    trained, new = (
        json.loads((tmp_path / "out" / name / "report.json").read_text())["scoring"] for name in ("eval", "predictions")
    )
    assert new == trained == {"sigma_min": 10.0, "error_max": 1e12}, "two reports can be compared"
