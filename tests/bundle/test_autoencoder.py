"""The autoencoder's overlay: it learns to reconstruct held-out scans, and rank limits what it can."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import image as pictures
from monai.bundle import ConfigParser

from tests.bundle.conftest import run_config

SHORT = {
    "spatial_shape": [1, 32, 32], "rank": 8, "ranks": [1, 8], "channels": 6, "folds": 4, "validation_fraction": 0.2,
    "batch_size": 8, "passes": 4, "max_epochs": 3, "select_scans": 8, "patches": 24, "held_out_patches": 32,
    "learning_rate": 0.01, "decoder_features": [16],
}  # fmt: skip


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """Slices with two bright discs on a diagonal, of varying place and size: one rank is too little for them."""
    folder = tmp_path_factory.mktemp("discs")
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32]
    for k in range(24):
        slice_ = np.full((32, 32), 0.2)
        for middle in (9, 22):
            at = middle + generator.uniform(-3, 3, 2)
            slice_[(x - at[0]) ** 2 + (y - at[1]) ** 2 < generator.uniform(4, 7) ** 2] = 1.0
        nibabel.save(nibabel.Nifti1Image(slice_[None].astype(np.float32), np.eye(4)), folder / f"{k}.nii")
    frame = pd.DataFrame({"image": [f"{k}.nii" for k in range(24)], "number": np.arange(24.0)})
    frame.to_csv(folder / "discs.csv", index=False)
    return folder / "discs.csv"


def test_reconstructs_held_out_images_better_than_their_mean(bundle_folder, table, tmp_path) -> None:
    settings = {**SHORT, "cohort_csv": str(table), "target_column": "number", "output_dir": str(tmp_path)}
    # As they are: percentiles would take the grey for background.
    settings["intensity"] = [{"_target_": "cpic_monai.transforms.ScaleRange", "a_min": 0.0, "a_max": 1.0}]
    # Superior is the axis of one voxel.
    settings["loading#1#axcodes"] = "RAS"
    run_config("training", ["train", "table", "autoencoder"], **settings)
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert set(metrics) == {"validation", "test"}
    for split in metrics.values():
        assert split["psnr_rank_8"] > split["psnr_constant"] + 1
        assert split["psnr_rank_1"] < split["psnr_rank_8"] - 0.5, "one rank cannot hold two discs on a diagonal"
        assert split["mse_rank_8"] < split["mse_rank_1"]
    picture = pictures.imread(tmp_path / "eval" / "reconstruction.png")
    assert picture.std() > 0.1
    state = torch.load(tmp_path / "models" / "model.pt", weights_only=True)["model"]
    assert {name.split(".")[0] for name in state} == {"encoder", "indices", "decoder", "grid_record", "encoder_record"}
    assert "trained_on" in torch.load(tmp_path / "models" / "last.pt", weights_only=True)
    runs = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlruns.db")
    run = runs.search_runs([e.experiment_id for e in runs.search_experiments()])[0]
    assert len(runs.get_metric_history(run.info.run_id, "psnr")) == SHORT["max_epochs"]
    assert run.data.metrics["test_psnr_rank_8"] == pytest.approx(metrics["test"]["psnr_rank_8"])


def test_volumes_are_reconstructed_too(bundle_folder, tmp_path) -> None:
    """Patches of three axes, at two ranks; and PSNR is above that of the constant prediction after a few steps."""
    generator = np.random.default_rng(0)
    z, y, x = np.mgrid[:8, :16, :16]
    for k in range(12):
        middle = generator.uniform((3, 5, 5), (5, 11, 11))
        ball = (z - middle[0]) ** 2 + (y - middle[1]) ** 2 + (x - middle[2]) ** 2 < 12
        nibabel.save(nibabel.Nifti1Image(np.where(ball, 1.0, 0.2).astype(np.float32), np.eye(4)), tmp_path / f"{k}.nii")
    frame = pd.DataFrame({"image": [f"{k}.nii" for k in range(12)], "number": np.arange(12.0)})
    frame.to_csv(tmp_path / "balls.csv", index=False)
    settings = {**SHORT, "spatial_shape": [8, 16, 16], "ranks": [2, 8], "batch_size": 4, "loading#1#axcodes": "RAS"}
    settings["intensity"] = [{"_target_": "cpic_monai.transforms.ScaleRange", "a_min": 0.0, "a_max": 1.0}]
    settings |= {"cohort_csv": str(tmp_path / "balls.csv"), "target_column": "number", "output_dir": str(tmp_path)}
    run_config("training", ["train", "table", "autoencoder"], **settings)
    test = json.loads((tmp_path / "eval" / "metrics.json").read_text())["test"]
    assert test["psnr_rank_8"] > test["psnr_constant"]
    assert np.isfinite(test["psnr_rank_2"])


def test_the_handlers_left_out_are_those_of_the_head(bundle_folder) -> None:
    """The overlay names the trainer's handlers by their place in train.json."""
    parser = ConfigParser(ConfigParser.load_config_file("configs/train.json"))
    overlay = json.loads(Path("configs/autoencoder.json").read_text())["train#trainer#train_handlers"]
    handlers = parser["train#handlers"]
    named = [h["_target_"].rsplit(".", 1)[-1] for n, h in enumerate(handlers) if f"handlers#{n}," in overlay]
    assert named == [
        "SeedEpoch", "SelectIndexSets", "ProgressBar", "SelectIndexSets", "ValidationHandler", "StatsHandler",
        "LastCheckpoint", "TrainingTimeLimit", "StopWithoutBetter",
    ]  # fmt: skip


def test_ranks_beyond_the_encoding_s_are_refused(bundle_folder, phantom, tmp_path) -> None:
    settings = {**SHORT, "spatial_shape": [16, 48, 48], "dataset_dir": str(phantom), "output_dir": str(tmp_path)}
    with pytest.raises(RuntimeError, match="ReconstructionEvaluation") as caught:
        run_config("training", ["train", "autoencoder"], **settings | {"ranks": [30], "train_ranks": []})
    assert "`ranks` is [30]" in str(caught.value.__cause__)
