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

So the inner product is ``e_i^T W e_j`` of the values at the picked voxels, with a matrix ``W`` that weighs each by what
it stands for. ``W`` is made of the small Gram matrices of ``L_k`` and ``R_k``, which are constant in the backward pass
and saved with the index sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from cpic_monai.cross.index_sets import CrossPlan
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


def voxel_weights(plan: CrossPlan, shared: SharedInterpolation) -> Tensor:
    """The matrix ``W`` of the inner product, float64 ``(N, N)``, positive semidefinite.

    Parameters
    ----------
    plan, shared
        See :func:`shared_interpolation`.
    """
    voxels = plan.codes.shape[1]
    weights = torch.zeros((voxels, voxels), dtype=torch.float64)
    for table, left, right in zip(plan.gather, shared.left, shared.right, strict=True):
        places = table[0].flatten()
        # A digit of the mode meets itself only.
        block = torch.kron(torch.kron(left, torch.eye(table.shape[2], dtype=left.dtype)), right)
        weights.index_put_((places[:, None], places[None, :]), block / len(plan.gather), accumulate=True)
    return weights


class TangentIndexSets(PickedValues):
    """Index sets shared by all scans, and the interpolation, too; see the module.

    Parameters are those of :class:`cpic_monai.cross.bank.CohortIndexSets`. A scan is a train of one mode, its values at
    the picked voxels times the square root of ``W``. There are no small systems to solve.
    """

    left_gram: Tensor
    right_gram: Tensor

    def decompose(self, values: Tensor) -> list[TensorTrain]:
        """Values ``(B, N, C)`` at :meth:`codes` to one train a draw."""
        return [as_train(self.root(draw).to(part) @ part) for draw, part in enumerate(self.split(values))]

    def unweighted(self, draw: int, weighted: Tensor) -> Tensor:
        """Values ``(N, C)`` at a draw's voxels of which :meth:`decompose` made these; zero where they do not count."""
        return torch.linalg.pinv(self.root(draw), rtol=1e-6, hermitian=True).to(weighted) @ weighted

    def root(self, draw: int) -> Tensor:
        """Symmetric square root of ``W``, float64 ``(N, N)``; made once, on the CPU."""
        if draw not in self._roots:
            values, vectors = torch.linalg.eigh(voxel_weights(self.plans[draw], self.shared(draw)))
            self._roots[draw] = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
        return self._roots[draw]

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
        fitted = [shared_interpolation(evaluate(plan.codes).cpu(), plan) for plan in self.plans]
        self.register_buffer("left_gram", torch.stack([_stacked(f.left, self.rows) for f in fitted]))
        self.register_buffer("right_gram", torch.stack([_stacked(f.right, self.columns) for f in fitted]))
        self._roots: dict[int, Tensor] = {}
        # Other processes' choice may be copied over these buffers: nothing made of them is kept.
        self._plans, self._stacked = None, {}

    def __getstate__(self) -> dict[str, Any]:
        """Without the roots, which are large and soon made again."""
        return {**super().__getstate__(), "_roots": {}}

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Take whatever number of draws the checkpoint holds."""
        for name in ("left_gram", "right_gram"):
            value = state_dict.get(f"{prefix}{name}")
            if value is not None and value.shape[1:] == getattr(self, name).shape[1:]:
                setattr(self, name, torch.zeros_like(value, device="cpu"))
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._roots = {}


def _taken(values: Tensor, table: Tensor) -> Tensor:
    return values.index_select(1, table.flatten()).reshape(values.shape[0], *table.shape, values.shape[2])


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
