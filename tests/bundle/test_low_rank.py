"""Low-rank regularisation and rank-adaptive bonds by config."""

from __future__ import annotations

import json

import mlflow
import numpy as np
import pytest
import torch

from tests.bundle.conftest import SMALL, run_config


def test_low_rank_training_logs_its_curve_and_tolerance_masks_pivots(bundle_folder, phantom, tmp_path):
    low_rank = {"low_rank_weight": 0.5, "training_draws": 2, "tolerance": 0.8, "log_model": False}
    run_config("training", "train", dataset_dir=str(phantom), output_dir=str(tmp_path), **SMALL, **low_rank)
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert np.isfinite(metrics["test"]["mlll"])
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlruns.db'}")
    (found,) = client.search_runs(client.get_experiment_by_name("cpic").experiment_id)
    (point,) = client.get_metric_history(found.info.run_id, "held_out_error")
    assert 0 < point.value < 10
    assert found.data.metrics["train_loss"] > 0.5 * point.value * 0.5, "the term is part of the loss"
    alive = torch.load(tmp_path / "models" / "model.pt", weights_only=True)["model"]["indices.alive"]
    assert alive.shape[0] == 3, "prediction has draws of its own"
    assert not alive[:, 3:].all(), "bonds where rank pivots were chosen"


def test_what_the_term_needs_is_said_by_its_keys(bundle_folder, phantom, tmp_path):
    common = {**SMALL, "dataset_dir": str(phantom), "output_dir": str(tmp_path), "low_rank_weight": 0.5}
    with pytest.raises(Exception, match=r"Failed|evaluate|low_rank") as failed:
        run_config("training", "train", **common)
    causes, error = [], failed.value
    while error is not None:
        causes.append(str(error))
        error = error.__cause__ or error.__context__
    assert any("`training_draws` of at least 2, found 1" in cause for cause in causes), causes
    assert not (tmp_path / "models").exists(), "nothing was trained"
