"""A network on a GPU does what it does on a CPU, to the tolerance stated here; without one only the CPU is compared."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from scans import SHAPE, images
from torch import Tensor

from cpic_monai.networks import CPICNet

#: Largest relative difference of quantiles and gradients: float32 in the encoder, sums in another order.
TOLERANCE = 1e-3

on_devices = pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")),
    ],
)
in_all_kinds = pytest.mark.parametrize("index_sets", ["cohort", "tangent", "random_voxels", "picked_values"])


def fitted(index_sets: str) -> CPICNet:
    """A small network on the CPU whose basis is six scans."""
    torch.manual_seed(0)
    network = CPICNet(SHAPE, rank=3, channels=4, features=(3,), index_sets=index_sets)
    with torch.no_grad():
        network.basis.fit(network.decompose(images(6, seed=1)))
    return network


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.cpu() - expected).abs().max() / expected.abs().max())


@on_devices
@in_all_kinds
def test_predictions_are_those_of_the_cpu(device: str, index_sets: str) -> None:
    network = fitted(index_sets).eval()
    with torch.no_grad():
        expected = network(images(3))
        found = copy.deepcopy(network).to(device)(images(3).to(device))
    assert found.device.type == device
    assert relative(found, expected) < TOLERANCE


@on_devices
@in_all_kinds
def test_gradients_are_those_of_the_cpu(device: str, index_sets: str) -> None:
    def gradients(place: str) -> list[Any]:
        network = copy.deepcopy(fitted(index_sets)).to(place)
        network(images(3).to(place)).square().sum().backward()
        return [p.grad for p in network.encoder.parameters() if p.grad is not None]

    expected, found = gradients("cpu"), gradients(device)
    assert len(found) == len(expected) > 0
    assert all(relative(a, b) < TOLERANCE for a, b in zip(found, expected, strict=True) if bool(b.any()))
