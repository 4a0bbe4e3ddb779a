"""Where the network takes a voxel's cube from: a dense image or lazily read scans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class LazyScan(Protocol):
    """What the network asks of a scan that is not in memory (:class:`cpic_monai.transforms.VirtualScan`)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis."""
        ...

    def patches(self, voxels: Tensor, size: int, scales: Sequence[int] = (1,)) -> Tensor:
        """Cubes float32 ``(N, C, size, size, size)`` centred on voxels ``(N, 3)``."""
        ...

    def foreground_voxels(self, n: int, generator: torch.Generator | None = None, threshold: float = 0.0) -> Tensor:
        """``n`` random voxels above ``threshold``, int64 ``(n, 3)``."""
        ...


class PatchSource(Protocol):
    """A batch of scans that can be looked at anywhere."""

    batch: int

    def __getitem__(self, scan: int) -> PatchSource:
        """One scan of the batch, as a batch of one."""
        ...

    def patches(self, voxels: Tensor) -> Tensor:
        """Cubes ``(B, M, C, p, p, p)`` at voxels int64 ``(M, 3)`` or ``(B, M, 3)``."""
        ...

    def foreground(self, count: int, generator: torch.Generator, threshold: float = 0.0) -> Tensor:
        """Seed voxels int64 ``(B, count, 3)``, of an intensity above ``threshold``."""
        ...


class DenseSource:
    """A dense image tensor ``(B, C, D, H, W)``; outside of it everything is zero, the background.

    Raises
    ------
    ValueError
        If it has another number of axes, or other ``scales`` than 1 are wanted, of which it holds none.
    """

    def __init__(self, image: Tensor, patch_size: int, scales: Sequence[int] = (1,)) -> None:
        if image.ndim == 6:
            raise ValueError("sampled patches hold the model's own voxels only: give a dense image or lazy scans here")
        if image.ndim != 5:
            raise ValueError(f"image has shape {tuple(image.shape)}; expected (B, C, D, H, W) or (B, N, C, p, p, p)")
        if tuple(scales) != (1,):
            raise ValueError(
                f"a dense image can be read at scale 1 alone, this network has `scales` {[*scales]}: give lazy "
                "scans (cpic_monai.transforms.VirtualScan) or patches sampled at these scales"
            )
        self.image, self.patch_size = image, patch_size
        self.batch = image.shape[0]

    def __getitem__(self, scan: int) -> DenseSource:
        """See :class:`PatchSource`."""
        return DenseSource(self.image[scan : scan + 1], self.patch_size)

    def patches(self, voxels: Tensor) -> Tensor:
        """See :class:`PatchSource`."""
        batch, channels, *shape = self.image.shape
        reach = self.patch_size // 2
        offset = torch.arange(-reach, reach + 1, device=self.image.device)
        voxels = voxels.to(self.image.device)
        flat = voxels.new_zeros((*voxels.shape[:-1], 1, 1, 1))
        known = torch.ones_like(flat, dtype=torch.bool)
        for axis, size in enumerate(shape):
            view = [1, 1, 1]
            view[axis] = -1
            place = voxels[..., axis, None, None, None] + offset.view(view)
            known = known & (place >= 0) & (place < size)
            flat = flat * size + place.clamp(0, size - 1)
        values = self.image.flatten(2)
        if voxels.ndim == 2:
            cubes = values[:, :, flat] * known
        else:
            cubes = values.gather(2, flat.flatten(1)[:, None].expand(-1, channels, -1))
            cubes = cubes.reshape(batch, channels, *flat.shape[1:]) * known[:, None]
        return cubes.transpose(1, 2)

    def foreground(self, count: int, generator: torch.Generator, threshold: float = 0.0) -> Tensor:
        """Seeds where any channel is above ``threshold``; anywhere in an empty scan."""
        seeds = []
        for scan in self.image.detach().cpu():
            full = (scan > threshold).any(0).nonzero()
            if not len(full):
                full = torch.ones(scan.shape[1:]).nonzero()
            seeds.append(full[torch.randint(len(full), (count,), generator=generator)])
        return torch.stack(seeds)


class LazySource:
    """Scans that are read patch by patch from their files."""

    def __init__(self, scans: Sequence[LazyScan], patch_size: int, scales: Sequence[int] = (1,)) -> None:
        self.scans, self.patch_size, self.scales = list(scans), patch_size, tuple(scales)
        self.batch = len(self.scans)

    def __getitem__(self, scan: int) -> LazySource:
        """See :class:`PatchSource`."""
        return LazySource(self.scans[scan : scan + 1], self.patch_size, self.scales)

    def patches(self, voxels: Tensor) -> Tensor:
        """See :class:`PatchSource`."""
        each = voxels.cpu().expand(self.batch, -1, -1) if voxels.ndim == 2 else voxels.cpu()
        return torch.stack([s.patches(v, self.patch_size, self.scales) for s, v in zip(self.scans, each, strict=True)])

    def foreground(self, count: int, generator: torch.Generator, threshold: float = 0.0) -> Tensor:
        """See :class:`PatchSource`."""
        return torch.stack([torch.as_tensor(s.foreground_voxels(count, generator, threshold)) for s in self.scans])
