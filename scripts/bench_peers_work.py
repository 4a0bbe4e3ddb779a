"""What all methods of ``bench_peers`` are made of: a repeatable piece of work, a forward pass, a step, a basis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

#: Scans in the basis that features are projected on: as many as the paper's cached basis holds.
BASIS_SCANS = 64
LEARNING_RATE = 1e-3

Scans = Any  # a dense batch (B, 1, D, H, W) float32, or a list of lazy scans


class Work(NamedTuple):
    """One prediction or one training step, ready to be repeated, and the voxels it encodes a scan."""

    run: Callable[[], object]
    evaluations: Callable[[], int]


def predicting(network: nn.Module, scans: Scans) -> Callable[[], Tensor]:
    """A forward pass in evaluation mode, without gradients."""
    network.eval()

    def run() -> Tensor:
        with torch.no_grad():
            return network(scans)

    return run


def stepping(forward: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """A training step: ``forward`` gives the loss."""

    def run() -> None:
        optimizer.zero_grad()
        forward().backward()
        optimizer.step()

    return run


def basis_of(trains: Sequence[Any]) -> list[Any]:
    """The trains of a batch as a basis of BASIS_SCANS scans: repeated, and each a little different."""
    from cpic_monai.tensor_train import TensorTrain

    out = []
    for train in trains:
        times = -(-BASIS_SCANS // train.batch)
        cores = [core.detach().repeat(times, 1, 1, 1)[:BASIS_SCANS] for core in train.cores]
        out.append(TensorTrain(tuple(core * (1 + 0.01 * torch.randn_like(core)) for core in cores)))
    return out
