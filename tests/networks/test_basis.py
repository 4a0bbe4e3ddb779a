"""The canonical basis against kernel PCA of the dense tensors."""

from __future__ import annotations

import pytest
import torch
from random_trains import change_gauge, random_train

from cpic_monai.networks import CanonicalBasis
from cpic_monai.networks.basis import mean_inner
from cpic_monai.tensor_train import TensorTrain

SIZES = (3, 2, 4)


def trains(batch: int, seed: int, draws: int = 1) -> list[TensorTrain]:
    return [random_train(SIZES, 3, 2, batch=batch, seed=seed + 100 * d) for d in range(draws)]


def fitted(rank: int = 4, draws: int = 1) -> tuple[CanonicalBasis, list[TensorTrain], torch.Tensor]:
    basis, scans = CanonicalBasis(rank), trains(9, seed=1, draws=draws)
    return basis, scans, basis.fit(scans)


@pytest.mark.parametrize("draws", [1, 3])
def test_features_are_those_of_dense_pca(draws: int) -> None:
    basis, scans, features = fitted(draws=draws)
    new = trains(5, seed=2, draws=draws)
    # The mean of inner products over draws is the inner product of the stacked, scaled draws.
    dense, other = (torch.cat([t.full().flatten(1) for t in group], 1) / draws**0.5 for group in (scans, new))
    mean = dense.mean(0)
    _, sigma, vh = torch.linalg.svd(dense - mean, full_matrices=False)
    scale = 9**0.5 / sigma[:4]
    expected = (dense - mean) @ vh[:4].T * scale
    sign = torch.sign((expected * features).sum(0))
    torch.testing.assert_close(features, expected * sign, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(basis(scans), features, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(basis(new), (other - mean) @ vh[:4].T * scale * sign, rtol=1e-7, atol=1e-8)


def test_features_are_white_over_the_basis_scans() -> None:
    _, _, features = fitted()
    torch.testing.assert_close(features.mean(0), torch.zeros(4).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(features.T @ features / 9, torch.eye(4).double(), rtol=0, atol=1e-9)


def test_no_more_directions_than_scans_carry() -> None:
    basis = CanonicalBasis(6)
    features = basis.fit(trains(4, seed=1))  # 4 scans, centred: 3 directions
    torch.testing.assert_close(features.var(0, unbiased=False)[:3], torch.ones(3).double())
    assert not features[:, 3:].any()


def test_indifferent_to_the_gauge() -> None:
    basis, scans, features = fitted()
    turned = [change_gauge(t) for t in scans]
    torch.testing.assert_close(basis(turned), features, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(CanonicalBasis(4).fit(turned), features, rtol=1e-6, atol=1e-7)


def test_a_refit_turns_towards_the_old_features() -> None:
    basis, scans, features = fitted()
    order = torch.tensor([3, 1, 8, 0, 2, 5, 4, 7, 6])
    torch.testing.assert_close(basis.fit([t[order] for t in scans]), features[order], rtol=1e-7, atol=1e-8)


def test_equal_data_give_equal_signs() -> None:
    _, _, features = fitted()
    largest = features.gather(0, features.abs().argmax(0, keepdim=True))
    assert bool((largest > 0).all())


def test_dual_directions_come_first() -> None:
    basis, scans, _ = fitted()
    products = mean_inner(scans, scans)
    centred = products - products.mean(0) - products.mean(1, keepdim=True) + products.mean()
    dual = torch.randn(9, 2, dtype=torch.float64)
    features = basis.fit(scans, dual, principal=0.5)
    torch.testing.assert_close(features[:, :2], centred @ dual, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(features[:, 2:].std(0, unbiased=False), torch.full((2,), 0.5).double())
    torch.testing.assert_close(basis(scans), features, rtol=1e-9, atol=1e-9)
    assert basis.fit(scans, torch.randn(9, 7).double()).shape == (9, 4)


def test_before_the_first_fit_features_are_zero() -> None:
    features = CanonicalBasis(4)(trains(2, seed=1))
    assert features.shape == (2, 4)
    assert not features.any()


@pytest.mark.parametrize("draws", [1, 2])
def test_state_dict_round_trip(draws: int) -> None:
    basis, _, _ = fitted(draws=draws)
    new = trains(3, seed=2, draws=draws)
    other = CanonicalBasis(4)
    other.fit(trains(2, seed=5, draws=3))  # another number of scans and draws before
    other.load_state_dict(basis.state_dict())
    assert other.scans == 9
    assert torch.equal(other(new), basis(new))
    other.load_state_dict(CanonicalBasis(4).state_dict())
    assert other.scans == 0
    assert other.trains == []


def test_a_part_of_a_checkpoint_leaves_the_basis() -> None:
    basis, _, _ = fitted()
    new = trains(3, seed=2)
    before = basis(new)
    network = torch.nn.ModuleDict({"encoder": torch.nn.Linear(1, 1), "basis": basis})
    network.load_state_dict({"encoder.weight": torch.ones(1, 1), "encoder.bias": torch.ones(1)}, strict=False)
    assert torch.equal(basis(new), before)


def test_update_keeps_the_most_recent_scans() -> None:
    basis = CanonicalBasis(2, memory=5)
    batches = [trains(2, seed=s) for s in range(4)]
    for count, batch in zip((2, 4, 5, 5), batches, strict=True):
        basis.update(batch)
        assert basis.scans == count
    recent = torch.cat([b[0].full() for b in batches])[-5:]
    torch.testing.assert_close(basis.trains[0].full(), recent, rtol=1e-12, atol=1e-12)


def test_the_basis_is_constant_in_the_backward_pass() -> None:
    basis, scans, _ = fitted()
    leaves = [c.requires_grad_() for c in scans[0].cores]
    grads = torch.autograd.grad(basis([TensorTrain(tuple(leaves))]).square().sum(), leaves)
    assert all(torch.isfinite(g).all() and g.any() for g in grads)
    assert not any(buffer.requires_grad for buffer in basis.buffers())


def test_clear_and_refusals() -> None:
    basis, scans, _ = fitted()
    with pytest.raises(ValueError, match="2 draws of index sets meet a basis of 1"):
        basis(scans * 2)
    basis.clear()
    assert basis.scans == 0
    assert [name for name in basis.state_dict() if name.startswith("core_")] == []
    with pytest.raises(ValueError, match="found rank 0"):
        CanonicalBasis(0)
