"""What cross-approximation has to beat: as many values as it looks at, compared without its interpolation.

:class:`PickedValues` keeps the voxels that cross-approximation picks and drops the interpolation; :class:`RandomVoxels`
drops the choice, too. Both give a scan as a tensor train of one mode, the voxels looked at, so that Gram matrix, basis
and head are those of C-PIC.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cpic_monai.cross.bank import CohortIndexSets
from cpic_monai.cross.host import HostModule
from cpic_monai.cross.sweep import Evaluate
from cpic_monai.grid import IndexGrid
from cpic_monai.tensor_train import TensorTrain


def as_train(values: Tensor) -> TensorTrain:
    """Values ``(B, N, C)`` as a train of one mode, whose inner product is that of the values."""
    return TensorTrain((values[:, None],))


class PickedValues(CohortIndexSets):
    """The cohort's cross indices, and the plain inner product of the encodings there, without interpolation."""

    fixed_count = True  # its trains' modes are the voxels

    @property
    def mode_sizes(self) -> tuple[int, ...]:
        """Modes of the trains: the voxels of one draw."""
        return (self.plans[0].codes.shape[1],)

    def decompose(self, values: Tensor) -> list[TensorTrain]:
        """Values ``(B, N, C)`` at :meth:`codes` to one train a draw."""
        return [as_train(part) for part in self.split(values)]


class RandomVoxels(HostModule):
    """Random foreground voxels, equal in number to those of the cohort's cross indices and shared by all scans.

    Parameters
    ----------
    grid, rank, channels, oversampling
        Of the encoding and of the cohort's index sets; they say how many voxels cross-approximation would look at.
    draws
        Independent draws; predictions average over them.
    seed
        Of the first voxels, anywhere in the scan until :meth:`select` is given foreground.
    """

    picked: Tensor
    by_draw = ("picked",)

    def __init__(
        self, grid: IndexGrid, rank: int, channels: int, draws: int = 1, seed: int = 0, oversampling: float = 1.0
    ) -> None:
        super().__init__()
        if draws < 1 or rank < 1:
            raise ValueError(f"`draws` and `rank` must be at least 1, found {draws} and {rank}")
        self.grid = grid
        wanted = len(CohortIndexSets(grid, rank, channels, oversampling=oversampling).codes())
        self.count = min(wanted, math.prod(grid.cells))
        self.register_buffer("picked", torch.zeros((draws, self.count), dtype=torch.int64))
        none = torch.zeros(0, dtype=torch.int64)
        self._fill([none] * draws, torch.Generator().manual_seed(seed))

    @property
    def draws(self) -> int:
        """Number of draws held."""
        return self.picked.shape[0]

    @property
    def seeds_wanted(self) -> int:
        """Seed voxels that :meth:`select` wants for a draw: some will come twice."""
        return 2 * self.count

    @property
    def mode_sizes(self) -> tuple[int, ...]:
        """Modes of the trains: the voxels of one draw."""
        return (self.count,)

    def codes(self) -> Tensor:
        """All voxels to look at, int64 ``(N,)``: the draws one after the other."""
        return self.picked.flatten()

    def voxels(self, subject: str | None = None) -> Tensor:
        """The same as voxel indices int64 ``(N, 3)``; every subject's are alike."""
        return self.grid.decode(self.codes())

    def decompose(self, values: Tensor) -> list[TensorTrain]:
        """Values ``(B, N, C)`` at :meth:`codes` to one train a draw."""
        if values.shape[1] != self.picked.numel():
            raise ValueError(
                f"{values.shape[1]} values a scan for {self.picked.numel()} voxels: the patches were sampled for other "
                "voxels; sample them again after a re-selection"
            )
        return [as_train(part) for part in values.split(self.count, dim=1)]

    @torch.no_grad()
    def select(
        self,
        evaluate: Evaluate | None,
        seeds: Sequence[Tensor],
        generator: torch.Generator | None = None,
        tol: float = 1e-4,
    ) -> None:
        """Look at the seeds from now on, one draw for each entry of ``seeds``.

        Parameters
        ----------
        evaluate, tol
            Of :meth:`cpic_monai.cross.bank.CohortIndexSets.select`; nothing is evaluated here.
        seeds
            Codes int64 ``(S,)`` of random foreground voxels; ``S`` of :attr:`seeds_wanted` or more. Where too few of
            them are distinct, as in very small scans, voxels from anywhere fill the draw.
        generator
            Draws what fills.
        """
        self._fill(seeds, generator)

    def _fill(self, seeds: Sequence[Tensor], generator: torch.Generator | None) -> None:
        limit = torch.tensor(self.grid.shape)
        draws = []
        for codes in seeds:
            found = _first_of_each(codes.cpu())
            while len(found) < self.count:
                voxels = (torch.rand((self.count, len(limit)), generator=generator) * limit).long()
                found = _first_of_each(torch.cat([found, self.grid.encode(voxels)]))
            draws.append(found[: self.count])
        self.picked = torch.stack(draws)


def _first_of_each(codes: Tensor) -> Tensor:
    """Distinct codes in their order of coming."""
    distinct, place = codes.unique(return_inverse=True)
    first = torch.full((len(distinct),), len(codes)).scatter_reduce(0, place, torch.arange(len(codes)), "amin")
    return codes[first.sort().values]
