"""The whole view gives the same patches as reading them one by one."""

import numpy as np
import pytest
import torch

from cpic_monai.transforms import VirtualScan
from cpic_monai.transforms.overlap import cut, distinct, whole_view_pays
from cpic_monai.volumes import ArrayVolume

SHAPE = (20, 17, 22)


def turned(angle: float = 0.3, zoom: float = 1.3) -> np.ndarray:
    """A view turned about the third axis, coarser than the scan, that reaches out of it."""
    affine = np.diag([zoom, zoom, zoom, 1.0])
    c, s = np.cos(angle), np.sin(angle)
    affine[:2, :2] = zoom * np.array([[c, -s], [s, c]])
    affine[:3, 3] = (2.31, -3.12, 0.73)
    return affine


def scan(order: int = 1) -> VirtualScan:
    values = np.random.default_rng(0).normal(size=(30, 28, 33)).astype(np.float32)
    volume = ArrayVolume(values, np.eye(4))
    return VirtualScan(volume, turned(), SHAPE, order, padding_value=-7.0, intensity=lambda patches: 2 * patches + 1)


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("scale", [1, 2, 3])
def test_patches_by_way_of_the_whole_view_are_the_same(order: int, scale: int) -> None:
    everywhere = torch.cartesian_prod(*(torch.arange(-3, n + 2) for n in SHAPE))
    chosen = everywhere[torch.randperm(len(everywhere), generator=torch.Generator().manual_seed(0))[:400]]
    assert whole_view_pays(SHAPE, 200, 5)
    together = scan(order).patches(chosen, 5, (scale,))
    assert not whole_view_pays(SHAPE, 7, 5)
    alone = torch.cat([scan(order).patches(part, 5, (scale,)) for part in chosen.split(7)])
    # A value on the face of the outermost voxels may fall on either side of a rounding, an interpolated one may not.
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=2e-5)
    padded = together == 2 * -7.0 + 1
    assert padded.any()
    assert not padded.all()


def test_whole_view_is_what_single_voxels_are() -> None:
    view = scan()
    every = torch.cartesian_prod(*(torch.arange(n) for n in SHAPE))
    alone = torch.cat([view.patches(part, 1) for part in every.split(1000)])
    torch.testing.assert_close(view.whole(), alone.reshape(1, *SHAPE), rtol=1e-5, atol=2e-5)


def test_whole_view_pays_only_where_patches_repeat_it() -> None:
    assert whole_view_pays((16, 16, 16), 1000, 3)
    assert not whole_view_pays((16, 16, 16), 100, 3)
    assert not whole_view_pays((8192, 8192, 8192), 10**9, 129)  # never that much memory


def test_cut_fills_outside() -> None:
    whole = np.arange(27, dtype=np.float32).reshape(1, 3, 3, 3)
    cube = cut(whole, np.array([[0, 0, 0], [1, 1, 1]]), 3, 2, -1.0)
    assert cube.shape == (2, 1, 3, 3, 3)
    assert cube[0, 0, 1:, 1:, 1:].flatten().tolist() == [0, 2, 6, 8, 18, 20, 24, 26]
    assert int((cube[0] == -1).sum()) == 27 - 8
    assert cube[1, 0, 1, 1, 1] == 13
    assert int((cube[1] == -1).sum()) == 26


def test_distinct_names_the_row_of_each_voxel() -> None:
    voxels = np.array([[1, 2, 3], [0, 0, 0], [1, 2, 3]])
    once, where = distinct(voxels)
    assert where is not None
    assert len(once) == 2
    np.testing.assert_array_equal(once[where], voxels)
    assert distinct(once)[1] is None


def test_antialiased_view_is_made_of_means() -> None:
    values = np.random.default_rng(1).normal(size=(24, 24, 24)).astype(np.float32)
    coarse = np.diag([4.0, 4.0, 4.0, 1.0])
    coarse[:3, 3] = 1.5  # a voxel of the view is centred on the middle of four of the scan's
    means = values.reshape(6, 4, 6, 4, 6, 4).mean((1, 3, 5))
    volume = ArrayVolume(values, np.eye(4))
    smooth = VirtualScan(volume, coarse, (6, 6, 6), antialias=True)
    np.testing.assert_allclose(smooth.whole()[0].numpy(), means, atol=1e-5)
    inner = torch.tensor([[2, 3, 3], [3, 2, 3]])
    np.testing.assert_allclose(smooth.patches(inner, 3)[0, 0].numpy(), means[1:4, 2:5, 2:5], atol=1e-5)
    rough = VirtualScan(volume, coarse, (6, 6, 6))
    assert not np.allclose(rough.whole()[0].numpy(), means, atol=0.1)
    same = VirtualScan(volume, np.eye(4), (24, 24, 24), antialias=True)
    np.testing.assert_array_equal(same.whole()[0].numpy(), values)
