"""The multi_gpu overlays with two gloo processes: training, evaluation, and a process that is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import mlflow
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from monai.bundle import run

from cpic_monai.cohorts import write_phantom_cohort
from tests.distributed.launch import ROOT, free_port, torchrun

SMALL: dict[str, Any] = {
    "spatial_shape": [16, 32, 32],
    "rank": 3,
    "channels": 4,
    "draws": 1,
    "batch_size": 6,
    "passes": 1,
    "folds": 4,
    "head": {"steps": 20},
    "max_shift": 0,  # each process augments by random numbers of its own
}
TRAIN, EVALUATE = ("train", "multi_gpu_train"), ("evaluate", "multi_gpu_evaluate")
SECONDS = 400


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifteen patients: neither split is dealt evenly to two processes."""
    folder = tmp_path_factory.mktemp("cohort") / "phantom"
    return write_phantom_cohort(folder, subjects=15, shape=(16, 32, 32), seed=3, workers=1, progress=False)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process as the only one of its group, in the bundle's folder, without tracking settings of the machine."""
    monkeypatch.chdir(ROOT)
    for name in [n for n in os.environ if n.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    group = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    for key, value in group.items():
        monkeypatch.setenv(key, str(value))
    yield
    if dist.is_initialized():
        idist.finalize()  # the group, and Ignite's knowledge of it


@pytest.fixture(scope="module")
def two(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a training in two processes."""
    output = tmp_path_factory.mktemp("two")
    options = {**SMALL, "max_epochs": 2, "dataset_dir": cohort, "output_dir": output}
    process = torchrun("training", TRAIN, output / "log", **options)
    assert process.wait(SECONDS) == 0, (output / "log").read_text()[-8000:]
    return output


def run_here(run_id: str, configs: tuple[str, ...], **overrides: Any) -> None:
    files = [f"configs/{name}.json" for name in configs]
    run(run_id=run_id, config_file=files, logging_file="configs/logging.conf", **overrides)


def scores(output: Path) -> dict[str, dict[str, Any]]:
    return json.loads((output / "eval" / "metrics.json").read_text())


def test_overlays_address_the_handlers_they_mean() -> None:
    train, overlay = (json.loads((ROOT / "configs" / f"{name}.json").read_text()) for name in TRAIN)
    targets = {
        "train#handlers#0#generator": "cpic_monai.handlers.SeedEpoch",
        "train#handlers#2#_disabled_": "ignite.handlers.ProgressBar",
        "train#handlers#6#_disabled_": "StatsHandler",
        "validate#handlers#0#_disabled_": "StatsHandler",
        "validate#handlers#1#_disabled_": "MLFlowHandler",
    }
    assert set(targets) == {key for key in overlay if "#handlers#" in key}
    for key, target in targets.items():
        part, _, number, _ = key.split("#")
        assert train[part]["handlers"][int(number)]["_target_"] == target, key


def test_two_processes_learn_what_one_learns(two: Path, cohort: Path, alone: None, tmp_path: Path) -> None:
    run_here("training", TRAIN, **SMALL, max_epochs=2, dataset_dir=str(cohort), output_dir=str(tmp_path))
    many, one = (torch.load(folder / "models" / "last.pt", weights_only=True) for folder in (two, tmp_path))
    assert many["epoch"] == one["epoch"] == 2
    assert many["iteration"] == one["iteration"] == 2, "batch_size is that of all processes together"
    for key, value in one["model"].items():
        if key.startswith(("encoder.", "indices.")):
            torch.testing.assert_close(
                many["model"][key], value, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}"
            )
    for key, value in one["ridge"].items():
        torch.testing.assert_close(many["ridge"][key], value, rtol=1e-5, atol=1e-6)
    for split, entry in scores(tmp_path).items():
        assert scores(two)[split]["mlll"] == pytest.approx(entry["mlll"], abs=0.02), split


def test_the_first_process_alone_tracks_and_reports(two: Path, cohort: Path) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{two / 'mlruns.db'}")
    (found,) = client.search_runs(client.get_experiment_by_name("cpic").experiment_id)
    assert found.info.status == "FINISHED"
    assert len(client.get_metric_history(found.info.run_id, "mlll")) == 2
    assert found.data.metrics["test_mlll"] == pytest.approx(scores(two)["test"]["mlll"])
    truth = pd.read_csv(cohort / "train.csv")
    predictions = pd.read_csv(two / "eval" / "predictions.csv")
    assert len(predictions) == len(truth.drop_duplicates(["Patient", "Weeks"]))
    assert (two / "eval" / "report.html").exists()
    said = (two / "log").read_text()
    assert said.count("wrote the report") == 1
    assert re.search(r"rank 1 of 2: process \d+ on .*, cpu, gloo", said)


def test_evaluation_in_two_processes_is_that_of_one(two: Path, cohort: Path, alone: None, tmp_path: Path) -> None:
    options = {key: value for key, value in SMALL.items() if key not in ("passes", "max_shift")}
    options |= {"dataset_dir": str(cohort), "ckpt_path": str(two / "models" / "model.pt")}
    process = torchrun("evaluating", EVALUATE, tmp_path / "log", **options, output_dir=tmp_path / "many")
    run_here("evaluating", EVALUATE[:1], **options, output_dir=str(tmp_path / "one"))
    assert process.wait(SECONDS) == 0, (tmp_path / "log").read_text()[-8000:]
    many, one = scores(tmp_path / "many"), scores(tmp_path / "one")
    assert list(many) == list(one) == ["train", "validation", "test"]
    for split, entry in one.items():
        for name in ("mlll", "rmse", "mae", "r2", "pinball", "coverage", "n"):
            assert many[split][name] == pytest.approx(entry[name], rel=1e-6), (split, name)
    tables = [pd.read_csv(tmp_path / n / "eval" / "predictions.csv") for n in ("many", "one")]
    pd.testing.assert_frame_equal(*tables, rtol=1e-5)


def test_a_killed_process_ends_the_run_and_leaves_a_checkpoint(cohort: Path, alone: None, tmp_path: Path) -> None:
    log, last = tmp_path / "log", tmp_path / "models" / "last.pt"
    options = {**SMALL, "dataset_dir": str(cohort), "output_dir": str(tmp_path)}
    process = torchrun("training", TRAIN, log, **options, max_epochs=500)
    until = time.monotonic() + SECONDS
    while not last.exists():
        assert process.poll() is None, log.read_text()[-8000:]
        assert time.monotonic() < until, "no checkpoint of the first epoch"
        time.sleep(0.1)
    victim = re.search(r"rank 1 of 2: process (\d+) on", log.read_text())
    assert victim
    os.kill(int(victim[1]), signal.SIGKILL)
    assert process.wait(60) != 0
    said = log.read_text()
    assert f"Signal 9 (SIGKILL) received by PID {victim[1]}" in said
    assert re.search(r"rank\s*: 1 \(local_rank: 1\)", said)
    epoch = torch.load(last, weights_only=True)["epoch"]
    assert 1 <= epoch < 500
    run_here("training", TRAIN[:1], **options, max_epochs=epoch + 1, resume=True)
    assert torch.load(last, weights_only=True)["epoch"] == epoch + 1
    assert set(scores(tmp_path)) == {"train", "validation", "test"}
