"""Random tensor trains of known rank, and the `evaluate` function that shows them to a cross-approximation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cpic_monai.grid import IndexGrid
from cpic_monai.tensor_train import TensorTrain


def random_train(sizes: Sequence[int], rank: int, channels: int = 1, batch: int = 1, seed: int = 0) -> TensorTrain:
    """Float64 cores of independent normal entries; bonds are ``rank`` where prefixes and suffixes allow it."""
    generator = torch.Generator().manual_seed(seed)
    bonds = [1]
    for k in range(1, len(sizes)):
        bonds.append(min(rank, math.prod(sizes[:k]), math.prod(sizes[k:]) * channels))
    bonds.append(channels)
    return TensorTrain(
        tuple(
            torch.randn((batch, bonds[k], n, bonds[k + 1]), generator=generator, dtype=torch.float64)
            / bonds[k + 1] ** 0.5
            for k, n in enumerate(sizes)
        )
    )


def change_gauge(train: TensorTrain, seed: int = 0) -> TensorTrain:
    """The same tensors with a random invertible matrix and its inverse between any two cores."""
    generator = torch.Generator().manual_seed(seed)
    cores = list(train.cores)
    for k in range(len(cores) - 1):
        r = cores[k].shape[3]
        noise = torch.rand((r, r), generator=generator, dtype=torch.float64)
        gauge = 2 * torch.eye(r, dtype=torch.float64) + 0.5 * noise
        cores[k] = torch.einsum("brns,st->brnt", cores[k], gauge)
        cores[k + 1] = torch.einsum("st,btnu->bsnu", torch.linalg.inv(gauge), cores[k + 1])
    return TensorTrain(tuple(cores))


def evaluator(train: TensorTrain, grid: IndexGrid, seen: list[Tensor] | None = None) -> Callable[[Tensor], Tensor]:
    """Values of the trains at voxel codes ``(G, M)``; what was asked for is appended to ``seen``."""

    def evaluate(codes: Tensor) -> Tensor:
        if seen is not None:
            seen.append(codes)
        digits = grid.digits(codes)
        return train.at(digits[0] if len(digits) == 1 else digits)

    return evaluate
