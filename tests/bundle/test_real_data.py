"""Real scans through the bundle: whole chest CT in OSIC's layout, brain MRI through the table overlay."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.bundle.conftest import run_config

DATA = os.environ.get("CPIC_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="CPIC_DATA is not set: no real scans to test on")
SMALL = {"rank": 4, "channels": 6, "passes": 1, "max_epochs": 1, "head": {"steps": 30}}


@needs_data
def test_osic_layout_of_real_ct_series(bundle_folder, tmp_path):
    """Two real series of 512 x 512 slices, each standing for three patients of invented spirometry."""
    series = sorted(p for p in (Path(str(DATA)) / "dicom_lung_ct").iterdir() if p.is_dir())
    cohort, rows = tmp_path / "osic", []
    (cohort / "train").mkdir(parents=True)
    for i in range(8):
        name = f"ID{i:05d}"
        (cohort / "train" / name).symlink_to(series[i % 2].resolve(), target_is_directory=True)
        for week in (0, 10, 30):
            rows.append((name, week, 2800 + 50 * i - week * (3 + i % 2 * 5), 70.0, 60 + i, "Male", "Ex-smoker"))
    columns = ["Patient", "Weeks", "FVC", "Percent", "Age", "Sex", "SmokingStatus"]
    pd.DataFrame(rows, columns=columns).to_csv(cohort / "train.csv", index=False)
    overrides = {**SMALL, "batch_size": 4, "folds": 4, "spatial_shape": [32, 512, 512], "select_scans": 2}
    run_config("training", "train", dataset_dir=str(cohort), output_dir=str(tmp_path / "out"), **overrides)
    metrics = json.loads((tmp_path / "out" / "eval" / "metrics.json").read_text())
    assert sum(entry["n"] for entry in metrics.values()) == 24
    assert np.isfinite(metrics["test"]["mlll"])


@needs_data
def test_ixi_through_the_table_overlay(bundle_folder, tmp_path):
    table = pd.read_csv(Path(str(DATA)) / "ixi_age" / "cohort.csv").head(20)
    table["image"] = [str((Path(str(DATA)) / "ixi_age" / p).resolve()) for p in table["image"]]
    table.to_csv(tmp_path / "cohort.csv", index=False)
    overrides = {**SMALL, "batch_size": 5, "folds": 4, "spatial_shape": [32, 32, 32]}
    run_config(
        "training",
        ["train", "table"],
        cohort_csv=str(tmp_path / "cohort.csv"),
        image_column="image",
        target_column="age_years",
        tabular_columns=["sex"],
        group_column="subject_id",
        subject_column="subject_id",
        unit="years",
        output_dir=str(tmp_path / "out"),
        **overrides,
    )
    metrics = json.loads((tmp_path / "out" / "eval" / "metrics.json").read_text())
    assert sum(entry["n"] for entry in metrics.values()) == 20
    predictions = pd.read_csv(tmp_path / "out" / "eval" / "predictions.csv")
    assert predictions["truth"].between(15, 95).all(), "targets are reported in years"
