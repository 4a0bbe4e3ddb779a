"""Ridge on voxels: exact where the outcome is linear in the voxels, honest where it is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cpic_monai.baselines import VoxelRidge
from cpic_monai.metrics import summarise
from cpic_monai.transforms import VirtualScan
from cpic_monai.volumes import ArrayVolume

SHAPE = (4, 6, 6)


def cohort(scans: int, seed: int, signal: float = 1.0, noise: float = 0.0) -> list[dict[str, Any]]:
    """Scans whose left half's brightness is the slope of a decline over three visits; the values are in mL."""
    generator = torch.Generator().manual_seed(seed)
    items = []
    for n in range(scans):
        slope = float(torch.randn((), generator=generator))
        image = 0.1 * torch.randn(SHAPE, generator=generator)
        image[..., :3] += signal * slope
        weeks = torch.tensor([[0.0], [1.0], [2.0]])
        label = slope * weeks + noise * torch.randn((3, 1), generator=generator)
        items.append(
            {
                "subject": f"s{seed}_{n}", "group": f"p{n}", "image": image, "tabular": weeks, "label": label,
                "offset": torch.full((3, 1), 3000.0), "scale": torch.full((3, 1), 100.0), "visit": 10 * weeks,
                "strata": {"sex": "f"},
            }
        )  # fmt: skip
    return items


def view(item: dict[str, Any]) -> dict[str, Any]:
    return {**item, "image": VirtualScan(ArrayVolume(item["image"].clone()))}


def ridge(**settings: Any) -> VoxelRidge:
    train = cohort(30, 0, **settings)
    return VoxelRidge({"train": train, "validation": [], "test": cohort(20, 1, **settings)}, view, shape=(2, 3, 3))


def test_a_slope_that_the_voxels_show_is_found() -> None:
    frames = ridge()()
    assert list(frames) == ["train", "test"]
    test = frames["test"]
    assert len(test) == 60
    assert list(test["subject"][:4]) == ["s1_0", "s1_0", "s1_0", "s1_1"]
    assert test["offset"].eq(3000).all()
    assert summarise(test)["r2"] > 0.98
    np.testing.assert_allclose(test["truth"][:3], 3000 + 100 * cohort(20, 1)[0]["label"][:, 0].numpy(), rtol=1e-6)


def test_quantiles_are_those_of_patients_left_out() -> None:
    """Noise of one standard deviation (100 mL): four tenths of the truths lie outside of the outer quantiles."""
    test = ridge(noise=1.0)()["test"]
    width = (test["q0.8"] - test["q0.2"]) / 2
    assert np.allclose(width, width[0])
    assert 60 < width[0] < 130, "0.84 standard deviations of the noise and some error of the slope"
    below, above = (test["truth"] < test["q0.2"]).mean(), (test["truth"] > test["q0.8"]).mean()
    assert 0.05 < below < 0.4
    assert 0.05 < above < 0.4


def test_voxels_that_tell_nothing_are_shrunk_away() -> None:
    test = ridge(signal=0.0, noise=0.3)()["test"]
    assert -0.4 < summarise(test)["r2"] < 0.2


def test_unknown_targets_are_predicted_and_not_learned_from() -> None:
    items = cohort(30, 0)
    items[0]["label"] = torch.full((3, 1), float("nan"))
    frames = VoxelRidge({"train": items}, view, shape=(2, 3, 3))()
    assert frames["train"]["truth"].isna().sum() == 3
    assert frames["train"]["q0.5"].notna().all()


def test_too_few_patients() -> None:
    with pytest.raises(ValueError, match="at least 3 patients"):
        VoxelRidge({"train": cohort(2, 0)}, view)()
