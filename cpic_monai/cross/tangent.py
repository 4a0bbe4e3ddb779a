"""One interpolation for the whole cohort, each mode in turn being the scan's own: linear in the scan's encoding.

:class:`cpic_monai.cross.bank.CohortIndexSets` interpolates every scan by itself: its cores are quotients of its own
values, and their errors differ from scan to scan, which is noise to a regression over scans. Here the quotients are of
the cohort. Let ``I_k`` and ``J_k`` be the prefixes and suffixes picked at bond ``k``. By least squares over all scans
and channels that choose the voxels,

    E(I_k digit, .) = A_k E(I_{k+1}, .)    and    E(., digit J_{k+1}) = E(., J_k) B_k,

so that, with everything left and right of mode ``k`` interpolated, the encoding of scan ``i`` is
``L_k E_i(I_k, digit, J_{k+1}) R_k``, with ``L_k`` and ``R_k`` products of the ``A`` and ``B``, which all scans share:
the form of a tensor train whose core ``k`` is the scan's own (mixed canonical form, site ``k`` as centre). The inner
product of two scans is the mean over all centres. That is what a scan changes to first order in one core at a time, the
tangent space of the cohort's train; every picked voxel counts, where a single centre looks at those of one mode only.

A scan is then the vector of its values, mode by mode, times the roots of the small Gram matrices of ``L_k`` and
``R_k``, which are constant in the backward pass and saved with the index sets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from cpic_monai.cross.index_sets import CrossPlan, make_plan
from cpic_monai.cross.random_voxels import PickedValues, as_train
from cpic_monai.cross.sweep import Evaluate
from cpic_monai.tensor_train import TensorTrain

#: Ridge of the shared least squares, in units of the mean squared norm of a pivot's row over the cohort.
LIFT = 1e-4


class SharedInterpolation(NamedTuple):
    """Gram matrices of ``L_k`` and ``R_k``, one pair a mode.

    Attributes
    ----------
    left
        Float64 ``(r_{k-1}, r_{k-1})`` each; ``(1, 1)`` in the first mode.
    right
        Float64 ``(s_k, s_k)`` each; ``(1, 1)`` in the last mode.
    """

    left: tuple[Tensor, ...]
    right: tuple[Tensor, ...]


def shared_interpolation(values: Tensor, plan: CrossPlan, lift: float = LIFT) -> SharedInterpolation:
    """Fit the interpolation that all scans share.

    Parameters
    ----------
    values
        Encodings ``(B, N, C)`` of the scans at the plan's codes.
    plan
        With one group of index sets and no voxel left out.
    lift
        See :data:`LIFT`.
    """
    tables = [table[0] for table in plan.gather]
    parts = [_taken(values.double(), table) for table in tables]  # (B, r, n, s, C) each
    one = values.new_ones((1, 1), dtype=torch.float64)
    left, right = [one], [one]
    for k, part in enumerate(parts[:-1]):
        rows = part.permute(1, 2, 3, 4, 0).flatten(1).reshape(part.shape[1] * part.shape[2], -1)
        a = _expressed(rows, rows[plan.rows[k][0]], lift).reshape(*part.shape[1:3], -1)
        left.append(torch.einsum("anx,ab,bny->xy", a, left[-1], a))
    for k in reversed(range(len(parts) - 1)):
        after = parts[k + 1]
        columns = after.permute(2, 3, 0, 1, 4).flatten(2).reshape(after.shape[2] * after.shape[3], -1)
        b = _expressed(columns, columns[_suffixes(plan, tables, k)], lift).reshape(*after.shape[2:4], -1)
        right.append(torch.einsum("nsx,st,nty->xy", b, right[-1], b))
    return SharedInterpolation(tuple(left), tuple(reversed(right)))


def weighted_values(values: Tensor, plan: CrossPlan, shared: SharedInterpolation) -> Tensor:
    """Values ``(B, N, C)`` at the plan's codes as vectors ``(B, M, C)`` whose inner product is the mean over centres.

    ``M`` is the number of entries of all modes; a voxel that two modes look at counts in both.

    Parameters
    ----------
    values, plan, shared
        See :func:`shared_interpolation`; values may be of another precision and on another device.
    """
    parts = []
    for table, left, right in zip(plan.gather, shared.left, shared.right, strict=True):
        part = _taken(values, table[0].to(values.device))
        roots = (_root(left).to(values), _root(right).to(values))
        parts.append(torch.einsum("brnsc,rx,sy->bxnyc", part, *roots).flatten(1, 3))
    return torch.cat(parts, dim=1) / math.sqrt(len(parts))


class TangentIndexSets(PickedValues):
    """Index sets shared by all scans, and the interpolation, too; see the module.

    Parameters are those of :class:`cpic_monai.cross.bank.CohortIndexSets`. A scan is a train of one mode,
    :func:`weighted_values`. There are no small systems to solve.
    """

    left_gram: Tensor
    right_gram: Tensor
    by_draw = (*PickedValues.by_draw, "left_gram", "right_gram")

    @property
    def mode_sizes(self) -> tuple[int, ...]:
        """Modes of the trains: the entries of all modes of one draw."""
        return (sum(table[0].numel() for table in self.plans[0].gather),)

    def decompose(self, values: Tensor) -> list[TensorTrain]:
        """Values ``(B, N, C)`` at :meth:`codes` to one train a draw."""
        return [
            as_train(weighted_values(part, self.plans[draw], self.shared(draw)))
            for draw, part in enumerate(self.split(values))
        ]

    def unweighted(self, draw: int, weighted: Tensor) -> Tensor:
        """Values ``(N, C)`` of which :func:`weighted_values` makes these ``(M, C)``; zero where they do not count."""
        plan = self.plans[draw]
        one = torch.eye(plan.codes.shape[1], dtype=torch.float64)
        matrix = weighted_values(one[None], plan, self.shared(draw))[0]  # (M, N)
        inverse = torch.linalg.pinv(matrix.T @ matrix, rtol=1e-10, hermitian=True)
        return (inverse @ matrix.T).to(weighted) @ weighted

    def shared(self, draw: int) -> SharedInterpolation:
        """The interpolation of one draw, without padding."""
        r, s = (1, *self._left), (*self._right, 1)
        return SharedInterpolation(
            tuple(self.left_gram[draw, k, :n, :n] for k, n in enumerate(r)),
            tuple(self.right_gram[draw, k, :n, :n] for k, n in enumerate(s)),
        )

    @torch.no_grad()
    def select(
        self, evaluate: Evaluate, seeds: Sequence[Tensor], generator: torch.Generator | None = None, tol: float = 1e-4
    ) -> None:
        """Choose index sets as :class:`CohortIndexSets` does, then fit the interpolation to the same scans."""
        super().select(evaluate, seeds, generator, tol)
        # Not those of `self.plans`, which are kept: another process's choice may yet be copied over the index sets.
        plans = [make_plan(self.grid, self.indices(draw)) for draw in range(self.draws)]
        fitted = [shared_interpolation(evaluate(plan.codes).cpu(), plan) for plan in plans]
        self.register_buffer("left_gram", torch.stack([_stacked(f.left, self.rows) for f in fitted]))
        self.register_buffer("right_gram", torch.stack([_stacked(f.right, self.columns) for f in fitted]))


def _taken(values: Tensor, table: Tensor) -> Tensor:
    return values.index_select(1, table.flatten()).reshape(values.shape[0], *table.shape, values.shape[2])


def _root(gram: Tensor) -> Tensor:
    """Symmetric square root of a positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(gram)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def _expressed(rows: Tensor, pivots: Tensor, lift: float) -> Tensor:
    """Coefficients ``(R, r)`` that express rows ``(R, M)`` by pivots ``(r, M)``, by least squares with a ridge."""
    gram = pivots @ pivots.T
    diagonal = torch.diagonal(gram)
    eye = torch.eye(len(gram), dtype=gram.dtype)
    # Scans that are all background leave a Gram matrix of zeros: the coefficients are zero then.
    return torch.linalg.solve(gram + (lift * diagonal.mean()).clamp_min(1e-30) * eye, pivots @ rows.T).T


def _suffixes(plan: CrossPlan, tables: Sequence[Tensor], bond: int) -> Tensor:
    """Which columns (digit, suffix) of the mode behind a bond are the suffixes picked there: int64 ``(s_k,)``."""
    before, behind = tables[bond], tables[bond + 1]
    wanted = before.flatten(0, 1)[plan.rows[bond][0, 0]]  # voxels of the first prefix
    return (behind[0].flatten() == wanted[:, None]).int().argmax(dim=1)


def _stacked(matrices: Sequence[Tensor], size: int) -> Tensor:
    """Square matrices of several sizes as one tensor, padded."""
    return torch.stack([pad(m, (0, size - m.shape[0], 0, size - m.shape[0])) for m in matrices])
