"""Cross-validation through its config: processes a fold, resuming, refusals, one result on identical splits."""

from __future__ import annotations

import json
import re
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from monai.bundle import run

from cpic_monai.cohorts import OsicCohort, split
from cpic_monai.cross_validation import (
    CrossValidation,
    FoldRun,
    SettingsChangedError,
    aggregate,
    read_method,
    split_checksum,
)
from cpic_monai.cross_validation.page import write_results
from cpic_monai.metrics import summarise
from cpic_monai.report import predictions_frame, summarise_splits, write_metrics, write_predictions
from tests.bundle.conftest import SMALL

FOLDS = 2


def cross_validate(output, phantom, **given: Any) -> None:
    settings = {key: value for key, value in SMALL.items() if key != "folds"} | {"dataset_dir": str(phantom)}
    run(
        run_id="cross_validating",
        config_file="configs/cross_validate.json",
        output_dir=str(output),
        overrides=settings | given.pop("overrides", {}),
        folds=FOLDS,
        **given,
    )


METHODS = {"cpic": {}, "tt_mlp": {"config_files": ["configs/paper.json"], "overrides": {"encoder": False, "draws": 1}}}


@pytest.mark.slow
def test_two_methods_on_the_same_splits_resumed(bundle_folder, phantom, tmp_path, capfd):
    """Two folds of C-PIC, then a second method beside it: the first one's folds are not run again."""
    output = tmp_path / "cv"
    short = {"max_epochs": 1}
    cross_validate(output, phantom, overrides=short)
    alone = json.loads((output / "cv_metrics.json").read_text())
    assert list(alone["methods"]) == ["cpic"]
    done = sorted((output / "cpic").glob("fold_*/**/*"))
    times = {path: path.stat().st_mtime_ns for path in done}
    methods = {name: {**given, "overrides": {**given.get("overrides", {}), **short}} for name, given in METHODS.items()}
    cross_validate(output, phantom, methods=methods)
    assert {path: path.stat().st_mtime_ns for path in done} == times
    result = json.loads((output / "cv_metrics.json").read_text())
    assert result["methods"]["cpic"]["pooled"] == alone["methods"]["cpic"]["pooled"]

    # Every subject once, in the fold that the cohort's own split gives.
    cohort = OsicCohort(phantom, tabular_columns=["Weeks"])
    expected = {
        item["subject"]: k for k in range(FOLDS) for item in split(cohort, k, FOLDS, validation_fraction=0.15)["test"]
    }
    for name in METHODS:
        rows = pd.read_csv(output / name / "predictions.csv")
        assert rows.groupby("subject")["fold"].first().to_dict() == expected
        assert not rows.duplicated(["subject", "week"]).any()
        parts = [pd.read_csv(output / name / f"fold_{k}" / "eval" / "predictions.csv") for k in range(FOLDS)]
        held = pd.concat([part[part["split"] == "test"] for part in parts], ignore_index=True)
        pd.testing.assert_frame_equal(rows.drop(columns="fold"), held)
        entry = result["methods"][name]
        per_fold = [json.loads((output / name / f"fold_{k}/eval/metrics.json").read_text())["test"] for k in range(2)]
        values = [scores["rmse"] for scores in per_fold]
        assert entry["mean"]["rmse"] == pytest.approx(np.mean(values))
        assert entry["sd"]["rmse"] == pytest.approx(np.std(values, ddof=1))
        assert entry["pooled"]["rmse"] == pytest.approx(np.sqrt(np.mean((held["q0.5"] - held["truth"]) ** 2)))
        assert entry["settings"]["recipe"] == {"cpic": "closed_form", "tt_mlp": "paper"}[name]
    difference = result["methods"]["tt_mlp"]["differences"]["rmse"]
    pooled = [result["methods"][name]["pooled"]["rmse"] for name in ("tt_mlp", "cpic")]
    assert difference["difference"] == pytest.approx(pooled[0] - pooled[1])
    assert result["key_metric"] == "mlll"
    assert set(result["baselines"]) == {"constant", "tabular"}
    page, table = (output / "cv_report.html").read_text(), (output / "cv_table.md").read_text()
    for text in (page, table):
        assert all(word in text for word in ("tt", "mlp", "Fold 1", "constant", "tabular"))
    assert page.count("<svg") == 1

    client = mlflow.MlflowClient(f"sqlite:///{output / 'mlruns.db'}")
    runs = client.search_runs(client.get_experiment_by_name("cpic").experiment_id)
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    children = [r for r in runs if r not in parents]
    assert len(parents) == 1, "started again, it goes on with the same parent run"
    assert len(children) == 4
    assert {r.data.tags["mlflow.parentRunId"] for r in children} == {parents[0].info.run_id}
    assert {r.info.status for r in runs} == {"FINISHED"}
    assert all("test_rmse" in r.data.metrics and "train_loss" in r.data.metrics for r in children)
    assert parents[0].data.metrics["tt_mlp_rmse_mean"] == pytest.approx(result["methods"]["tt_mlp"]["mean"]["rmse"])

    # Another rank is another experiment: refused before anything runs, with the key and both values.
    with pytest.raises(RuntimeError, match="cross_validation") as raised:
        cross_validate(output, phantom, overrides={"rank": 5})
    cause = raised.value.__cause__
    assert isinstance(cause, SettingsChangedError)
    assert re.search(r"fold_0 was made with other settings: .*rank was 4, is 5", str(cause))
    assert {path: path.stat().st_mtime_ns for path in done} == times


def results_of(folder, tests, offset=0.0, patients=None):
    """Folds as training leaves them, of subjects with two visits; a list of test subjects a fold."""
    everyone = [f"p{n}" for n in range(8)]
    for k, held in enumerate(tests):
        splits = ["test" if name in held else "train" for name in everyone for _ in range(2)]
        visits = np.tile([0.0, 1.0], 8)
        truth = np.repeat(np.arange(8.0), 2) * 100 + visits
        middle = truth + offset + 10 * k + visits
        frame = predictions_frame(
            split=splits,
            subject=np.repeat(everyone, 2).tolist(),
            patient=np.repeat(patients or everyone, 2).tolist(),
            pred=np.stack([middle - 50, middle, middle + 50], 1),
            visit=visits,
            truth=truth,
            offset=np.zeros(16),
        )
        place = folder / f"fold_{k}" / "eval"
        write_predictions(frame, place / "predictions.csv")
        write_metrics(summarise_splits(frame), place / "metrics.json")
        facts = {"target": {"name": "age", "unit": "years", "visit": None}, "scoring": {}}
        (place / "report.json").write_text(json.dumps(facts))
        (folder / f"fold_{k}" / "fold.json").write_text(json.dumps({"seconds": 30.0}))
    return folder


def add_baseline(folder, name, values):
    """A further baseline of each fold, as an overlay adds it."""
    for k, rmse in enumerate(values):
        path = folder / f"fold_{k}" / "eval" / "metrics.json"
        metrics = json.loads(path.read_text())
        metrics["test"]["baselines"] = {name: {"rmse": rmse}}
        path.write_text(json.dumps(metrics))


GOOD = [["p0", "p3", "p6"], ["p1", "p4", "p7"], ["p2", "p5"]]


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["brats", "table"])
def test_other_layouts_are_cross_validated_alike(bundle_folder, brats, tmp_path, layout):
    """Every patient with a known outcome is held out once, and each method has one result over folds."""
    own = {
        "brats": {"dataset_dir": str(brats)},
        "table": {"cohort_csv": str(brats / "table.csv"), "target_column": "age"},
    }
    small = {key: SMALL[key] for key in ("rank", "channels", "passes", "max_epochs", "head")}
    run(
        run_id="cross_validating",
        config_file="configs/cross_validate.json",
        config_files=["configs/train.json", f"configs/{layout}.json"],
        overrides={**small, **own[layout], "spatial_shape": [16, 16, 16], "batch_size": 5},
        methods={"cpic": {}, "random": {"config_files": ["configs/random_voxels.json"]}},
        folds=3,
        output_dir=str(tmp_path),
    )
    result = json.loads((tmp_path / "cv_metrics.json").read_text())
    subjects = {"brats": 11, "table": 12}[layout]
    for name in ("cpic", "random"):
        rows = pd.read_csv(tmp_path / name / "predictions.csv")
        assert rows["subject"].nunique() == len(rows) == subjects
        assert rows["fold"].nunique() == 3
        assert np.isfinite(result["methods"][name]["pooled"]["mlll"])


def test_held_out_rows_are_pooled(tmp_path):
    method = read_method("a", results_of(tmp_path, GOOD), 3)
    rows = method.held_out()
    assert len(rows) == 16
    assert rows.groupby("subject")["fold"].unique().map(list).to_dict() == {
        name: [str(k)] for k, held in enumerate(GOOD) for name in held
    }
    # Absolute errors are 10 k and 10 k + 1: of 3, 3 and 2 subjects.
    assert summarise(rows)["mae"] == pytest.approx((3 * 0.5 + 3 * 10.5 + 2 * 20.5) / 8)


@pytest.mark.parametrize(
    ("tests", "message"),
    [
        ([["p0", "p1"], ["p1", "p2", "p3", "p4", "p5", "p6", "p7"]], "subject p1 is held out in fold 0 and in fold 1"),
        ([["p0", "p1", "p2"], ["p3", "p4", "p5"]], "2 of 8 subjects are held out in no fold, the first is p6"),
    ],
)
def test_a_subject_held_out_twice_or_never_is_an_error(tmp_path, tests, message):
    with pytest.raises(ValueError, match=message):
        read_method("a", results_of(tmp_path, tests), len(tests))


def test_some_folds_alone(tmp_path):
    """Folds that are there are read by their numbers; subjects of the others are held out in none of them."""
    results_of(tmp_path, GOOD)
    method = read_method("a", tmp_path, [2, 0])
    assert set(method.held_out()["subject"]) == {*GOOD[0], *GOOD[2]}
    one = aggregate({"a": read_method("a", tmp_path, [1])}, {}, "mae")["methods"]["a"]
    assert one["mean"]["mae"] == pytest.approx(10.5)
    assert np.isnan(one["sd"]["mae"])
    with pytest.raises(ValueError, match="subject p0 is held out in fold 0 and in fold 1"):
        read_method("a", tmp_path, [0, 0])


def test_baselines_of_overlays_are_in_the_result(tmp_path):
    add_baseline(results_of(tmp_path, GOOD), "ridge", [1.0, 2.0, 6.0])
    baselines = aggregate({"a": read_method("a", tmp_path, 3)}, {}, "rmse")["baselines"]
    assert list(baselines) == ["constant", "ridge"]
    assert baselines["ridge"]["mean"]["rmse"] == pytest.approx(3.0)
    assert "pooled" not in baselines["ridge"]


def test_result_over_folds_and_methods(tmp_path):
    methods = {
        name: read_method(name, results_of(tmp_path / name, GOOD, offset), 3)
        for name, offset in (("near", 0.0), ("far_off", 40.0))
    }
    splits = {"folds": 3, "seed": 0, "stratify": False, "validation_fraction": 0.0}
    result = aggregate(methods, splits, "mae")
    near, far = result["methods"]["near"], result["methods"]["far_off"]
    assert [fold["mae"] for fold in near["folds"]] == pytest.approx([0.5, 10.5, 20.5])
    assert near["mean"]["mae"] == pytest.approx(10.5)
    assert near["sd"]["mae"] == pytest.approx(10.0)
    assert near["pooled"]["mae"] == pytest.approx((3 * 0.5 + 3 * 10.5 + 2 * 20.5) / 8)
    assert near["seconds"] == 90.0
    assert "differences" not in near
    assert {key: far["differences"]["mae"][key] for key in ("difference", "low", "high")} == pytest.approx(
        {"difference": 40.0, "low": 40.0, "high": 40.0}
    )
    # A constant prediction of a fold is the median of its training rows.
    truths = methods["near"].folds[0]
    training = truths.loc[truths["split"] == "train", "truth"]
    held = truths.loc[truths["split"] == "test", "truth"]
    expected = (held - training.median()).abs().mean()
    assert result["baselines"]["constant"]["folds"][0]["mae"] == pytest.approx(expected)
    assert result["split_sha256"] == split_checksum(methods["far_off"].folds)
    paths = write_results(tmp_path, result, methods)
    assert [path.name for path in paths] == ["cv_metrics.json", "cv_table.md", "cv_report.html"]
    table = paths[1].read_text()
    assert "| near | " in table
    assert "10.5 ± 10.0" in table
    assert "| far\\_off | " in table
    assert "MAE \\[years\\]" in table
    assert "40.0 (+40.0 to +40.0)" in table
    page = paths[2].read_text()
    assert "Differences from “near”" in page
    assert 'class="best">10.5 ± 10.0' in page
    assert json.loads(paths[0].read_text())["methods"]["near"]["mean"]["mae"] == pytest.approx(10.5)
    assert (tmp_path / "near" / "report.html").is_file()


def test_methods_on_different_splits_are_not_compared(tmp_path):
    other = [["p0", "p3", "p5"], ["p1", "p4", "p7"], ["p2", "p6"]]
    methods = {
        name: read_method(name, results_of(tmp_path / name, tests), 3) for name, tests in (("a", GOOD), ("b", other))
    }
    with pytest.raises(ValueError, match=r"fold 0: subject p5 is in the split 't\w+' for [ab] alone"):
        aggregate(methods, {"folds": 3}, "mae")


def validation(tmp_path, **given: Any) -> CrossValidation:
    return CrossValidation(tmp_path, "configs/train.json", **{"tracking_uri": "sqlite:///none.db", **given})


def test_what_all_methods_share_cannot_be_set_by_one(bundle_folder, tmp_path):
    with pytest.raises(ValueError, match=r"method 'b' sets {'seed': 3}"):
        validation(tmp_path, methods={"a": {}, "b": {"overrides": {"seed": 3}}})
    with pytest.raises(ValueError, match=r"overrides set {'fold': 1}"):
        validation(tmp_path, overrides={"fold": 1})
    with pytest.raises(ValueError, match=r"method 'a/b': a name of letters"):
        validation(tmp_path, methods={"a/b": {}})
    with pytest.raises(ValueError, match=r"method 'a' has \['config_file'\]"):
        validation(tmp_path, methods={"a": {"config_file": "x.json"}})
    with pytest.raises(ValueError, match="two folds or more"):
        validation(tmp_path, folds=1)
    with pytest.raises(TypeError, match="the override 'intensity' is no plain value"):
        validation(tmp_path, overrides={"intensity": [object()]})


@pytest.mark.parametrize(("task", "metric"), [("classify", "log_loss"), ("survival", "cox"), ("autoencoder", "psnr")])
def test_other_tasks_are_refused_before_a_fold_is_run(bundle_folder, tmp_path, task, metric):
    files = ["configs/train.json", f"configs/{task}.json"]
    with pytest.raises(ValueError, match=f"`key_metric` is '{metric}', none of mlll, .* predicted quantiles"):
        CrossValidation(tmp_path, files, tracking_uri="")
    assert list(tmp_path.iterdir()) == []


def test_settings_are_those_of_overlays_and_overrides(bundle_folder, tmp_path):
    planned = validation(
        tmp_path, overrides={"head#steps": 7}, methods={"a": {"config_files": ["configs/paper.json"]}}, folds=3, seed=5
    )
    settings = planned.runs["a"][2].settings()
    assert (settings["fold"], settings["folds"], settings["seed"]) == (2, 3, 5)
    assert (settings["recipe"], settings["head"]["steps"]) == ("paper", 7)
    assert "output_dir" not in settings
    assert planned.key_metric == "mlll"


def test_a_fold_that_fails_says_why_and_begins_anew(tmp_path):
    """The config has no workflow of that name; after a failure other settings may be tried."""
    (tmp_path / "train.json").write_text('{"greeting": "hello", "training": "$print(@greeting) or 1 / 0"}')
    fold = FoldRun("a", 0, tmp_path / "fold_0", "training", [str(tmp_path / "train.json")], {})
    lines: list[str] = []
    with pytest.raises(RuntimeError, match=r"a, fold 0: training ended with code 1(.|\n)*division by zero"):
        fold.run(lines.append)
    assert "hello" in (tmp_path / "fold_0" / "log.txt").read_text()
    assert lines
    assert not fold.is_done()
    other = FoldRun("a", 0, tmp_path / "fold_0", "training", [str(tmp_path / "train.json")], {"greeting": "bye"})
    assert not other.is_done()
