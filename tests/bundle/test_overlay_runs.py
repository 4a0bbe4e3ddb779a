"""Overlays run whole: alignment, maps of where it looked, tensor regression, the crop's shape."""

from __future__ import annotations

import json
import shutil

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from cpic_monai.volumes import open_volume
from tests.bundle.conftest import SMALL, run_config

SMALLER = {key: SMALL[key] for key in ("spatial_shape", "rank", "channels", "tabular_columns")}


def scores(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_aligned_training_is_evaluated_in_the_same_place(bundle_folder, phantom, tmp_path):
    settings = {**SMALL, "dataset_dir": str(phantom), "output_dir": str(tmp_path), "align_kind": "translation"}
    run_config("training", ["train", "align"], **settings, log_model=False)
    assert nibabel.load(tmp_path / "models" / "template.nii.gz").ndim == 3
    again = {key: value for key, value in settings.items() if key not in ("passes", "max_epochs")}
    run_config("evaluating", ["evaluate", "align"], **again, eval_dir=str(tmp_path / "again"))
    first, second = scores(tmp_path / "eval"), scores(tmp_path / "again")
    assert first.keys() == second.keys()
    for split, entry in first.items():
        assert second[split]["mlll"] == pytest.approx(entry["mlll"], rel=1e-6)
    del again["align_kind"]
    run_config("evaluating", "evaluate", **again, eval_dir=str(tmp_path / "elsewhere"))
    assert scores(tmp_path / "elsewhere")["test"]["mlll"] != pytest.approx(first["test"]["mlll"], rel=1e-6)


def test_tensor_regression_in_the_place_of_the_basis(bundle_folder, phantom, tmp_path):
    settings = {**SMALL, "dataset_dir": str(phantom), "output_dir": str(tmp_path), "trl_rank": 2, "max_epochs": 2}
    run_config("training", ["train", "paper", "trl"], **settings, log_model=False)
    weights = torch.load(tmp_path / "models" / "model.pt", weights_only=True)["model"]
    assert "basis.vectors" not in weights
    kept = ("spatial_shape", "rank", "channels", "batch_size", "folds", "tabular_columns", "head")
    again = {key: settings[key] for key in (*kept, "dataset_dir", "output_dir", "trl_rank")}
    run_config(
        "evaluating", ["evaluate"], **again, index_sets="scan", sampling=[], projection="trl", trl_dropout=0.1,
        eval_dir=str(tmp_path / "again"),
    )  # fmt: skip
    first, second = scores(tmp_path / "eval"), scores(tmp_path / "again")
    for split, entry in first.items():
        assert second[split]["mlll"] == pytest.approx(entry["mlll"], rel=1e-5)


@pytest.mark.parametrize("config", ["evaluate", "inference"])
def test_where_it_looked(bundle_folder, trained, phantom, tmp_path, config):
    common = {**SMALLER, "ckpt_path": str(trained / "models" / "model.pt"), "dataset_dir": str(phantom)}
    more = {"folds": SMALL["folds"], "head": SMALL["head"]} if config == "evaluate" else {}
    folder = tmp_path / "explained"
    run_config("explaining", [config, "explain"], **common, **more, output_dir=str(tmp_path), explain_dir=str(folder))
    facts = json.loads((folder / "explained.json").read_text())
    scans = facts["scans"]
    assert len(scans) == (4 if config == "evaluate" else 16)
    for scan in scans:
        subject = scan["subject"]
        volume = open_volume(phantom / "train" / subject)
        picked = nibabel.load(folder / f"{subject}_picked.nii.gz")
        attribution = nibabel.load(folder / f"{subject}_attribution.nii.gz")
        assert picked.shape == attribution.shape == volume.shape[-3:]
        np.testing.assert_allclose(picked.affine, attribution.affine)
        assert np.count_nonzero(np.asanyarray(picked.dataobj)) > 10
        assert np.abs(np.asanyarray(attribution.dataobj)).max() > 0


def test_the_crops_shape_stands_in_the_report(bundle_folder, trained, phantom, tmp_path):
    settings = {**SMALLER, "folds": SMALL["folds"], "head": SMALL["head"], "dataset_dir": str(phantom)}
    run_config(
        "evaluating", ["evaluate", "ridge", "crop_shape"], **settings, ckpt_path=str(trained / "models" / "model.pt"),
        output_dir=str(tmp_path),
    )  # fmt: skip
    baselines = scores(tmp_path / "eval")["test"]["baselines"]
    assert {"ridge on voxels", "crop shape"} <= set(baselines)
    assert all(np.isfinite(baselines[name]["mlll"]) for name in baselines)


def test_other_splits_than_the_checkpoints_are_refused(bundle_folder, trained, phantom, tmp_path):
    """With another seed most test patients would be those that it was trained on."""
    settings = {**SMALLER, "folds": SMALL["folds"], "head": SMALL["head"], "dataset_dir": str(phantom)}
    with pytest.raises((RuntimeError, ValueError)) as raised:
        run_config(
            "evaluating", "evaluate", **settings, ckpt_path=str(trained / "models" / "model.pt"), seed=1,
            output_dir=str(tmp_path),
        )  # fmt: skip
    words = f"{raised.value} {raised.value.__cause__}"
    assert "groups of the test split, which would be counted as held out" in words
    assert "other patients with the same names, set `same_cohort` to false" in words
    assert not (tmp_path / "eval").exists()
    run_config(
        "evaluating", "evaluate", **settings, ckpt_path=str(trained / "models" / "model.pt"), seed=1,
        output_dir=str(tmp_path), same_cohort=False,
    )  # fmt: skip
    assert np.isfinite(scores(tmp_path / "eval")["test"]["mlll"])


def test_ct_in_a_table_is_read_as_hounsfield_units(bundle_folder):
    files = [f"configs/{name}.json" for name in ("train", "table", "ct")]
    parser = ConfigParser(ConfigParser.load_config_files(files))
    parser.resolve_macro_and_relative_ids()
    train = ConfigParser.load_config_file("configs/train.json")
    assert parser["intensity"] == train["intensity"]
    assert parser["padding_value"] == train["padding_value"] == -1000
    assert parser["cohort"]["_target_"].endswith("TableCohort")


def test_a_run_does_not_go_on_with_other_splits(bundle_folder, trained, phantom, tmp_path):
    """Resumed as another fold it would predict patients that it was trained on, and call them held out."""
    shutil.copytree(trained / "models", tmp_path / "models")
    settings = {**SMALL, "dataset_dir": str(phantom), "output_dir": str(tmp_path), "resume": True, "max_epochs": 2}
    with pytest.raises((RuntimeError, ValueError)) as raised:
        run_config("training", "train", **settings, fold=1)
    assert "they are not the" in f"{raised.value} {raised.value.__cause__}"
    with pytest.raises((RuntimeError, ValueError)) as raised:
        run_config("training", "train", **{**settings, "resume": False}, validation_fraction=0.0)
    assert "the validation split is empty" in f"{raised.value} {raised.value.__cause__}"
