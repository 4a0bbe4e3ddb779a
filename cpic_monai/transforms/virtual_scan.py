"""A scan as the network sees it, without its voxels: a file, a composed affine, and pointwise intensity steps."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cpic_monai.transforms.intensity import Pointwise, apply_chain, fit_chain
from cpic_monai.transforms.overlap import assemble, cut, distinct, whole_view_pays
from cpic_monai.transforms.resampler import (
    cube_offsets,
    gather_cubes,
    interpolate_cubes,
    is_grid_aligned,
    outside,
)
from cpic_monai.transforms.statistic import sample_values
from cpic_monai.volumes import BlockCache, CachedVolume, SplineVolume, Volume, check_same_grid, pooled_volume


class VirtualScan:
    """A resampled, rescaled view of one scan of which only patches are ever made.

    Parameters
    ----------
    volumes
        One volume a channel, all of one shape and affine.
    to_source
        (4, 4) float64: voxel of this view to voxel of the volumes. Default: the identity.
    shape
        Extents of this view. Default: the volumes'.
    order
        Interpolation: 0 nearest, 1 linear, 3 cubic B-spline. Where the view's voxels fall on the scan's own (flips,
        transposed axes, crops, pads) values are gathered, not interpolated.
    antialias
        True: where this view's voxels are larger than the scan's, they are means over their boxes, as at a context
        scale, not values interpolated at their centres (which see one scan voxel in many, and its noise).
    padding_value
        Raw value (before intensity) outside the view and outside the scan's outermost voxel faces: -1024 for CT.
    intensity
        A pointwise callable or several, run on patches in turn; see :mod:`cpic_monai.transforms.intensity`. Statistics
        come from the source volume and so do not change with augmentation.
    subject
        Named in messages.
    cache
        Where blocks are held, for volumes that are not CachedVolumes yet.

    Attributes
    ----------
    shape, affine, channels
        Extents; (4, 4) voxel of this view to RAS+ mm; number of channels.

    Raises
    ------
    ValueError
        If volumes differ in shape or affine, the order is unknown, or ``to_source`` cannot be inverted.
    """

    def __init__(
        self,
        volumes: Volume | Sequence[Volume],
        to_source: np.ndarray | None = None,
        shape: Sequence[int] | None = None,
        order: int = 1,
        padding_value: float = 0.0,
        intensity: Callable | Sequence[Any] | None = None,
        subject: str = "",
        cache: BlockCache | None = None,
        antialias: bool = False,
    ) -> None:
        several = list(volumes) if isinstance(volumes, Sequence) else [volumes]
        self.subject = subject or str(several[0].path or "scan")
        if order not in (0, 1, 3):
            raise ValueError(f"{self.subject}: interpolation order is {order!r}; choose 0, 1 or 3.")
        self.volumes = tuple(v if isinstance(v, CachedVolume) else CachedVolume(v, cache) for v in several)
        check_same_grid(self.volumes, self.subject)
        self.to_source = np.eye(4) if to_source is None else np.array(to_source, dtype=np.float64)
        if self.to_source.shape != (4, 4) or abs(np.linalg.det(self.to_source)) < 1e-12:
            raise ValueError(f"{self.subject}: composed affine {self.to_source.tolist()} is no invertible 4x4 matrix.")
        wanted = self.volumes[0].shape if shape is None else shape
        i, j, k = (int(n) for n in wanted)
        self.shape = (i, j, k)
        self.order = order
        self.antialias = antialias
        self.padding_value = float(padding_value)
        self.intensity: tuple[Any, ...] = tuple(
            () if intensity is None else intensity if isinstance(intensity, Sequence) else (intensity,)
        )
        self._fitted: list[Pointwise] | None = None
        self.grid_aligned = is_grid_aligned(self.to_source)

    @property
    def affine(self) -> np.ndarray:
        """(4, 4) float64, voxel of this view to RAS+ mm."""
        return self.volumes[0].affine @ self.to_source

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.volumes)

    @property
    def bytes_read(self) -> int:
        """Bytes of scan values gathered so far, all channels."""
        return sum(v.bytes_read for v in self.volumes)

    def patches(self, voxels: Tensor | np.ndarray, size: int, scales: Sequence[int] = (1,)) -> Tensor:
        """Cubes centred on voxels of this view.

        At scale s > 1 a cube's voxels lie s apart and hold means over s**3 boxes of this view: the scan's mean-pooled
        level nearest in size (of a store's pyramid, or made only where it is looked at) is interpolated linearly at the
        boxes' centres.
        For odd s and boxes that coincide with the level's, that mean is exact.

        Parameters
        ----------
        voxels
            (N, 3) int64; they may lie outside, where all is padding.
        size
            Voxels along a cube's edge, odd.
        scales
            Context scales.

        Returns
        -------
        torch.Tensor
            (N, C * len(scales), size, size, size) float32; all channels of the first scale come first.

        Raises
        ------
        ValueError
            If ``size`` is even, a scale is below 1, or ``voxels`` has another shape.
        """
        centres = np.asarray(voxels)
        if centres.ndim != 2 or centres.shape[1] != 3 or centres.dtype.kind not in "iu":
            raise ValueError(
                f"{self.subject}: voxels must be (N, 3) integers, found {centres.dtype} of shape {centres.shape}."
            )
        if size < 1 or size % 2 == 0:
            raise ValueError(f"{self.subject}: patch_size is {size}; a patch is centred on a voxel, so it must be odd.")
        if not scales or min(scales) < 1 or any(int(s) != s for s in scales):
            raise ValueError(f"{self.subject}: scales are {tuple(scales)}; each must be a whole number, 1 or more.")
        steps = self._pointwise()
        once, where = distinct(centres.astype(np.int64))
        parts = [apply_chain(steps, torch.from_numpy(self._cubes(once, size, int(s)))) for s in scales]
        patches = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return patches if where is None else patches[torch.from_numpy(where)]

    def whole(self) -> Tensor:
        """All voxels of this view, (C, *shape) float32."""
        return apply_chain(self._pointwise(), torch.from_numpy(self._whole(1))[None])[0]

    def _whole(self, scale: int) -> np.ndarray:
        return assemble(lambda centres, tile: self._raw(centres, tile, scale, 1), self.shape)

    def _cubes(self, centres: np.ndarray, size: int, scale: int) -> np.ndarray:
        """:meth:`_raw` of cubes whose voxels lie ``scale`` apart, by way of the whole view where that is less work."""
        inside = (centres >= 0).all(axis=1) & (centres < np.array(self.shape)).all(axis=1)
        gathered = scale == 1 and self.grid_aligned
        if gathered or not whole_view_pays(self.shape, int(inside.sum()), size):
            return self._raw(centres, size, scale, scale)
        values = np.empty((len(centres), self.channels, size, size, size), np.float32)
        values[inside] = cut(self._whole(scale), centres[inside], size, scale, self.padding_value)
        values[~inside] = self._raw(centres[~inside], size, scale, scale)
        return values

    def _raw(self, centres: np.ndarray, size: int, scale: int, step: int) -> np.ndarray:
        """Cubes of means over ``scale``, ``step`` apart, in raw units: (N, C, size, size, size) float32, padded."""
        half = step * (size // 2)
        linear, shift = self.to_source[:3, :3], self.to_source[:3, 3]
        middle, reach = centres @ linear.T + shift, np.abs(linear).sum(axis=1) * half
        ends, source_ends = np.array(self.shape) - 1, np.array(self.volumes[0].shape) - 0.5
        seen = (centres + half >= 0).all(1) & (centres - half <= ends).all(1)
        seen &= (middle + reach >= -0.5).all(1) & (middle - reach <= source_ends).all(1)
        whole = (centres - half >= 0).all(1) & (centres + half <= ends).all(1)
        whole &= (middle - reach >= -0.5).all(1) & (middle + reach <= source_ends).all(1)
        values = np.full((len(centres), self.channels, size, size, size), self.padding_value, np.float32)
        rows = np.flatnonzero(seen)
        if not len(rows):
            return values
        for channel in range(self.channels):
            values[rows, channel] = self._read(channel, centres[rows], size, scale, step)
        edge = np.flatnonzero(seen & ~whole)
        if len(edge):
            hidden = self._hidden(centres[edge], size, step)[:, None]
            values[edge] = np.where(hidden, np.float32(self.padding_value), values[edge])
        return values

    def _hidden(self, centres: np.ndarray, size: int, step: int) -> np.ndarray:
        """True where a cube's voxels lie outside this view or outside the source, (N, size, size, size)."""
        line = (np.arange(size) - size // 2) * step
        along = centres[:, :, None] + line
        seen = (along >= 0) & (along < np.array(self.shape)[:, None])
        hidden = ~(seen[:, 0, :, None, None] & seen[:, 1, None, :, None] & seen[:, 2, None, None, :])
        linear, shift = self.to_source[:3, :3], self.to_source[:3, 3]
        corners = np.array(list(product(*((0, n - 1) for n in self.shape))))
        if outside(corners @ linear.T + shift, self.volumes[0].shape).any():  # else no voxel of the view is beyond
            places = (centres[:, None] + cube_offsets(size) * step) @ linear.T + shift
            hidden |= outside(places, self.volumes[0].shape).reshape(hidden.shape)
        return hidden

    def _read(self, channel: int, centres: np.ndarray, size: int, scale: int, step: int) -> np.ndarray:
        volume = self.volumes[channel]
        if scale == 1 and self.grid_aligned:
            return gather_cubes(volume, self.to_source, centres, size)
        factors = self._pooling(scale) if scale > 1 or self.antialias else np.ones(3, np.int64)
        if (factors == 1).all():
            order = self.order if scale == 1 else 1
            source = CachedVolume(SplineVolume(volume), volume.cache) if order == 3 else volume
            return interpolate_cubes(source, self.to_source, centres, size, step, order)
        level = pooled_volume(volume, factors.tolist())
        # Voxel y of the level is centred on source position f*y + (f-1)/2.
        to_level = np.diag([*(1 / factors), 1.0])
        to_level[:3, 3] = -(factors - 1) / 2 / factors
        return interpolate_cubes(level, to_level @ self.to_source, centres, size, step, 1)

    def _pooling(self, scale: int) -> np.ndarray:
        """Source voxels that a box of ``scale`` voxels of this view spans along each source axis.

        The view's own voxel is rounded to a power of two source voxels, so that a random zoom of a few per cent finds
        the level that is already there.
        """
        span = np.linalg.norm(self.to_source[:3, :3], axis=1)
        rounded = 2.0 ** np.round(np.log2(np.maximum(span, 1e-6)))
        return np.clip(np.floor(scale * rounded + 0.5), 1, self.volumes[0].shape).astype(np.int64)

    def box(self, start: Sequence[int], stop: Sequence[int]) -> Tensor:
        """Values of a half-open box of this view, (C, *(stop - start)) float32: a slice to look at, for instance."""
        axes = [np.arange(int(a), int(b)) for a, b in zip(start, stop, strict=True)]
        voxels = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        return self.patches(voxels, 1).reshape(-1, self.channels).T.reshape(self.channels, *(len(a) for a in axes))

    def _pointwise(self) -> list[Pointwise]:
        if self._fitted is None:
            self._fitted = fit_chain(self.intensity, self.sample)
        return self._fitted

    def sample(self, n: int = 4096) -> np.ndarray:
        """(C, n) float32 raw values at random voxels of the source volumes: the same ones each time, kept."""
        return np.stack([sample_values(v, n) for v in self.volumes])

    def statistic(self, n: int = 4096, foreground: float | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation a channel, (C,) float64 each, over ``n`` sampled raw values.

        Deterministic for a scan, and independent of this view's affine. With ``foreground`` only values above it
        count; a channel that has none gives nan.
        """
        rows = [r if foreground is None else r[r > foreground] for r in self.sample(n).astype(np.float64)]
        mean = np.array([r.mean() if len(r) else np.nan for r in rows])
        return mean, np.array([r.std() if len(r) else np.nan for r in rows])

    def foreground_voxels(
        self,
        n: int,
        generator: torch.Generator | np.random.Generator | int | None = None,
        threshold: float = 0.0,
        on_empty: Literal["uniform", "error"] = "uniform",
        rounds: int = 16,
    ) -> Tensor:
        """Random voxels whose value, after intensity, exceeds ``threshold`` in any channel; found by trial.

        Parameters
        ----------
        n
            How many.
        generator
            Source of randomness, or a seed.
        on_empty
            Where nothing is found after ``rounds`` rounds of 4 n trials: uniform voxels with a warning, or an error.
            Where some are found, they are repeated.

        Returns
        -------
        torch.Tensor
            (n, 3) int64.

        Raises
        ------
        ValueError
            If nothing is found and ``on_empty`` is "error".
        """
        random = _numpy_generator(generator)
        found: list[np.ndarray] = []
        for _ in range(rounds):
            tried = random.integers(0, self.shape, (max(4 * n, 16), 3))
            bright = (self.patches(tried, 1).flatten(1) > threshold).any(dim=1).numpy()
            found.append(tried[bright])
            if sum(map(len, found)) >= n:
                break
        voxels = np.concatenate(found)
        if not len(voxels):
            tries = rounds * max(4 * n, 16)
            message = (
                f"subject {self.subject}: no voxel above threshold = {threshold:g} among {tries} random ones of shape "
                f"{self.shape}; check the intensity window, or lower the threshold."
            )
            if on_empty == "error":
                raise ValueError(message)
            warnings.warn(f"{message} Voxels are drawn anywhere.", RuntimeWarning, stacklevel=2)
            voxels = random.integers(0, self.shape, (n, 3))
        return torch.from_numpy(np.resize(voxels, (n, 3)).astype(np.int64))

    def __repr__(self) -> str:
        kind = "gathered" if self.grid_aligned else f"order {self.order}"
        return f"VirtualScan({self.subject}, channels={self.channels}, shape={self.shape}, {kind})"


def _numpy_generator(generator: torch.Generator | np.random.Generator | int | None) -> np.random.Generator:
    if isinstance(generator, torch.Generator):
        return np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
    return np.random.default_rng(generator)
