"""First right index sets from seed voxels, drawn where there is something to see."""

from __future__ import annotations

import torch
from torch import Tensor

from cpic_monai.cross.index_sets import empty_code, extend_right, right_sizes
from cpic_monai.grid import IndexGrid


def suffix_sets(
    grid: IndexGrid,
    seeds: Tensor,
    rank: int,
    channels: int,
    generator: torch.Generator | None = None,
    pivots: int | None = None,
) -> tuple[Tensor, ...]:
    """Nested right index sets whose suffixes are those of the seed voxels, filled up at random.

    Parameters
    ----------
    seeds
        Voxel codes int64 ``(G, S)``, ``S >= 1``; suffixes are taken in their order of coming.
    rank, channels, pivots
        Largest set, channels of the encoding and largest left set (``rank`` by default); they fix the sets' sizes
        (:func:`right_sizes`).

    Returns
    -------
    tuple of Tensor
        int64 ``(G, s_k)`` at each inner bond.
    """
    if seeds.ndim != 2 or seeds.shape[1] < 1:
        raise ValueError(f"seed voxels must have shape (G, S >= 1), found {tuple(seeds.shape)}")
    seeds = seeds.cpu()
    groups = seeds.shape[0]
    digits = grid.digits(seeds)  # (G, S, K)
    right = empty_code(groups)
    wanted = torch.zeros_like(seeds)
    out: list[Tensor] = []
    sizes = right_sizes(grid, rank, channels, pivots)
    for k in range(len(grid.modes) - 1, 0, -1):
        mode = grid.modes[k]
        wanted = wanted + mode[digits[..., k]]
        candidates = extend_right(mode, right)  # (G, n*s)
        # Rank of each candidate: the first seed that has this suffix, else a random place behind all seeds.
        match = candidates[:, :, None] == wanted[:, None, :]
        first = torch.where(match.any(-1), match.to(torch.int64).argmax(-1), seeds.shape[1]).to(torch.float64)
        # One draw for all scans, so that a scan's sets do not depend on who else is in the batch.
        first = first + torch.rand((1, candidates.shape[1]), generator=generator, dtype=torch.float64) * 0.5
        right = candidates.gather(1, first.argsort(1)[:, : sizes[k - 1]])
        out.append(right)
    return tuple(reversed(out))
