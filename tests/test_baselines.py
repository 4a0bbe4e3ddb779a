"""Ridge on voxels, or on the crop's shape: exact where the outcome is linear in them, honest where it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from cpic_monai.baselines import CropShapeRidge, VoxelRidge
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


def test_learns_from_the_splits_named() -> None:
    """From two splits as from one that holds both; the rows predicted stay those of the splits."""
    first, second, test = cohort(12, 0, noise=0.5), cohort(8, 3, noise=0.5), cohort(5, 1)
    both = VoxelRidge({"train": first + second, "test": test}, view, shape=(2, 3, 3))()
    splits = {"train": first, "validation": second, "test": test}
    apart = VoxelRidge(splits, view, shape=(2, 3, 3), learns_from=("train", "validation"))()
    assert list(apart) == list(splits)
    assert len(apart["validation"]) == 24
    np.testing.assert_allclose(apart["test"]["q0.5"], both["test"]["q0.5"], rtol=1e-6)
    alone = VoxelRidge(splits, view, shape=(2, 3, 3))()
    assert not np.allclose(alone["test"]["q0.5"], both["test"]["q0.5"], rtol=1e-6)


def test_unknown_targets_are_predicted_and_not_learned_from() -> None:
    items = cohort(30, 0)
    items[0]["label"] = torch.full((3, 1), float("nan"))
    frames = VoxelRidge({"train": items}, view, shape=(2, 3, 3))()
    assert frames["train"]["truth"].isna().sum() == 3
    assert frames["train"]["q0.5"].notna().all()


def test_too_few_patients() -> None:
    with pytest.raises(ValueError, match="at least 3 patients"):
        VoxelRidge({"train": cohort(2, 0)}, view)()
    items = cohort(4, 0)
    for item in items[:2]:
        item["label"] = torch.full((3, 1), float("nan"))
    with pytest.raises(ValueError, match=r"at least 3 patients with an outcome .* found 2 \(of 4\) in train"):
        VoxelRidge({"train": items}, view)()


def crops(folder: Path, scans: int, seed: int, outcome: Any) -> list[dict[str, Any]]:
    """Empty crops of random size, one visit each; `outcome` of (right, anterior, superior) counts is the label."""
    rng = np.random.default_rng(seed)
    items = []
    for n in range(scans):
        counts = rng.integers(4, 12, 3)
        # Every other file has its axes in another order, and one of them backwards.
        order, signs = ([0, 1, 2], [1, 1, 1]) if n % 2 else ([2, 0, 1], [1, -1, 1])
        affine = np.eye(4)
        affine[:3, :3] = np.eye(3)[:, order] * signs
        path = folder / f"crop{seed}_{n}.nii"
        nibabel.save(nibabel.Nifti1Image(np.zeros(counts[order], np.uint8), affine), path)
        item = {name: torch.full((1, 1), value) for name, value in (("offset", 0.0), ("scale", 1.0), ("visit", 0.0))}
        label = torch.tensor([[float(outcome(*counts))]])
        image = [str(path), str(path)] if n % 3 == 0 else str(path)
        item |= {"subject": path.stem, "image": image, "tabular": torch.zeros(1, 0), "label": label}
        items.append(item)
    return items


@pytest.mark.parametrize(
    "outcome",
    [lambda r, a, s: 2 * r - a + 0.5 * s, lambda r, a, s: 0.01 * r * a * s],
    ids=["sides", "product"],
)
def test_what_the_size_of_a_crop_tells_is_found_whatever_the_order_of_its_axes(tmp_path, outcome) -> None:
    splits = {"train": crops(tmp_path, 40, 0, outcome), "test": crops(tmp_path, 20, 1, outcome)}
    frames = CropShapeRidge(splits)()
    assert summarise(frames["test"])["r2"] > 0.99
    numbers = CropShapeRidge(splits).numbers(splits["test"])
    label = torch.cat([item["label"] for item in splits["test"]]).numpy()[:, 0]
    np.testing.assert_allclose([outcome(*row[:3]) for row in numbers], label, rtol=1e-6)
    np.testing.assert_allclose(numbers[:, 3], numbers[:, :3].prod(1))


def test_crops_of_one_size_tell_nothing(tmp_path) -> None:
    items = crops(tmp_path, 12, 0, lambda *counts: 0.0)
    for n, item in enumerate(items):
        item |= {"image": items[1]["image"], "label": torch.tensor([[float(n)]])}
    test = CropShapeRidge({"train": items, "test": items})()["test"]
    np.testing.assert_allclose(test["q0.5"], test["q0.5"][0])
