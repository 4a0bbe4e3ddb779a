"""A small phantom cohort and one training on it, shared by the tests of the bundle's configs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
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


@pytest.fixture(scope="session")
def brats(tmp_path_factory) -> Path:
    """Twelve scans of four sequences in BraTS's layout; the last patient is alive.

    `table.csv` names the t1 scans, two of them a patient.
    """
    folder = tmp_path_factory.mktemp("cohort") / "brats"
    generator = np.random.default_rng(0)
    rows = []
    for i in range(12):
        name = f"BraTS20_Training_{i:03d}"
        (folder / name).mkdir(parents=True)
        for sequence in ("t1", "t1ce", "t2", "flair"):
            image = generator.normal(100, 10, (20, 20, 16)).astype(np.float32)
            image[6:14, 6:14, 4:12] += 20 * i
            nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), folder / name / f"{name}_{sequence}.nii.gz")
        rows.append((name, 50.0 + i, "ALIVE (361 days later)" if i == 11 else 200 + 60 * i, "GTR"))
    columns = ["Brats20ID", "Age", "Survival_days", "Extent_of_Resection"]
    table = pd.DataFrame(rows, columns=columns)
    table.to_csv(folder / "survival_info.csv", index=False)
    scans = [f"{name}/{name}_t1.nii.gz" for name in table["Brats20ID"]]
    patients = [f"P{k // 2}" for k in range(12)]
    pd.DataFrame({"image": scans, "patient": patients, "age": table["Age"]}).to_csv(folder / "table.csv", index=False)
    return folder


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
