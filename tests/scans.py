"""Small scans and small networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cpic_monai.networks import CPICNet
from cpic_monai.transforms import VirtualScan
from cpic_monai.volumes import ArrayVolume

SHAPE = (4, 8, 8)


def small_network(**settings: Any) -> CPICNet:
    """In evaluation mode: patches of 5 voxels, 4 channels, rank 3."""
    given: dict[str, Any] = {"channels": 4, "features": (3,), "rank": 3, **settings}
    return CPICNet(SHAPE, **given).eval()


def lazy(image: Tensor) -> list[VirtualScan]:
    """Each scan of a dense batch ``(B, C, D, H, W)`` as a scan that is read patch by patch."""
    return [VirtualScan([ArrayVolume(channel.clone()) for channel in scan]) for scan in image]


def images(batch: int, channels: int = 1, seed: int = 0) -> Tensor:
    """Noise in the middle of an empty background."""
    image = torch.zeros(batch, channels, *SHAPE)
    generator = torch.Generator().manual_seed(seed)
    image[..., 1:, 2:7, 1:6] = 0.1 + torch.rand((batch, channels, 3, 5, 5), generator=generator)
    return image
