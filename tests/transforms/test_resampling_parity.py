"""Views of every kind of affine and order against eager resampling: MONAI's and scipy's."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import (
    Affined,
    Compose,
    LoadImaged,
    Orientationd,
    Resized,
    Spacingd,
)
from scipy.ndimage import map_coordinates

from cpic_monai.transforms import LazyCompose, LoadVolumed, VirtualScan, VirtualScand
from cpic_monai.volumes import ArrayVolume, BlockCache, CachedVolume, open_volume, write_store

MODES = {0: "nearest", 1: "bilinear", 3: 3}
SHEAR = np.array([[1, 0.31, 0, -2.2137], [0, 0.9, -0.17, 1.4071], [0.08, 0, 1.2, 0.3193], [0, 0, 0, 1]])
TURNED = np.array([[0, 0.43, 0, 1.3171], [0, 0, -1.9, 23.0413], [0.7, 0, 0, -0.4219], [0, 0, 0, 1]])
COARSE = np.diag([3.7, 2.5, 1.0, 1.0])
FINE = np.diag([1 / 16, 1 / 8, 1 / 32, 1])


@pytest.fixture
def array():
    return np.random.default_rng(3).normal(size=(26, 31, 22)).astype(np.float32) * 100


@pytest.fixture
def path(tmp_path):
    axes = np.meshgrid(*(np.linspace(0, 4, n) for n in (44, 40, 30)), indexing="ij")
    smooth = (1000 * np.sin(axes[0]) * np.cos(axes[1]) + 300 * np.sin(2 * axes[2])).astype(np.float32)
    nib.save(nib.Nifti1Image(smooth, np.diag([-0.8, 1.1, 2.5, 1.0])), tmp_path / "scan.nii")
    return str(tmp_path / "scan.nii")


def reference(array, affine, shape, order):
    """The view's voxels by scipy, and which of them lie within the source."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    places = grid @ affine[:3, :3].T + affine[:3, 3]
    inside = ((places >= -0.5) & (places <= np.array(array.shape) - 0.5)).all(-1)
    nearest = np.clip(places, 0, np.array(array.shape) - 1.0)
    if order == 0:
        return array[tuple(np.moveaxis(np.floor(nearest + 0.5).astype(int), -1, 0))], inside
    return map_coordinates(array.astype(float), np.moveaxis(nearest, -1, 0), order=order, mode="mirror"), inside


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("affine", [SHEAR, TURNED, COARSE, FINE], ids=["shear", "turned", "coarse", "fine"])
def test_orders_and_affines_are_scipys(array, affine, order):
    shape = (24, 20, 18)
    dense, inside = reference(array, affine, shape, order)
    scan = VirtualScan(ArrayVolume(array), affine, shape, order, padding_value=-5)
    voxels = np.random.default_rng(0).integers(2, np.array(shape) - 2, (80, 3))
    wanted = np.where(inside, dense, -5)
    for voxel, patch in zip(voxels, scan.patches(voxels, 5)[:, 0], strict=True):
        part = tuple(slice(v - 2, v + 3) for v in voxel)
        np.testing.assert_allclose(patch, wanted[part], atol=2e-3 if order else 0)


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("affine", [TURNED, COARSE, FINE, np.diag([1.0, 0.9, 2.0, 1.0])])
def test_one_axis_after_the_other_is_all_at_once(array, affine, order, monkeypatch):
    scan = VirtualScan(ArrayVolume(array), affine, (30, 40, 50), order)
    voxels = np.random.default_rng(1).integers(-5, 50, (150, 3))
    found = scan.patches(voxels, 7)
    monkeypatch.setattr("cpic_monai.transforms.resampler.source_axes", lambda *_: None)
    np.testing.assert_allclose(found, scan.patches(voxels, 7), atol=2e-3 if order else 0)


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize(
    "transform",
    [
        lambda mode: Spacingd("image", (1.7, 0.9, 1.3), mode=mode, padding_mode="mirror" if mode == 3 else "border"),
        lambda mode: Affined(
            "image",
            rotate_params=(0.2, -0.1, 0.3),
            shear_params=(0.1, 0.05, -0.07, 0.12, 0.02, 0.03),
            scale_params=(1.1, 0.9, 1.2),
            mode=mode,
            padding_mode="mirror" if mode == 3 else "border",
        ),
    ],
    ids=["spacing", "rotation and shear"],
)
def test_orders_are_monais_away_from_borders(path, transform, order):
    lazy = LazyCompose([LoadVolumed("image"), transform(MODES[order]), VirtualScand("image", order=order)])
    scan = lazy({"image": path})["image"]
    eager = Compose([LoadImaged("image", ensure_channel_first=True), transform(MODES[order])])
    dense = eager({"image": path})["image"]
    assert scan.shape == tuple(dense.shape[1:])
    assert not scan.grid_aligned
    voxels = np.random.default_rng(0).integers(10, np.array(scan.shape) - 10, (50, 3))
    off = []
    for voxel, patch in zip(voxels, scan.patches(voxels, 5), strict=True):
        part = dense[(slice(None), *(slice(v - 2, v + 3) for v in voxel))].numpy()
        off.append(np.abs(patch.numpy() - part))
    if order == 0:  # half-way between two voxels either one is the nearest
        assert np.mean(np.array(off) > 1e-3) < 0.01
    else:
        assert np.max(off) < 0.5  # of 2,600; MONAI computes places in single precision


def test_synthetic_upsampling_is_a_view(path):
    """The paper's 2x upsampling with cubic splines (Sec. 4.1), without the upsampled scan."""
    chain = [LoadVolumed("image"), Orientationd("image", "RAS", labels=None), Resized("image", (88, 80, 60))]
    scan = LazyCompose([*chain, VirtualScand("image", order=3)])({"image": path})["image"]
    source = nib.load(path).get_fdata()[::-1]
    half = np.diag([0.5, 0.5, 0.5, 1.0])
    half[:3, 3] = -0.25
    dense, inside = reference(source, half, scan.shape, 3)
    assert inside.all()
    voxels = np.random.default_rng(0).integers(4, np.array(scan.shape) - 4, (60, 3))
    patches = scan.patches(voxels, 9)
    for voxel, patch in zip(voxels, patches[:, 0], strict=True):
        np.testing.assert_allclose(patch, dense[tuple(slice(v - 4, v + 5) for v in voxel)], atol=0.02)
    assert patches.nbytes + scan.volumes[0].cache.nbytes < dense.nbytes


@pytest.mark.parametrize("affine", [np.diag([0.5, 0.5, 0.5, 1.0]), SHEAR], ids=["twice", "shear"])
def test_coefficients_chunk_by_chunk_are_those_of_the_whole(tmp_path, affine, monkeypatch):
    monkeypatch.setattr("cpic_monai.volumes.spline.SplineVolume.BLOCK", (16, 16, 16))
    array = np.random.default_rng(0).integers(0, 1000, (50, 45, 40)).astype(np.int16)
    write_store(ArrayVolume(array), tmp_path / "x.zarr", patch_size=3, levels=1)
    volume = CachedVolume(open_volume(tmp_path / "x.zarr"), BlockCache(1 << 24))
    dense, inside = reference(array, affine, (40, 40, 40), 3)
    scan = VirtualScan(volume, affine, (40, 40, 40), order=3)
    found = scan.box((0, 0, 0), (40, 40, 40))[0]
    np.testing.assert_allclose(found, np.where(inside, dense, 0), atol=5e-3)
    assert torch.isfinite(found).all()
