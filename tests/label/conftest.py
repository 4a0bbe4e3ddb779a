"""A bundle folder of a small fitted network, with the configs of the checkout, and scans for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from cpic_monai.cohorts import Cohort, Column, ItemEncoder, TargetScaler
from cpic_monai.label import LabelBundle

ROOT = Path(__file__).resolve().parents[2]
SCANS = 6
# Left to right, posterior to anterior; thick slices; off the origin.
AFFINE = np.array([[-2.0, 0, 0, 20], [0, 1.5, 0, -10], [0, 0, 4, 5], [0, 0, 0, 1]])


def outcome(number: int) -> dict[str, Any]:
    """What a client would submit for a scan: the brighter it is, the faster the decline."""
    visits = [0.0, 26.0, 52.0]
    target = [2800.0 - number * 4 * v for v in visits]
    return {
        "target": target,
        "visits": visits,
        "tabular": {"Age": 60 + number, "Sex": "Male" if number % 2 else "Female"},
    }


@pytest.fixture
def scans(tmp_path) -> list[Path]:
    """NIfTI files in HU, 12 x 10 x 8 voxels."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "studies"
    folder.mkdir()
    for number in range(SCANS):
        image = np.full((12, 10, 8), -1000.0)
        image[2:10, 2:8, 1:7] = generator.normal(-800 + 100 * number, 30, (8, 6, 6))
        nibabel.save(nibabel.Nifti1Image(image.astype(np.int16), AFFINE), folder / f"scan{number}.nii.gz")
    return sorted(folder.iterdir())


@pytest.fixture
def bundle_root(tmp_path, scans, monkeypatch) -> Path:
    """`configs/inference.json`, written out, and `models/model.pt` of a network fitted to the scans."""
    root = tmp_path / "bundle"
    (root / "configs").mkdir(parents=True)
    monkeypatch.chdir(ROOT)
    parser = ConfigParser()
    parser.read_config("configs/inference.json")
    parser.resolve_macro_and_relative_ids()
    config = dict(parser.config) | {"spatial_shape": [8, 12, 12], "rank": 3, "channels": 4, "draws": 2, "batch_size": 4}
    (root / "configs" / "inference.json").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    columns = (Column("Weeks", "scaled", 52.0), Column("Age"), Column("Sex", "categorical"))
    items = [
        {
            "subject": f"scan{n}", "group": f"scan{n}", "image": str(path), "strata": {},
            "covariates": {"Weeks": outcome(n)["visits"], **{k: [v] * 3 for k, v in outcome(n)["tabular"].items()}},
            "target": np.array(outcome(n)["target"]), "baseline": 2800.0, "visit": np.array(outcome(n)["visits"]),
        }
        for n, path in enumerate(scans)
    ]  # fmt: skip
    cohort = Cohort(items, columns, "FVC", "mL", "week", TargetScaler("relative_to_first"))
    encoder = ItemEncoder().fit(cohort, items)
    (root / "models").mkdir()
    parser = ConfigParser(config)
    parser["item_encoder"] = encoder
    network = parser.get_parsed_content("network_def").eval()
    viewed = [parser.get_parsed_content("viewing")(item)["image"] for item in encoder.apply(items)]
    with torch.no_grad():
        network.basis.fit(network.decompose(viewed))
    state = {"model": network.state_dict(), "encoder": encoder.state_dict()}
    torch.save(state, root / "models" / "model.pt")
    return root


@pytest.fixture
def bundle(bundle_root) -> LabelBundle:
    return LabelBundle(bundle_root)
