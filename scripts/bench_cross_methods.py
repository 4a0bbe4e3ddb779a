"""The cross-approximations that ``bench_cross.py`` compares: this package's and those of three TT packages."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from bench_cross_problems import Problem
from torch import Tensor

from cpic_monai.cross import Ridge
from cpic_monai.cross.bank import CohortIndexSets, ScanIndexSets

TOL = 1e-9


@dataclass
class Found:
    """What a method made of one problem.

    Attributes
    ----------
    error
        Relative Frobenius error, a tensor of the problem each.
    voxels
        Distinct voxels looked at per tensor: evaluations of an encoder.
    requests
        Scalar function values asked for per tensor, repetitions included.
    searched
        Distinct voxels looked at while index sets were chosen beforehand (cohort mode; done once, not in prediction).
    """

    error: Tensor
    voxels: float
    requests: float
    searched: float = 0.0


def ours(problem: Problem, rank: int, seed: int, mode: str, ridge: Ridge, **settings: Any) -> Found:
    """This package's cross-approximation with index sets of each ``scan`` or of the ``cohort``."""
    generator = torch.Generator().manual_seed(seed)
    seeds = problem.seeds(rank, generator)
    seen: list[Tensor] = []
    if mode == "scan":
        own = ScanIndexSets(problem.grid, rank, problem.channels, ridge, **settings)
        (train,), _ = own.sweep(problem.evaluator(seen), seeds, TOL)
        codes = torch.cat([c.expand(problem.batch, -1) for c in seen], dim=1)
        voxels = float(np.mean([len(c.unique()) for c in codes]))
        return Found(problem.error(train.full()), voxels, float(codes.shape[1] * problem.channels))
    sets = CohortIndexSets(problem.grid, rank, problem.channels, ridge=ridge, **settings)
    drawn = seeds.flatten()[torch.randint(seeds.numel(), (rank,), generator=generator)]
    sets.select(problem.evaluator(seen), [drawn], generator, TOL)
    (train,) = sets.decompose(problem.flat[:, sets.codes()])
    count = len(sets.codes())
    searched = len(torch.cat(seen, dim=1).unique())
    return Found(problem.error(train.full()), count, float(count * problem.channels), searched)


class Entries:
    """One tensor of a problem as the scalar function of small modes that the packages ask for, and what they asked.

    The channels are further modes, of size 2 where their number is a power of two (the paper's way).
    """

    def __init__(self, problem: Problem, index: int) -> None:
        channels = problem.channels
        binary = channels > 1 and channels & (channels - 1) == 0
        self.spatial = len(problem.grid.modes)
        self.tail = (2,) * (channels.bit_length() - 1) if binary else (channels,) if channels > 1 else ()
        self.sizes = (*problem.grid.mode_sizes, *self.tail)
        self.problem, self.values = problem, problem.flat[index]
        self.codes: list[Tensor] = []
        self.index = index

    def __call__(self, digits: Tensor) -> Tensor:
        """Values float64 ``(M,)`` at digits int64 ``(M, modes)``."""
        modes = self.problem.grid.modes
        code = torch.zeros(len(digits), dtype=torch.int64)
        for k, mode in enumerate(modes):
            code = code + mode[digits[:, k]]
        channel = torch.zeros_like(code)
        for n, k in zip(self.tail, range(self.spatial, len(self.sizes)), strict=True):
            channel = channel * n + digits[:, k]
        self.codes.append(code)
        return self.values[code, channel]

    def found(self, full: Tensor) -> Found:
        """The record of an approximation of all entries ``sizes``."""
        shape = (1, *self.problem.grid.mode_sizes, self.problem.channels)
        truth = self.problem.grid.unfold(self.problem.dense[self.index : self.index + 1])
        error = (full.reshape(shape) - truth).norm() / truth.norm()
        codes = torch.cat(self.codes)
        return Found(error[None], len(codes.unique()), len(codes))


def tntorch_cross(entries: Entries, rank: int, sweeps: int, seed: int) -> Tensor:
    """``tntorch.cross``: maxvol, fixed ranks, ``sweeps`` iterations there and back."""
    import tntorch

    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (what the package draws from)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        out = tntorch.cross(
            function=lambda digits: entries(digits.round().long()), function_arg="matrix",
            domain=[torch.arange(n).double() for n in entries.sizes],
            ranks_tt=rank, max_iter=sweeps, eps=0.0, val_size=1, verbose=False,
            suppress_warnings=True,
        )  # fmt: skip
    finally:
        torch.set_default_dtype(before)
    return out.torch()


def teneva_cross(entries: Entries, rank: int, sweeps: int, seed: int) -> Tensor:
    """``teneva.cross``: maxvol, fixed rank, with its cache of values."""
    import teneva

    start = teneva.rand(list(entries.sizes), rank, seed=seed)
    train = teneva.cross(
        lambda index: entries(torch.from_numpy(index)).numpy(), start, nswp=sweeps, dr_min=0, dr_max=0, cache={},
        m_cache_scale=10**9,
    )  # fmt: skip
    return torch.from_numpy(teneva.full(train))


def torchtt_cross(entries: Entries, rank: int, sweeps: int, seed: int) -> Tensor:
    """``torchtt.interpolate.dmrg_cross``: two cores at a time by SVD, rounded to the rank."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torchtt
    torch.manual_seed(seed)
    train = torchtt.interpolate.dmrg_cross(entries, list(entries.sizes), eps=1e-12, nswp=sweeps, rmax=rank)
    return train.round(1e-14, rmax=rank).full()


PACKAGES: dict[str, Callable[[Entries, int, int, int], Tensor]] = {
    "tntorch": tntorch_cross,
    "teneva": teneva_cross,
    "torchTT": torchtt_cross,
}


def package(name: str, problem: Problem, rank: int, sweeps: int, seed: int) -> Found:
    """One of :data:`PACKAGES` on every tensor of a problem, one after the other."""
    parts = []
    for index in range(problem.batch):
        entries = Entries(problem, index)
        if prod(entries.sizes) != problem.flat[index].numel():
            raise ValueError(f"{problem.name}: modes {entries.sizes} do not name every voxel and channel")
        with contextlib.redirect_stdout(io.StringIO()):
            full = PACKAGES[name](entries, rank, sweeps, seed)
        parts.append(entries.found(full.double()))
    return Found(
        torch.cat([p.error for p in parts]),
        float(np.mean([p.voxels for p in parts])),
        float(np.mean([p.requests for p in parts])),
    )


def package_settings(
    name: str, problem: Problem, ranks: Sequence[int], sweeps: Sequence[int], seed: int
) -> list[tuple[int, int, Found]]:
    """What a package makes of a problem at every rank and number of sweeps: ``(rank, sweeps, found)``.

    Settings at which the package fails on a singular cross matrix are left out, with a warning that says so.
    """
    out = []
    for count in sweeps:
        for rank in ranks:
            try:
                out.append((rank, count, package(name, problem, rank, count, seed)))
            except (RuntimeError, np.linalg.LinAlgError) as error:
                warnings.warn(f"{name}, {problem.name}, rank {rank}, {count} sweeps: {error}", stacklevel=2)
    return out


def best_within(settings: list[tuple[int, int, Found]], budget: float) -> tuple[int, int, Found] | None:
    """The setting of the smallest error that looks at no more voxels than ``budget``; ``None`` where all look at more.

    The smallest error is picked with the truth known, in the package's favour.
    """
    within = [s for s in settings if s[2].voxels <= budget]
    return min(within, key=lambda s: float(s[2].error.mean())) if within else None
