"""Tensor dropout: whole components of a tensor decomposition are left out at random."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn


class TensorDropout(nn.Module):
    """Dropout on the bonds of a decomposed weight (Kolbeinsson et al., "Tensor Dropout for Robust Learning", 2021).

    Ordinary dropout silences entries of an activation; this one silences a component of the weight's decomposition,
    a slice of a core across one bond, for the whole batch. What is kept is divided by its probability, so the expected
    weight is the weight itself. Without effect in evaluation mode.

    Parameters
    ----------
    p
        Probability that a component is left out, in [0, 1).
    smallest
        Bonds below this size are left whole; the default keeps those of size 1, of jointly pooled modes.
    """

    def __init__(self, p: float = 0.0, smallest: int = 2) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"tensor dropout `p` is a probability below 1, found {p}")
        self.p, self.smallest = p, smallest

    def forward(self, core: Tensor, bonds: Iterable[int]) -> Tensor:
        """``core`` of any shape with slices across each of its dimensions ``bonds`` dropped independently."""
        if not self.training or not self.p:
            return core
        for bond in bonds:
            size = core.shape[bond]
            if size >= self.smallest:
                kept = nn.functional.dropout(core.new_ones(size), self.p)
                core = core * kept.reshape(-1, *[1] * (core.ndim - 1 - bond % core.ndim))
        return core

    def extra_repr(self) -> str:
        """See ``torch.nn.Module``."""
        return f"p={self.p}, smallest={self.smallest}"
