"""From encodings to scan features through tensor trains, with every table fixed: tensor operations only."""

# No `from __future__ import annotations` here: TorchScript reads the types of attributes, not their names.
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cpic_monai.cross import Ridge
from cpic_monai.cross.bank import CohortIndexSets
from cpic_monai.cross.index_sets import CrossPlan
from cpic_monai.networks import CanonicalBasis
from cpic_monai.tensor_train import TensorTrain


@dataclass(frozen=True)
class _Layout:
    """Tables of all draws with bonds padded to one rank; the padding points at the zero behind the last value."""

    plans: list[CrossPlan]
    starts: list[int]
    zero: int
    rank: int
    columns: int

    @classmethod
    def of(cls, sets: CohortIndexSets) -> "_Layout":
        counts = [plan.codes.shape[1] for plan in sets.plans]
        starts = [sum(counts[:d]) for d in range(len(counts))]
        rank, columns = (max(t.shape[axis] for plan in sets.plans for t in plan.gather) for axis in (1, 3))
        return cls(sets.plans, starts, sum(counts), rank, columns)

    def gather(self, mode: int) -> Tensor:
        """Where the values of a mode are, int64 ``(draws, rank, n, s)``."""
        tables = []
        for plan, start in zip(self.plans, self.starts, strict=True):
            table = plan.gather[mode][0].cpu() + start
            short = (0, self.columns - table.shape[2], 0, 0, 0, self.rank - len(table))
            tables.append(nn.functional.pad(table, short, value=self.zero))
        return torch.stack(tables)

    def pivots(self, mode: int) -> tuple[Tensor, Tensor]:
        """Where the values of a mode's pivots are, int64 ``(draws, rank, s)``, and which of them count."""
        tables, alive = [], []
        for plan, table in zip(self.plans, self.gather(mode), strict=True):
            rows = table.flatten(0, 1)[plan.rows[mode][0].cpu()]
            used = plan.alive[mode][0].cpu()
            rows = torch.where(used[:, None], rows, self.zero)
            missing = self.rank - len(rows)
            tables.append(nn.functional.pad(rows, (0, 0, 0, missing), value=self.zero))
            alive.append(nn.functional.pad(used, (0, missing)))
        return torch.stack(tables), torch.stack(alive)

    def cores(self, trains: Sequence[TensorTrain], mode: int) -> Tensor:
        """The basis scans' cores of a mode, float64 ``(draws, scans, rank, n, rank)``; the last bond is the channel."""
        cores = []
        for train in trains:
            core = train.cores[mode].cpu().double()
            right = 0 if mode == len(train.cores) - 1 else self.rank - core.shape[3]
            cores.append(nn.functional.pad(core, (0, right, 0, 0, 0, self.rank - core.shape[1])))
        return torch.stack(cores)


class ModesOfOneSize(nn.Module):
    """The cores of all modes of one size and all draws: :func:`cpic_monai.cross.interpolate` with fixed pivots.

    Parameters
    ----------
    layout
        Where each mode finds its values.
    modes
        Numbers of the modes.
    trains
        Those of the basis scans, one a draw.
    ridge
        See :class:`cpic_monai.cross.Ridge`.
    """

    places: Tensor
    pivots: Tensor
    alive: Tensor
    eye: Tensor
    basis: Tensor

    def __init__(self, layout: _Layout, modes: Sequence[int], trains: Sequence[TensorTrain], ridge: Ridge) -> None:
        super().__init__()
        self.relative, self.floor, self.refinements = ridge.relative, ridge.floor, ridge.refinements
        pivots, alive = zip(*(layout.pivots(k) for k in modes), strict=True)
        self.register_buffer("places", torch.stack([layout.gather(k) for k in modes], 1))
        self.register_buffer("pivots", torch.stack(pivots, 1))
        self.register_buffer("alive", torch.stack(alive, 1).to(torch.float64))
        self.register_buffer("eye", torch.eye(layout.rank, dtype=torch.float64))
        self.register_buffer("basis", torch.stack([layout.cores(trains, k) for k in modes], 1))

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Values float64 ``(B, N + 1, C)``, the last zero, to cores ``(B, draws, modes, r, n, r)``.

        Beside them the basis scans' cores ``(draws, modes, scans, r, n, r)``.
        """
        batch, channels = values.shape[0], values.shape[2]
        draws, modes, rank, size, columns = self.places.shape
        matrix = values.index_select(1, self.places.reshape(-1))
        matrix = matrix.reshape(batch, draws, modes, rank * size, columns * channels)
        pivots = values.index_select(1, self.pivots.reshape(-1))
        pivots = pivots.reshape(batch, draws, modes, rank, columns * channels)
        across = pivots.transpose(3, 4)
        gram = pivots @ across
        weight = (gram * self.eye).sum([3, 4]) / self.alive.sum(2).clamp(min=1.0)
        lift = (self.relative * weight + self.floor).unsqueeze(3) * self.alive + (1.0 - self.alive)
        inverse = invert(gram + lift.unsqueeze(4) * self.eye)
        out = (matrix @ across) @ inverse
        for _ in range(self.refinements):
            out = out + ((matrix - out @ pivots) @ across) @ inverse
        return out.reshape(batch, draws, modes, rank, size, rank), self.basis


class TrainProjection(nn.Module):
    """Cross-interpolation with the cohort's index sets, and inner products with the basis.

    Gather tables, pivots and the basis are buffers, so nothing is searched, decided or looked up in Python. All modes
    of one size and all draws of index sets go through one batched solve.

    Parameters
    ----------
    sets
        Not oversampled.
    basis
        Fitted to their trains.
    """

    final: Tensor
    final_basis: Tensor
    vectors: Tensor
    centre: Tensor

    def __init__(self, sets: CohortIndexSets, basis: CanonicalBasis) -> None:
        super().__init__()
        sizes = sorted(set(sets.grid.mode_sizes[:-1]))
        order = [sizes.index(n) for n in sets.grid.mode_sizes[:-1]]
        layout, trains = _Layout.of(sets), basis.trains
        members = [[k for k, g in enumerate(order) if g == group] for group in range(len(sizes))]
        self.groups = nn.ModuleList(ModesOfOneSize(layout, ks, trains, sets.ridge) for ks in members)
        self.group_of, self.place_of = order, [order[:k].count(g) for k, g in enumerate(order)]
        self.register_buffer("final", layout.gather(len(order))[..., 0])
        self.register_buffer("final_basis", layout.cores(trains, len(order)))
        self.register_buffer("vectors", basis.vectors.clone())
        self.register_buffer("centre", basis.centre.clone())

    def forward(self, values: Tensor) -> Tensor:
        """Encodings float64 ``(S, N, C)`` to features float64 ``(S, rank)``: inner products, centred and projected."""
        batch, channels = values.shape[0], values.shape[2]
        padded = nn.functional.pad(values, [0, 0, 0, 1])  # the last entry is the zero of padding
        solved: list[Tensor] = []
        stored: list[Tensor] = []
        for group in self.groups:
            cores, basis = group(padded)
            solved.append(cores)
            stored.append(basis)
        draws, rank, size = self.final.shape
        final = padded.index_select(1, self.final.reshape(-1)).reshape(batch, draws, rank, size, channels)
        # Bonds are padded with zeros to one rank, so that of this first bond only the one true entry counts.
        shape = (draws, batch, self.vectors.shape[0], rank, rank)
        state = torch.ones(shape, dtype=values.dtype, device=values.device)
        for g, place in zip(self.group_of, self.place_of):  # noqa: B905 (TorchScript knows no strict)
            half = torch.einsum("dbspq,bdpnu->dbsqnu", state, solved[g][:, :, place])
            state = torch.einsum("dbsqnu,dsqnv->dbsuv", half, stored[g][:, place])
        half = torch.einsum("dbspq,bdpnc->dbsqnc", state, final)
        products = torch.einsum("dbsqnc,dsqnc->dbs", half, self.final_basis).mean(0)
        return (products - products.mean(1, keepdim=True) - self.centre) @ self.vectors


def invert(matrix: Tensor) -> Tensor:
    """Inverses of symmetric positive definite matrices ``(..., r, r)`` by Gauss-Jordan elimination, ``r`` steps.

    ONNX knows no Cholesky factorisation. Positive definite matrices need no row exchanges, so that this is a few
    products and quotients.
    """
    size = matrix.shape[-1]
    eye = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
    work = torch.cat([matrix, eye.expand_as(matrix)], dim=-1)
    for k in range(size):
        row = work[..., k : k + 1, :] / work[..., k : k + 1, k : k + 1]
        work = work - (work[..., k : k + 1] - eye[:, k : k + 1]) * row
    return work[..., size:]
