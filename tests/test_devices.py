"""A network on a GPU does what it does on a CPU, to the tolerance stated here; without one only the CPU is compared."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from scans import SHAPE, images, lazy
from torch import Tensor

from cpic_monai.handlers.select import select_index_sets
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
#: The index sets, or raw intensities in the place of the encoder.
in_all_kinds = pytest.mark.parametrize(
    "index_sets", ["cohort", "tangent", "random_voxels", "picked_values", "scan", "no encoder"]
)
NAMES = [f"s{i}" for i in range(6)]


def fitted(index_sets: str) -> CPICNet:
    """A small network on the CPU whose index sets and basis are those of six scans."""
    torch.manual_seed(0)
    kind = {"encoder": False} if index_sets == "no encoder" else {"index_sets": index_sets}
    network = CPICNet(SHAPE, rank=3, channels=4, features=(3,), **kind)
    scans = images(6, seed=1)
    select_index_sets(network, [{"image": scan} for scan in lazy(scans)], scans=6, draws=1)
    with torch.no_grad():
        network.basis.fit(network.decompose(scans, NAMES))
    return network


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.cpu() - expected).abs().max() / expected.abs().max())


@on_devices
@in_all_kinds
def test_predictions_are_those_of_the_cpu(device: str, index_sets: str) -> None:
    network = fitted(index_sets).eval()
    with torch.no_grad():
        expected = network(images(3), subjects=NAMES[:3])
        found = copy.deepcopy(network).to(device)(images(3).to(device), subjects=NAMES[:3])
    assert found.device.type == device
    assert relative(found, expected) < TOLERANCE


@on_devices
@in_all_kinds
def test_gradients_are_those_of_the_cpu(device: str, index_sets: str) -> None:
    def gradients(place: str) -> list[Any]:
        network = copy.deepcopy(fitted(index_sets)).to(place)
        network(images(3).to(place), subjects=NAMES[:3]).square().sum().backward()
        return [p.grad for p in network.parameters() if p.grad is not None]

    expected, found = gradients("cpu"), gradients(device)
    assert len(found) == len(expected) > 0
    assert all(relative(a, b) < TOLERANCE for a, b in zip(found, expected, strict=True) if bool(b.any()))


@on_devices
@in_all_kinds
def test_voxels_are_chosen_on_a_device(device: str, index_sets: str) -> None:
    network = copy.deepcopy(fitted(index_sets)).to(device)
    scans = images(6, seed=2)
    select_index_sets(network, [{"image": scan} for scan in lazy(scans)], scans=6, draws=2, seed=1)
    with torch.no_grad():
        trains = network.decompose(lazy(scans), NAMES)
    assert len(trains) == (1 if index_sets == "scan" else 2)
    assert all(core.device.type == device and bool(core.isfinite().all()) for t in trains for core in t.cores)
