"""Basis and head fitted on frozen features learn what is planted in the scans."""

from __future__ import annotations

import pytest
import torch
from planted import planted_batch
from scans import small_network

from cpic_monai.batches import PrepareVisits
from cpic_monai.handlers import FitBasisAndHead
from cpic_monai.handlers.fit import collect_trains, tune_ridge
from cpic_monai.losses import PinballLoss
from cpic_monai.networks import CPICNet, LeaveOneOutRidge, ScanResNet
from cpic_monai.networks.basis import mean_inner

SCHEDULE = {"steps": 150, "learning_rate": 1e-2, "ridge_steps": 10}


def r2(network: CPICNet) -> float:
    image, label, args, kwargs = PrepareVisits()(planted_batch(network, 20, seed=50))
    assert label is not None
    with torch.no_grad():
        median = network(image, *args, **kwargs)[:, 1:2]
    return 1 - float((median - label).square().sum() / (label - label.mean()).square().sum())


@pytest.mark.parametrize("with_ridge", [True, False])
def test_held_out_scans_are_predicted(with_ridge: bool) -> None:
    network = small_network(tabular_hidden=(8, 4), joint_hidden=(16, 8))
    assert r2(network) < 0.1
    loader = [planted_batch(network, 10, seed=s) for s in (1, 2, 3)]
    encoder = {k: v.clone() for k, v in network.encoder.state_dict().items()}
    fit = FitBasisAndHead(network, loader, PinballLoss(), SCHEDULE, LeaveOneOutRidge() if with_ridge else None)
    fit()
    assert network.basis.scans == 30
    assert r2(network) > 0.5
    assert all(torch.equal(v, encoder[k]) for k, v in network.encoder.state_dict().items())
    assert all(p.grad is None for p in network.encoder.parameters())
    assert not network.training


def test_equal_seeds_give_equal_heads() -> None:
    network = small_network()
    loader = [planted_batch(network, 6, seed=1)]
    weights = []
    for state in (5, 6):
        torch.manual_seed(state)
        network.basis.clear()
        schedule = {"steps": 3, "ridge_steps": 2}
        FitBasisAndHead(network, loader, PinballLoss(), schedule, LeaveOneOutRidge(), seed=3)()
        weights.append(torch.nn.utils.parameters_to_vector(network.head.parameters()).detach().clone())
        assert torch.initial_seed() == state, "the run's own random numbers go on as they were"
    assert torch.equal(*weights)


def test_without_a_schedule_only_the_basis_is_fitted() -> None:
    network = small_network().train()
    head = torch.nn.utils.parameters_to_vector(network.head.parameters()).detach().clone()
    FitBasisAndHead(network, [planted_batch(network, 4)], PinballLoss())()
    assert network.basis.scans == 4
    assert network.training
    assert torch.equal(torch.nn.utils.parameters_to_vector(network.head.parameters()), head)


def test_weights_that_learn_by_their_gradient_cost_no_pass_over_the_scans() -> None:
    seen = []

    class Loader(list):
        def __iter__(self):
            seen.append(len(self))
            return super().__iter__()

    resnet = ScanResNet((16, 16, 16), depth=10, widen=0.125, conv1_size=3)
    FitBasisAndHead(resnet, Loader([{"image": torch.zeros(1, 1, 16, 16, 16)}]), PinballLoss())()
    assert seen == []
    network = small_network(projection="trl")
    loader = Loader([planted_batch(network, 4)])
    FitBasisAndHead(network, loader, PinballLoss())()
    assert seen == [1], "weights that no batch has started yet are started"
    FitBasisAndHead(network, loader, PinballLoss())()
    assert seen == [1]


def test_collected_rows_count_scans_over_batches() -> None:
    network = small_network()
    batches = [planted_batch(network, 2, seed=1), planted_batch(network, 3, seed=2)]
    trains, rows = collect_trains(network, batches, torch.device("cpu"))
    assert trains[0].batch == 5
    assert rows["scan_index"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert torch.equal(rows["label"], torch.cat([b["label"] for b in batches]))
    with pytest.raises(ValueError, match="the loader is empty"):
        collect_trains(network, [], torch.device("cpu"))


def test_tuning_lowers_the_leave_one_out_error_of_a_copy() -> None:
    network = small_network()
    trains, rows = collect_trains(network, [planted_batch(network, 10)], torch.device("cpu"))
    gram = mean_inner(trains, trains)
    visits = (rows["tabular"], rows["scan_index"], rows["label"])
    ridge = LeaveOneOutRidge()
    tuned = tune_ridge(ridge, gram, *visits, steps=20)

    def error(which: LeaveOneOutRidge) -> float:
        return (which(gram, *visits) - rows["label"]).square().mean().item()

    assert error(tuned) < error(ridge)
    assert ridge.log_penalty.item() == LeaveOneOutRidge().log_penalty.item()
