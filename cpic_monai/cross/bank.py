"""Whose index sets: of the whole cohort, of each scan, or every voxel (design: cohort mode, scan mode, TT-SVD)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cpic_monai.cross.dead_pivots import without_dead
from cpic_monai.cross.host import HostModule
from cpic_monai.cross.index_sets import CrossIndices, CrossPlan, left_sizes, make_plan, oversampled, right_sizes
from cpic_monai.cross.interpolation import Ridge
from cpic_monai.cross.planned import StackedPlan, interpolate_plan, stack_plan
from cpic_monai.cross.seeds import suffix_sets
from cpic_monai.cross.sweep import Evaluate, alternate, half_sweep
from cpic_monai.grid import IndexGrid, all_codes
from cpic_monai.tensor_train import TensorTrain, truncate_train, tt_svd

HELD_OUT = 512  # random voxels that say which of several index sets are best


class CohortIndexSets(HostModule):
    """Index sets shared by all scans: part of the model, saved with it, no search at inference.

    Parameters
    ----------
    grid, rank, channels
        Of the encoding.
    draws
        Independent draws of index sets; predictions average over them.
    seed
        Of the first sets, which look at random voxels until :meth:`select` has seen scans.
    ridge
        Of the interpolation.
    oversampling
        Index sets are larger than the rank by this factor and the train is truncated to the rank: 1.5 and 2 look at 1.5
        and 1.9 times the voxels and come closer to TT-SVD (``scripts/bench_cross.py``); see
        :func:`cpic_monai.cross.index_sets.oversampled`.
    alternations
        Rounds of :func:`cpic_monai.cross.sweep.alternate` in :meth:`select`. They cost nothing in prediction;
        smooth scalar functions gained, encodings of 16 channels did not.
    """

    left: Tensor
    right: Tensor
    alive: Tensor
    by_draw: tuple[str, ...] = ("left", "right", "alive")
    #: Whether every draw looks at the same number of voxels, those that only dead pivots want among them.
    fixed_count = False

    def __init__(
        self,
        grid: IndexGrid,
        rank: int,
        channels: int,
        draws: int = 1,
        seed: int = 0,
        ridge: Ridge | None = None,
        oversampling: float = 1.0,
        alternations: int = 0,
    ) -> None:
        super().__init__()
        if draws < 1 or rank < 1:
            raise ValueError(f"`draws` and `rank` must be at least 1, found {draws} and {rank}")
        self.grid, self.rank, self.channels, self.ridge = grid, rank, channels, ridge or Ridge()
        self.alternations = alternations
        self.rows, self.columns = oversampled(rank, channels, oversampling)
        self.pivots = self.rows if self.rows > rank else None
        self._left, self._right = left_sizes(grid, self.rows), right_sizes(grid, self.columns, channels, self.pivots)
        bonds = len(self._left)
        self.register_buffer("left", torch.zeros((draws, bonds, self.rows), dtype=torch.int64))
        self.register_buffer("right", torch.zeros((draws, bonds, self.columns), dtype=torch.int64))
        self.register_buffer("alive", torch.zeros((draws, bonds, self.rows), dtype=torch.bool))
        self._plans: list[CrossPlan] | None = None
        self._stacked: dict[torch.device, list[StackedPlan]] = {}
        generator = torch.Generator().manual_seed(seed)
        self.select(lambda codes: _noise(codes, channels, generator), self._random_seeds(generator), generator)

    @property
    def draws(self) -> int:
        """Number of draws held."""
        return self.left.shape[0]

    @property
    def seeds_wanted(self) -> int:
        """Seed voxels that :meth:`select` wants for a draw."""
        return self.rank

    @property
    def plans(self) -> list[CrossPlan]:
        """One plan a draw; voxels that only dead pivots want are left out."""
        if self._plans is None:
            plans = [make_plan(self.grid, self.indices(d)) for d in range(self.draws)]
            self._plans = plans if self.fixed_count else [without_dead(plan) for plan in plans]
        return self._plans

    def stacked(self, device: torch.device) -> list[StackedPlan]:
        """The plans as they are used on a device, laid out there once."""
        if device not in self._stacked:
            self._stacked[device] = [stack_plan(plan, device) for plan in self.plans]
        return self._stacked[device]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_stacked": {}}  # loader workers have no use for it

    def indices(self, draw: int) -> CrossIndices:
        """The index sets of one draw, without padding."""
        left = tuple(self.left[draw, k, :n][None] for k, n in enumerate(self._left))
        right = tuple(self.right[draw, k, :n][None] for k, n in enumerate(self._right))
        alive = tuple(self.alive[draw, k, :n][None] for k, n in enumerate(self._left))
        return CrossIndices(left, right, alive)

    def codes(self) -> Tensor:
        """All voxels to look at, int64 ``(N,)``: the draws one after the other."""
        return torch.cat([plan.codes[0] for plan in self.plans])

    def voxels(self, subject: str | None = None) -> Tensor:
        """The same as voxel indices int64 ``(N, 3)``; every subject's are alike."""
        return self.grid.decode(self.codes())

    def decompose(self, values: Tensor) -> list[TensorTrain]:
        """Values ``(B, N, C)`` at :meth:`codes` to one train a draw."""
        parts = zip(self.split(values), self.stacked(values.device), strict=True)
        trains = [interpolate_plan(part, plan, self.ridge) for part, plan in parts]
        return trains if self.rows == self.rank else [truncate_train(train, self.rank) for train in trains]

    def split(self, values: Tensor) -> tuple[Tensor, ...]:
        """Values ``(B, N, C)`` at :meth:`codes` draw by draw."""
        sizes = [plan.codes.shape[1] for plan in self.plans]
        if values.shape[1] != sum(sizes):
            raise ValueError(
                f"{values.shape[1]} values a scan for {sum(sizes)} cross indices: the patches were sampled for other "
                "index sets; sample them again after a re-selection"
            )
        return values.split(sizes, dim=1)

    @torch.no_grad()
    def select(
        self, evaluate: Evaluate, seeds: Sequence[Tensor], generator: torch.Generator | None = None, tol: float = 1e-4
    ) -> None:
        """Choose new index sets, one draw for each entry of ``seeds``, jointly for the scans that ``evaluate`` knows.

        Parameters
        ----------
        evaluate
            Codes ``(1, M)`` to values ``(B, M, C)``.
        seeds
            Seed voxel codes int64 ``(S,)``, one tensor a draw.
        tol
            Relative residual below which a pivot is dead: the larger, the fewer pivots and voxels where encodings are
            simple, the rank being an upper bound then.

        Raises
        ------
        ValueError
            If ``tol`` is not in [0, 1): every pivot but the first would be dead.
        """
        if not 0 <= tol < 1:
            raise ValueError(
                f"config key `tolerance` (`tol`): a pivot's relative residual is at least 0 and below 1, found {tol}"
            )
        left, right, alive = (t.new_zeros((len(seeds), *t.shape[1:])) for t in (self.left, self.right, self.alive))
        for d, codes in enumerate(seeds):
            suffixes = suffix_sets(self.grid, codes[None], self.columns, self.channels, generator, self.pivots)
            if self.alternations:
                suffixes = alternate(
                    evaluate, self.grid, suffixes, self.rows, self.alternations, held_out(self.grid, generator),
                    joint=True, tol=tol, ridge=self.ridge,
                )  # fmt: skip
            _, sets = half_sweep(evaluate, self.grid, suffixes, self.rows, joint=True, tol=tol, ridge=self.ridge)
            for k in range(len(self._left)):
                left[d, k, : self._left[k]] = sets.left[k][0]
                right[d, k, : self._right[k]] = sets.right[k][0]
                alive[d, k, : self._left[k]] = sets.alive[k][0]
        self.left, self.right, self.alive = left, right, alive
        self._plans, self._stacked = None, {}

    def _random_seeds(self, generator: torch.Generator) -> list[Tensor]:
        limit = torch.tensor(self.grid.shape)
        voxels = (torch.rand((self.draws, self.rank, len(limit)), generator=generator) * limit).long()
        return list(self.grid.encode(voxels))

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Forget what was planned for the index sets of before."""
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._plans, self._stacked = None, {}


class EveryVoxel(nn.Module):
    """Every voxel of the grid and the exact TT-SVD: the reference for small scans, under the same interface."""

    def __init__(self, grid: IndexGrid, rank: int) -> None:
        super().__init__()
        self.grid, self.rank, self.draws = grid, rank, 1

    def codes(self) -> Tensor:
        """All voxels in mode order, int64 ``(N,)``."""
        return all_codes(self.grid)

    def voxels(self, subject: str | None = None) -> Tensor:
        """The same as voxel indices int64 ``(N, 3)``."""
        return self.grid.decode(self.codes())

    def decompose(self, values: Tensor) -> list[TensorTrain]:
        """Values ``(B, N, C)`` of all voxels to one train, by TT-SVD."""
        return [tt_svd(values.reshape(values.shape[0], *self.grid.mode_sizes, values.shape[-1]), self.rank)]


class ScanIndexSets(nn.Module):
    """Index sets of each scan, kept by subject (the paper's way).

    A scan's right sets follow from its seed voxels and stay frozen from the first visit on; its left pivots are chosen
    anew in every sweep. What is kept, and saved in the checkpoint, is therefore the seed voxels: ``seeds``, by the
    digest of the subject's name, for a checkpoint names nobody.

    Parameters are those of :class:`CohortIndexSets`; ``alternations`` are made, and cost voxels, at every visit.
    ``seed``, with the number of the draw, fixes the seed voxels of a scan; it is saved with them.
    """

    def __init__(
        self,
        grid: IndexGrid,
        rank: int,
        channels: int,
        ridge: Ridge | None = None,
        oversampling: float = 1.0,
        alternations: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.rows, self.columns = oversampled(rank, channels, oversampling)
        self.pivots = self.rows if self.rows > rank else None
        self.alternations = alternations
        self.grid, self.rank, self.channels, self.ridge = grid, rank, channels, ridge or Ridge()
        self.seeds: dict[str, Tensor] = {}
        self.draws, self.draw, self.seed = 1, 0, seed

    def sweep(
        self, evaluate: Evaluate, seeds: Tensor, tol: float = 1e-9, dtype: torch.dtype = torch.float64
    ) -> tuple[list[TensorTrain], CrossIndices]:
        """One half sweep from seed voxel codes ``(B, S)``: the trains, in ``dtype``, and what was looked at."""
        # Always the same fill: with the seeds kept, a checkpoint gives the same sets on every machine.
        generator = torch.Generator().manual_seed(0)
        right = suffix_sets(self.grid, seeds, self.columns, self.channels, generator, self.pivots)
        if self.alternations:
            right = alternate(
                evaluate, self.grid, right, self.rows, self.alternations, held_out(self.grid, generator),
                joint=False, tol=tol, ridge=self.ridge, dtype=dtype,
            )  # fmt: skip
        train, indices = half_sweep(
            evaluate, self.grid, right, self.rows, joint=False, tol=tol, ridge=self.ridge, dtype=dtype
        )
        return [train if self.rows == self.rank else truncate_train(train, self.rank)], indices

    def kept(self, subjects: Sequence[str]) -> Tensor | None:
        """Seed codes int64 ``(B, S)`` of these subjects; None unless all of them were seen before."""
        found = [self.seeds[digest] for digest in map(_digest, subjects) if digest in self.seeds]
        return torch.stack(found) if found and len(found) == len(subjects) else None

    def keep(self, subject: str, codes: Tensor) -> Tensor:
        """Keep these seed codes ``(S,)`` unless the subject has some already; returns the subject's."""
        return self.seeds.setdefault(_digest(subject), codes)

    def forget(self, subjects: Sequence[str] | None = None, draw: int | None = None) -> None:
        """Drop the seeds of these subjects (all by default), to be drawn anew at their next visit.

        ``draw`` is the number of the new draw: with the network's seed it fixes what is drawn.
        """
        self.draw = self.draw if draw is None else draw
        for digest in list(self.seeds) if subjects is None else map(_digest, subjects):
            self.seeds.pop(digest, None)

    def get_extra_state(self) -> dict[str, Any]:
        """Seed voxels by digest; seed and number of the draw, which those of other scans follow from."""
        return {"seed": self.seed, "draw": self.draw, "digests": dict(self.seeds)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore :meth:`get_extra_state`; older checkpoints hold seeds by name, the oldest these alone."""
        found = next((state[key] for key in ("digests", "seeds") if isinstance(state.get(key), dict)), state)
        self.draw = 0 if found is state else state["draw"]
        self.seed = self.seed if found is state else state.get("seed", self.seed)
        named = found is not state.get("digests")
        self.seeds = {_digest(key) if named else key: codes.cpu() for key, codes in found.items()}


def held_out(grid: IndexGrid, generator: torch.Generator | None, count: int = HELD_OUT) -> Tensor:
    """Codes int64 ``(count,)`` of random voxels of the scan, padding excluded."""
    limit = torch.tensor(grid.shape)
    return grid.encode((torch.rand((count, len(limit)), generator=generator) * limit).long())


def _digest(subject: str) -> str:
    return hashlib.sha256(subject.encode()).hexdigest()[:16]


def _noise(codes: Tensor, channels: int, generator: torch.Generator) -> Tensor:
    return torch.randn((1, codes.shape[1], channels), generator=generator, dtype=torch.float64)
