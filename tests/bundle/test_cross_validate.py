"""Cross-validation through its config: processes a fold, resuming, refusals, one result on identical splits."""

from __future__ import annotations

import json
import re
from pathlib import Path
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
)
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


def validation(tmp_path, **given: Any) -> CrossValidation:
    return CrossValidation(tmp_path, "configs/train.json", **{"tracking_uri": "sqlite:///none.db", **given})


def test_what_all_methods_share_cannot_be_set_by_one(bundle_folder, tmp_path):
    with pytest.raises(ValueError, match=r"method 'b' sets {'seed': 3}"):
        validation(tmp_path, methods={"a": {}, "b": {"overrides": {"seed": 3}}})
    with pytest.raises(ValueError, match=r"overrides set {'fold': 1}"):
        validation(tmp_path, overrides={"fold": 1})
    with pytest.raises(ValueError, match=r"overrides set {'models_dir': 'x'}: folds would overwrite each other there"):
        validation(tmp_path, overrides={"models_dir": "x"})
    with pytest.raises(ValueError, match=r"method 'a' sets {'ckpt_path': 'x'}: folds would overwrite each other there"):
        validation(tmp_path, methods={"a": {"overrides": {"ckpt_path": "x"}}})
    with pytest.raises(ValueError, match=r"method 'a/b': a name of letters"):
        validation(tmp_path, methods={"a/b": {}})
    with pytest.raises(ValueError, match=r"method 'a' has \['config_file'\]"):
        validation(tmp_path, methods={"a": {"config_file": "x.json"}})
    with pytest.raises(ValueError, match="two folds or more"):
        validation(tmp_path, folds=1)
    with pytest.raises(TypeError, match="the override 'intensity' is no plain value"):
        validation(tmp_path, overrides={"intensity": [object()]})


@pytest.mark.parametrize(
    ("task", "key_metric", "message"),
    [
        ("autoencoder", None, "`key_metric` is 'psnr', none of mlll, .* cox"),
        ("classify", "mlll", "`key_metric` is 'mlll', which .* do not have; choose one of auc, accuracy, log_loss"),
        ("survival", "auc", "`key_metric` is 'auc', which .* do not have; choose one of concordance, cox"),
    ],
)
def test_metrics_without_a_table_are_refused_before_a_fold_is_run(bundle_folder, tmp_path, task, key_metric, message):
    files = ["configs/train.json", f"configs/{task}.json"]
    with pytest.raises(ValueError, match=message):
        CrossValidation(tmp_path, files, tracking_uri="", key_metric=key_metric)
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


def test_credentials_of_a_store_reach_the_fold_and_no_file(tmp_path):
    """The process is given them; log, arguments and settings stay without, and masked settings are the same again."""
    files = [str(tmp_path / "train.json")]
    steps = ["$os.makedirs(@output_dir + '/eval')", "$open(@output_dir + '/eval/metrics.json', 'w').write('{}')"]
    steps.append("$print('length', len(@volume_options['storage']['headers'][0]), @volume_options['padding_value'])")
    config = {"imports": ["$import os"], "volume_options": {}, "output_dir": "x", "rank": 1, "training": steps}
    (tmp_path / "train.json").write_text(json.dumps(config))
    (tmp_path / "logging.conf").write_text(Path("configs/logging.conf").read_text())
    secret = {"storage": {"headers": ["Authorization: Bearer tell-nobody"]}, "padding_value": -1000}
    overrides = {"volume_options": secret, "rank": 2}
    fold = FoldRun("a", 0, tmp_path / "fold_0", "training", files, overrides, str(tmp_path / "logging.conf"))
    fold.run()
    assert "length 33 -1000" in (tmp_path / "fold_0" / "log.txt").read_text()
    for file in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert "tell-nobody" not in file.read_text(), file
    assert fold.settings()["volume_options"] == {"storage": {"headers": ["***"]}, "padding_value": -1000}
    assert json.loads((tmp_path / "fold_0" / "arguments.json").read_text())["rank"] == 2
    assert fold.is_done()
