"""Overlays of the baselines: the networks they make, on a scan of the phantom, and a run of the dense one."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.bundle.utils import merge_kv

from cpic_monai.cross.random_voxels import PickedValues, RandomVoxels
from cpic_monai.cross.tangent import TangentIndexSets
from cpic_monai.networks import ScanResNet, TensorRegressionLayer
from tests.bundle.conftest import SMALL, run_config

SETTINGS = {key: SMALL[key] for key in ("spatial_shape", "rank", "channels", "folds", "tabular_columns")}


def merged(overlays: list[str], **settings: Any) -> ConfigParser:
    """The training config with overlays and settings, as MONAI's bundle command merges them."""
    parser = ConfigParser()
    for name in ("train", *overlays):
        for key, value in ConfigParser.load_config_file(f"configs/{name}.json").items():
            merge_kv(parser, key, value)
    parser.update(settings)
    return parser


@pytest.mark.parametrize(
    ("overlays", "settings"),
    [
        (["resnet"], {"depth": 10}),
        (["resnet", "resnet_trl"], {"depth": 10, "trl_rank": [8, 1, 1, 1, 4]}),
        (["random_voxels"], {}),
        (["picked_values"], {}),
        (["tangent"], {}),
    ],
    ids=["resnet", "resnet_trl", "random_voxels", "picked_values", "tangent"],
)
def test_overlays_make_networks_for_the_preprocessed_scan(bundle_folder, phantom, overlays, settings):
    config = merged(overlays, dataset_dir=str(phantom), **SETTINGS, **settings)
    network = config.get_parsed_content("network_def").eval()
    item = config.get_parsed_content("preprocessing")(config.get_parsed_content("splits").train[0])
    with torch.no_grad():
        out = network(item["image"][None], item["tabular"][:1])
    assert out.shape == (1, 3)
    if overlays[0] == "resnet":
        assert isinstance(network, ScanResNet)
        assert item["image"].shape == (1, *SMALL["spatial_shape"])
        assert any(isinstance(m, TensorRegressionLayer) for m in network.modules()) == (len(overlays) == 2)
    else:
        assert (
            type(network.indices)
            is {"random_voxels": RandomVoxels, "picked_values": PickedValues, "tangent": TangentIndexSets}[overlays[0]]
        )


def test_small_cohort_trains_and_is_evaluated_again(bundle_folder, phantom, tmp_path):
    """The overlay serves evaluation as it does training; without it the checkpoint is refused by the key's name."""
    over = ("rank", "passes", "max_epochs")  # the overlay's own, but for what makes the run short
    small = {**{key: value for key, value in SMALL.items() if key not in over}, "dataset_dir": str(phantom)}
    small["output_dir"] = str(tmp_path)
    run_config("training", ["train", "small_cohort"], passes=1, max_epochs=1, **small)
    first = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert torch.load(tmp_path / "models" / "model.pt")["model"]["encoder_record.facts"].tolist() == [5, 1]
    again = small | {"eval_dir": str(tmp_path / "again")}
    run_config("evaluating", ["evaluate", "small_cohort"], **again)
    second = json.loads((tmp_path / "again" / "metrics.json").read_text())
    for split, entry in first.items():
        assert second[split]["mlll"] == pytest.approx(entry["mlll"], rel=1e-6)
    with pytest.raises(RuntimeError) as refused:
        run_config("evaluating", ["evaluate", "small_cohort"], **again, pooling=1)
    assert "config key `pooling` is 1, the checkpoint's was 5" in str(refused.value.__cause__)


@pytest.mark.slow
def test_resnet_trains_and_is_evaluated_again(bundle_folder, phantom, tmp_path):
    """Selection and basis handlers leave it alone; the checkpoint gives training's numbers again."""
    small = {**SMALL, "depth": 10, "batch_size": 4, "dataset_dir": str(phantom), "output_dir": str(tmp_path)}
    run_config("training", ["train", "resnet", "resnet_trl"], trl_rank=[8, 1, 1, 1, 4], **small)
    first = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert "tabular" in first["test"]["baselines"]
    again = {key: value for key, value in small.items() if key not in ("passes", "max_epochs")}
    again |= {"trl_rank": [8, 1, 1, 1, 4], "eval_dir": str(tmp_path / "again")}
    run_config("evaluating", ["evaluate", "resnet", "resnet_trl"], **again)
    second = json.loads((tmp_path / "again" / "metrics.json").read_text())
    for split, entry in first.items():
        assert second[split]["mlll"] == pytest.approx(entry["mlll"], rel=1e-6)
