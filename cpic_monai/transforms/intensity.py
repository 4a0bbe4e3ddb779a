"""Pointwise intensity transforms, deferred: they run on sampled patches and never on a whole scan.

Any callable from tensor to tensor that treats each value for itself may be used beside these, MONAI's array transforms
(``ScaleIntensityRange``, ``AdjustContrast`` with a fixed gamma, ...) among them. What needs statistics of the scan has
``samples`` (how many voxels to look at) and ``fitted(sample)``, which returns the pointwise callable for one scan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

Pointwise = Callable[[Tensor], Any]


@runtime_checkable
class SampledIntensity(Protocol):
    """An intensity transform whose parameters come from a sample of the scan's own values."""

    samples: int

    def fitted(self, sample: np.ndarray) -> Pointwise:
        """Return the pointwise transform for a scan of which ``sample`` (C, n) float32 is known."""


class LinearRange:
    """``values * gain + bias``, one pair a channel, then clipped to ``[low, high]`` where given.

    Parameters
    ----------
    gain, bias
        (C,) float32, or scalars for all channels.
    """

    def __init__(
        self, gain: Tensor | float, bias: Tensor | float, low: float | None = None, high: float | None = None
    ) -> None:
        self.gain, self.bias, self.low, self.high = torch.as_tensor(gain), torch.as_tensor(bias), low, high

    def __call__(self, patches: Tensor) -> Tensor:
        """Map (N, C, ...) float32 values."""
        view = (-1, *[1] * (patches.ndim - 2))
        values = patches * self.gain.reshape(view) + self.bias.reshape(view)
        return values if self.low is None and self.high is None else values.clamp(self.low, self.high)


class ScaleRange(LinearRange):
    """Map ``[a_min, a_max]`` to ``[b_min, b_max]``.

    Parameters
    ----------
    clip
        Clip what lies outside to ``[b_min, b_max]``.

    Raises
    ------
    ValueError
        If ``a_min`` and ``a_max`` are not increasing.
    """

    def __init__(self, a_min: float, a_max: float, b_min: float = 0.0, b_max: float = 1.0, clip: bool = False) -> None:
        if not a_max > a_min:
            raise ValueError(f"intensity range a_min = {a_min}, a_max = {a_max}: a_max must be the larger.")
        gain = (b_max - b_min) / (a_max - a_min)
        low, high = (min(b_min, b_max), max(b_min, b_max)) if clip else (None, None)
        super().__init__(gain, b_min - a_min * gain, low, high)


class HUWindow(ScaleRange):
    """Hounsfield units ``[low, high]`` to [0, 1], clipped. The default spans lung: air to dense tissue."""

    def __init__(self, low: float = -1000.0, high: float = 400.0) -> None:
        super().__init__(low, high, 0.0, 1.0, clip=True)


def _row_values(sample: np.ndarray, threshold: float | None) -> list[np.ndarray]:
    rows = []
    for row in np.asarray(sample, dtype=np.float64):
        chosen = row[np.isfinite(row)]
        above = chosen if threshold is None else chosen[chosen > threshold]
        # A channel with nothing above the threshold is background throughout: its own values are all there is.
        rows.append(above if len(above) else (chosen if len(chosen) else np.zeros(1)))
    return rows


class ZScoreSampled:
    """Zero mean and unit standard deviation a channel, over ``n`` sampled voxels above ``foreground``.

    Parameters
    ----------
    n
        How many voxels are looked at.
    foreground
        Only values above it count (0 leaves out the air of an MR scan); None counts all.
    """

    def __init__(self, n: int = 4096, foreground: float | None = None) -> None:
        self.samples, self.foreground = int(n), foreground

    def fitted(self, sample: np.ndarray) -> Pointwise:
        """See :class:`SampledIntensity`. A constant channel becomes 0."""
        rows = _row_values(sample, self.foreground)
        mean = np.array([row.mean() for row in rows])
        deviation = np.array([row.std() for row in rows])
        gain = 1 / np.where(deviation > 1e-6 * (np.abs(mean) + 1e-12), deviation, 1.0)
        return LinearRange(torch.tensor(gain).float(), torch.tensor(-mean * gain).float())


class PercentileScaled:
    """Map the ``lower`` to ``upper`` percentile of ``n`` sampled voxels to [0, 1], a channel at a time.

    Parameters
    ----------
    lower, upper
        Percentiles in [0, 100].
    clip
        Clip what lies outside to [0, 1].
    foreground
        Only values above it count; None counts all.

    Raises
    ------
    ValueError
        If the percentiles are not increasing within [0, 100].
    """

    def __init__(
        self,
        lower: float = 0.5,
        upper: float = 99.5,
        n: int = 4096,
        clip: bool = True,
        foreground: float | None = None,
    ) -> None:
        if not 0 <= lower < upper <= 100:
            raise ValueError(f"percentiles lower = {lower}, upper = {upper}: need 0 <= lower < upper <= 100.")
        self.lower, self.upper, self.samples, self.clip, self.foreground = lower, upper, int(n), clip, foreground

    def fitted(self, sample: np.ndarray) -> Pointwise:
        """See :class:`SampledIntensity`. A constant channel becomes 0."""
        rows = _row_values(sample, self.foreground)
        ends = np.array([np.percentile(row, (self.lower, self.upper)) for row in rows])
        width = ends[:, 1] - ends[:, 0]
        gain = 1 / np.where(width > 0, width, 1.0)
        low, high = (0.0, 1.0) if self.clip else (None, None)
        return LinearRange(torch.tensor(gain).float(), torch.tensor(-ends[:, 0] * gain).float(), low, high)


def fit_chain(steps: Sequence[Any], sample: Callable[[int], np.ndarray]) -> list[Pointwise]:
    """Fit each step to the values that the steps before it leave.

    Parameters
    ----------
    steps
        Pointwise callables and :class:`SampledIntensity` objects, in order.
    sample
        Gives (C, n) float32 raw values of the scan for a wanted n.
    """
    fitted: list[Pointwise] = []
    for step in steps:
        if isinstance(step, SampledIntensity):
            seen = torch.from_numpy(np.array(sample(step.samples).T, dtype=np.float32))
            step = step.fitted(apply_chain(fitted, seen).T.numpy())
        fitted.append(step)
    return fitted


def apply_chain(steps: Sequence[Pointwise], values: Tensor) -> Tensor:
    """Run fitted steps on (N, C, ...) values; the result is a plain float32 tensor of the same shape.

    Raises
    ------
    ValueError
        If a step changes the shape: it is not pointwise.
    """
    for step in steps:
        result = torch.as_tensor(step(values)).as_subclass(Tensor).to(torch.float32)
        if result.shape != values.shape:
            raise ValueError(
                f"intensity transform {type(step).__name__} turned patches of shape {tuple(values.shape)} into "
                f"{tuple(result.shape)}; only pointwise transforms can run on patches."
            )
        values = result
    return values
