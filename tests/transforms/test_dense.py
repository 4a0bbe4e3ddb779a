"""All voxels of a lazy scan: the same as looked at one by one, and as MONAI's eager resampling gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cpic_monai.transforms import HUWindow, VirtualScan
from cpic_monai.transforms.dense import DenseScand
from cpic_monai.volumes import ArrayVolume


def scan(shape: tuple[int, int, int], order: int, channels: int = 1) -> VirtualScan:
    """A view that scales, shears and leaves the source on one side."""
    generator = np.random.default_rng(0)
    volumes = [ArrayVolume(torch.from_numpy(generator.uniform(-900, 300, (20, 24, 18)))) for _ in range(channels)]
    to_source = np.array([[1.113, 0.107, 0, -2.03], [0, 1.309, 0, 1.071], [0.053, 0, 0.711, 0.0171], [0, 0, 0, 1]])
    return VirtualScan(volumes, to_source, shape, order, -1000.0, HUWindow())


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("shape", [(17, 15, 31), (4, 30, 9)])
def test_equals_the_box_read_voxel_by_voxel(shape: tuple[int, int, int], order: int) -> None:
    view = scan(shape, order, channels=2)
    found = view.whole()
    assert found.shape == (2, *shape)
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    torch.testing.assert_close(found, view.box((0, 0, 0), shape), rtol=1e-4, atol=1e-4)
    assert float(found.min()) == 0.0, "the view leaves the source, where it is padding"


def test_aligned_views_are_gathered_exactly() -> None:
    values = torch.rand(6, 20, 17)
    found = DenseScand("image")({"image": VirtualScan(ArrayVolume(values.clone())), "subject": "a"})
    assert torch.equal(found["image"], values[None])
    assert found["subject"] == "a"


def test_refuses_what_is_no_scan() -> None:
    with pytest.raises(TypeError, match="put VirtualScand before"):
        DenseScand("image")({"image": torch.zeros(1, 2, 2, 2)})
