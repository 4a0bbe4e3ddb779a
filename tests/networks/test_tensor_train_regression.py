"""Learned tensor-train weights in the place of the canonical basis."""

from __future__ import annotations

import math

import pytest
import torch
from random_trains import random_train

from cpic_monai.grid import IndexGrid
from cpic_monai.networks import CanonicalBasis, TensorTrainRegression
from cpic_monai.networks.tensor_train_regression import weighted_sum
from cpic_monai.tensor_train import TensorTrain

SIZES, CHANNELS = (2, 2, 3, 2, 2), 3


def scans(batch: int = 7, seed: int = 0, rank: int = 2) -> TensorTrain:
    return random_train(SIZES, rank, CHANNELS, batch, seed)


def full_rank() -> TensorTrainRegression:
    return TensorTrainRegression(SIZES, CHANNELS, 1000, 4)


def test_features_are_inner_products_with_dense_weights() -> None:
    layer, train = TensorTrainRegression(SIZES, CHANNELS, 3, 4), scans()
    torch.nn.init.normal_(layer.bias)
    dense = layer.weights().full().flatten(1).double()
    expected = train.full().flatten(1) @ dense.T + layer.bias.double()
    torch.testing.assert_close(layer([train]), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer([train, train]), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("sizes", "channels", "rank", "features", "count"),
    [
        # bonds 1 2 4 4 3 and the channels: 1*2*2 + 2*2*4 + 4*3*4 + 4*2*4 + 4*2*3 a feature, and its bias
        (SIZES, CHANNELS, 4, 5, 5 * (4 + 16 + 48 + 32 + 24 + 1)),
        ((6,), 3, 10, 2, 2 * (6 * 3 + 1)),
        # 32 x 128 x 128, interleaved: 19 modes of 2, bonds 1 2 4 8 10 ... 10, 16 channels, 10 features
        (IndexGrid((32, 128, 128)).mode_sizes, 16, 10, 10, 10 * (4 + 16 + 64 + 160 + 14 * 200 + 320 + 1)),
    ],
)
def test_parameter_count(sizes: tuple[int, ...], channels: int, rank: int, features: int, count: int) -> None:
    layer = TensorTrainRegression(sizes, channels, rank, features)
    ranks = [1, *(min(rank, math.prod(sizes[:k]), math.prod(sizes[k:]) * channels) for k in range(1, len(sizes)))]
    formula = features * (1 + sum(r * n * s for r, n, s in zip(ranks, sizes, [*ranks[1:], channels], strict=True)))
    assert sum(p.numel() for p in layer.parameters()) == formula == count


def test_at_full_rank_it_starts_as_the_canonical_basis() -> None:
    train, new = scans(), scans(3, seed=1)
    basis, layer = CanonicalBasis(4), full_rank()
    expected = basis.fit([train])
    torch.testing.assert_close(layer.fit([train]), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer([new]), basis([new]), rtol=1e-4, atol=1e-4)


def test_directions_of_a_regression_come_first() -> None:
    train, dual = scans(), torch.randn(7, 2, dtype=torch.float64)
    basis, layer = CanonicalBasis(4), full_rank()
    layer.fit([train])
    expected = basis.fit([train], dual, 2.0)
    torch.testing.assert_close(layer.fit([train], dual, 2.0), expected, rtol=1e-4, atol=1e-3)


def test_a_direction_of_low_rank_survives_truncation() -> None:
    """Scans that are multiples of one train of rank 2 span directions of rank 2."""
    one = scans(1)
    scale = torch.linspace(0.5, 2, 6, dtype=torch.float64)
    train = TensorTrain((one.cores[0] * scale[:, None, None, None], *(c.expand(6, -1, -1, -1) for c in one.cores[1:])))
    layer = TensorTrainRegression(SIZES, CHANNELS, 2, 1)
    found = layer.fit([train])
    expected = (scale - scale.mean()) / scale.std(correction=0)
    torch.testing.assert_close(found[:, 0].abs(), expected.abs(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 3, 6, 7])
def test_weighted_sums(count: int) -> None:
    train, weights = scans(count), torch.randn(count, 2, dtype=torch.float64)
    expected = torch.einsum("jf,j...->f...", weights, train.full())
    torch.testing.assert_close(weighted_sum(train, weights, 100).full(), expected)


def test_it_starts_once_and_then_learns() -> None:
    torch.manual_seed(0)
    layer, train = TensorTrainRegression(SIZES, CHANNELS, 3, 2, dropout=0.1), scans(30)
    layer.update([train])
    started = [c.detach().clone() for c in layer.cores]
    layer.update([scans(30, seed=5)])
    layer.fit([scans(30, seed=6)])
    assert all(torch.equal(a, b) for a, b in zip(started, layer.cores, strict=True))
    target = train.full().flatten(1) @ scans(1, seed=9).full().flatten(1).T
    target = target / target.std()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    layer.train()
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = (layer([train])[:, :1] - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-20:]) / 20 < 0.5 * losses[0]


def test_bonds_that_the_first_scans_leave_empty_can_learn() -> None:
    layer = TensorTrainRegression(SIZES, CHANNELS, 6, 1)
    layer.fit([scans(2, rank=1)])
    layer([scans(3, seed=2)]).square().sum().backward()
    empty = [core for core in layer.cores if core.shape[1] > 2]
    assert len(empty) == 3
    for core in empty:
        assert not bool(core[:, 2:].any())
        assert bool(core.grad[:, 2:].any())


def test_its_state_tells_whether_it_has_started() -> None:
    first, second, train = full_rank(), full_rank(), scans()
    first.fit([train])
    second.load_state_dict(first.state_dict())
    assert bool(second.started)
    assert torch.equal(second([train]), first([train]))
    assert torch.equal(second.fit([scans(seed=3)]), first([scans(seed=3)]))


def test_refuses_empty_sizes() -> None:
    with pytest.raises(ValueError, match="rank 0"):
        TensorTrainRegression(SIZES, CHANNELS, 0, 4)


@pytest.mark.parametrize("batch", [4, 8])
def test_features_beyond_the_first_batchs_rank_can_learn(batch: int) -> None:
    """Centred scans have fewer directions than there are features here; over many modes their gradient would vanish."""
    sizes = (2,) * 17
    layer, train = TensorTrainRegression(sizes, 4, 6, 10), random_train(sizes, 3, 4, batch, 0)
    layer.update([train])
    still = layer([train]).std(0) < 1e-6
    assert still.sum() >= 10 - (batch - 1)
    optimizer = torch.optim.RAdam(layer.parameters(), lr=1e-2)
    target = torch.randn(batch, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for _ in range(100):
        optimizer.zero_grad()
        (layer([train]) - target).square().mean().backward()
        optimizer.step()
    assert (layer([train]).std(0) > 1e-3).all()
