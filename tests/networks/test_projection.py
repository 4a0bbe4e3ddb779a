"""C-PIC with learned tensor-train weights in the place of the canonical basis."""

from __future__ import annotations

import pytest
import torch
from scans import images, small_network

from cpic_monai.networks import CPICNet, TensorTrainRegression


@pytest.mark.parametrize("index_sets", ["cohort", "tangent", "scan", "every_voxel", "random_voxels"])
def test_joint_training_moves_the_weights(index_sets: str) -> None:
    network = small_network(projection="trl", index_sets=index_sets, moving_basis=True, noise=0.0).train()
    network(images(4)).square().sum().backward()
    assert isinstance(network.basis, TensorTrainRegression)
    assert bool(network.basis.started)
    assert all(p.grad is not None and bool(p.grad.any()) for p in network.basis.parameters())
    assert any(bool(p.grad.any()) for p in network.encoder.parameters() if p.grad is not None)
    other = small_network(projection="trl", index_sets=index_sets)
    other.load_state_dict(network.state_dict())
    torch.testing.assert_close(other(images(2)), network.eval()(images(2)))


def test_features_start_as_those_of_the_basis() -> None:
    basis, learned = small_network(), small_network(projection="trl", trl_rank=64)
    learned.encoder.load_state_dict(basis.encoder.state_dict())
    trains = basis.decompose(images(6))
    expected = basis.basis.fit(trains)
    torch.testing.assert_close(learned.basis.fit(trains), expected, rtol=1e-3, atol=1e-3)
    new = images(3, seed=1)
    torch.testing.assert_close(learned(new).shape, basis(new).shape)
    features = learned.basis(basis.decompose(new))
    torch.testing.assert_close(features, basis.basis(basis.decompose(new)), rtol=1e-3, atol=1e-3)


def test_parameter_count_of_the_paper_network_with_trl() -> None:
    """16^3 voxels, interleaved: 12 modes of 2, rank 10; the paper's network has 87,429 without."""
    network = CPICNet((16, 16, 16), projection="trl")
    weights = 10 * (1 + 2 * (1 * 2 + 2 * 4 + 4 * 8 + 8 * 10 + 7 * 10 * 10 + 10 * 16))
    assert sum(p.numel() for p in network.parameters()) == 87_429 + weights


def test_unknown_projection() -> None:
    with pytest.raises(ValueError, match="projection 'none'"):
        small_network(projection="none")
