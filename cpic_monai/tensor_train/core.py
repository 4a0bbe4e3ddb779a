"""Batched tensor trains whose last bond is free, so that it can carry the encoder's channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TensorTrain:
    """A batch of tensors in TT format (paper Sec. 3.2, [38]).

    Attributes
    ----------
    cores
        One tensor a mode, ``(B, r_{k-1}, n_k, r_k)`` with ``r_0 = 1``. The last bond ``r_K`` is free: it is the channel
        axis of a vector-valued encoding (1 for a scalar one). Bonds that a scan does not use are padded with zeros.
    """

    cores: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "cores", tuple(self.cores))
        if not self.cores:
            raise ValueError("a tensor train needs at least one core")
        bond = 1
        for k, core in enumerate(self.cores):
            if core.ndim != 4 or core.shape[1] != bond or core.shape[0] != self.cores[0].shape[0]:
                raise ValueError(
                    f"core {k} has shape {tuple(core.shape)}; expected (batch {self.cores[0].shape[0]}, {bond}, n, r)"
                )
            bond = core.shape[3]

    @property
    def batch(self) -> int:
        """Number of tensors held."""
        return self.cores[0].shape[0]

    @property
    def mode_sizes(self) -> tuple[int, ...]:
        """Sizes ``n_k`` of the modes."""
        return tuple(core.shape[2] for core in self.cores)

    @property
    def ranks(self) -> tuple[int, ...]:
        """Inner bond ranks ``r_1 ... r_{K-1}``."""
        return tuple(core.shape[3] for core in self.cores[:-1])

    @property
    def channels(self) -> int:
        """Size of the free last bond."""
        return self.cores[-1].shape[3]

    def detach(self) -> TensorTrain:
        """The same tensors, cut off from the graph."""
        return TensorTrain(tuple(core.detach() for core in self.cores))

    def to(self, *args, **kwargs) -> TensorTrain:
        """As :meth:`torch.Tensor.to`, core by core."""
        return TensorTrain(tuple(core.to(*args, **kwargs) for core in self.cores))

    def __getitem__(self, index) -> TensorTrain:
        """A sub-batch; an integer keeps a batch axis of one."""
        if isinstance(index, int):
            index = range(self.batch)[index]  # counts negative ones from the end; IndexError beyond
            index = slice(index, index + 1)
        return TensorTrain(tuple(core[index] for core in self.cores))

    def full(self) -> Tensor:
        """Dense tensors ``(B, n_1, ..., n_K, C)``; only for small grids."""
        out = self.cores[0]  # (B, 1, n, r)
        for core in self.cores[1:]:
            out = torch.einsum("bxnr,brms->bxnms", out, core)
            out = out.reshape(out.shape[0], 1, -1, out.shape[-1])
        return out.reshape(self.batch, *self.mode_sizes, self.channels)

    def at(self, digits: Tensor) -> Tensor:
        """Values ``(B, M, C)`` at mode digits int64 ``(M, K)`` or ``(B, M, K)``."""
        if digits.ndim == 2:
            digits = digits.expand(self.batch, -1, -1)
        batch = torch.arange(self.batch, device=digits.device)[:, None]
        state = self.cores[0].new_ones((self.batch, digits.shape[1], 1))
        for k, core in enumerate(self.cores):
            _, r, n, s = core.shape
            if n <= r:  # all digits of a short mode at once: no matrix a voxel, which the backward pass would keep
                every = (state @ core.flatten(2)).unflatten(2, (n, s))
                state = every.gather(2, digits[..., k, None, None].expand(-1, -1, 1, s))[:, :, 0]
            else:
                picked = core.transpose(1, 2)[batch, digits[..., k]]  # (B, M, r, s)
                state = torch.einsum("bmr,bmrs->bms", state, picked)
        return state


def concatenate(trains: Sequence[TensorTrain]) -> TensorTrain:
    """Stack batches of trains with equal mode sizes; smaller bonds are padded with zeros."""
    if not trains:
        raise ValueError("no tensor trains to concatenate")
    cores = []
    for parts in zip(*(t.cores for t in trains), strict=True):
        left, right = max(p.shape[1] for p in parts), max(p.shape[3] for p in parts)
        cores.append(
            torch.cat([torch.nn.functional.pad(p, (0, right - p.shape[3], 0, 0, 0, left - p.shape[1])) for p in parts])
        )
    return TensorTrain(tuple(cores))


def inner(a: TensorTrain, b: TensorTrain) -> Tensor:
    """Gram matrix of inner products ``<a_i, b_j>``, shape ``(B_a, B_b)``, summed over voxels and channels.

    Contracted core by core in ``O(B_a B_b K n r^3)``; nothing dense is formed.

    Raises
    ------
    ValueError
        If mode sizes or channel counts differ.
    """
    if a.mode_sizes != b.mode_sizes or a.channels != b.channels:
        raise ValueError(
            f"inner product of unlike trains: modes {a.mode_sizes} and {b.mode_sizes}, "
            f"channels {a.channels} and {b.channels}; both must come from one grid and encoder"
        )
    state = a.cores[0].new_ones((a.batch, b.batch, 1, 1))
    for left, right in zip(a.cores, b.cores, strict=True):
        # (A, B, r, s) x (A, r, n, r') -> (A, B, s, n, r'), as one batched matrix product over A
        na, r, n, r1 = left.shape
        nb, s, _, s1 = right.shape
        half = torch.matmul(
            state.permute(0, 1, 3, 2).reshape(na, nb * s, r), left.reshape(na, r, n * r1)
        )  # (A, B*s, n*r')
        half = half.reshape(na, nb, s * n, r1).permute(1, 0, 3, 2).reshape(nb, na * r1, s * n)
        state = torch.matmul(half, right.reshape(nb, s * n, s1)).reshape(nb, na, r1, s1).transpose(0, 1)
    return torch.diagonal(state, dim1=-2, dim2=-1).sum(-1)


def norm(a: TensorTrain) -> Tensor:
    """Frobenius norms ``(B,)``."""
    state = a.cores[0].new_ones((a.batch, 1, 1))
    for core in a.cores:
        half = torch.einsum("brs,brnt->bsnt", state, core)
        state = torch.einsum("bsnt,bsnu->btu", half, core)
    return torch.diagonal(state, dim1=-2, dim2=-1).sum(-1).clamp_min(0).sqrt()
