"""A small phantom cohort and one training on it, shared by the tests of the bundle's configs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import run

from cpic_monai.cohorts import write_phantom_cohort

ROOT = Path(__file__).resolve().parents[2]
SMALL: dict[str, Any] = {
    "spatial_shape": [16, 48, 48],
    "rank": 4,
    "channels": 6,
    "batch_size": 6,
    "passes": 1,
    "max_epochs": 1,
    "head": {"steps": 30},
    "folds": 4,
    "tabular_columns": ["Weeks"],
}


@pytest.fixture(scope="session")
def phantom(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cohort") / "phantom"
    return write_phantom_cohort(folder, subjects=16, shape=(16, 48, 48), seed=3, workers=1, progress=False)


@pytest.fixture
def bundle_folder(monkeypatch) -> Path:
    """Run from the folder that holds ``configs/``, without tracking settings of the machine."""
    monkeypatch.chdir(ROOT)
    for name in [n for n in os.environ if n.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    return ROOT


def run_config(run_id: str, config: str | list[str], **overrides: Any) -> None:
    files = [f"configs/{name}.json" for name in ([config] if isinstance(config, str) else config)]
    run(run_id=run_id, config_file=files, logging_file="configs/logging.conf", **overrides)


@pytest.fixture(scope="session")
def trained(phantom, tmp_path_factory) -> Path:
    """Output folder of one small training run."""
    output = tmp_path_factory.mktemp("trained")
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        run_config("training", "train", dataset_dir=str(phantom), output_dir=str(output), **SMALL)
    finally:
        os.chdir(before)
    return output
