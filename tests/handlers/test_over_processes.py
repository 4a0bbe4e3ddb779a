"""Handlers told that they are one of several processes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.transforms import RandAffine
from scans import small_network

from cpic_monai.handlers import AverageGradients, SeedEpoch
from cpic_monai.handlers.share import share_index_sets
from cpic_monai.networks import CPICNet


def drawn(rank: int, monkeypatch: pytest.MonkeyPatch) -> tuple[float, float, int]:
    """Random numbers of an epoch: torch's own, the augmentation's, and those of the loader's workers."""
    monkeypatch.setattr("cpic_monai.handlers.seed.rank", lambda: rank)
    dataset, generator = SimpleNamespace(transform=RandAffine(prob=1.0)), torch.Generator()
    SeedEpoch(3, dataset, generator)(SimpleNamespace(state=SimpleNamespace(epoch=2)))
    return float(torch.rand(())), float(dataset.transform.R.uniform()), generator.initial_seed()


def test_processes_share_all_seeds_but_those_of_augmentation(monkeypatch: pytest.MonkeyPatch) -> None:
    first, again, second = (drawn(rank, monkeypatch) for rank in (0, 0, 1))
    assert first == again
    assert first[0] == second[0]
    assert first[1] != second[1]
    assert first[2] != second[2]


def test_gradients_are_averaged_between_backward_pass_and_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The handler's place in a step, whatever the exchange does."""
    network = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    seen: list[float] = []

    def double(parameters) -> None:
        for parameter in parameters:
            seen.append(parameter.grad.item())
            parameter.grad.mul_(2)

    monkeypatch.setattr("cpic_monai.handlers.gradients.average_gradients", double)
    handler = AverageGradients(optimizer, [network])
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[{"image": torch.ones(1, 1), "label": torch.zeros(1, 1)}],
        epoch_length=1,
        network=network,
        optimizer=optimizer,
        loss_function=torch.nn.MSELoss(),
        decollate=False,
        train_handlers=[handler],
    )
    assert trainer.has_event_handler(handler, IterationEvents.BACKWARD_COMPLETED)
    assert trainer.has_event_handler(handler.equalise, Events.STARTED)
    torch.nn.init.constant_(network.weight, 0.25)
    trainer.run()
    assert seen == [0.5]
    assert network.weight.item() == 0.25 - 2 * 0.5


def seeds_of(network: CPICNet) -> dict[str, list[int]]:
    return {subject: codes.tolist() for subject, codes in network.indices.seeds.items()}


def test_the_lowest_rank_decides_on_a_subject_seen_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    network = small_network(index_sets="scan")
    network.indices.seeds = {"b": torch.tensor([2]), "c": torch.tensor([3])}
    share_index_sets(network)
    assert seeds_of(network) == {"b": [2], "c": [3]}, "nothing to share in one process"
    others = [{"b": torch.tensor([7]), "a": torch.tensor([1])}]
    monkeypatch.setattr("cpic_monai.handlers.share.world_size", lambda: 2)
    monkeypatch.setattr("cpic_monai.handlers.share.gather_objects", lambda mine: [*others, mine])
    share_index_sets(network)
    assert seeds_of(network) == {"a": [1], "b": [7], "c": [3]}
    cohort = small_network()
    share_index_sets(cohort)  # sets of the whole cohort are buffers, equal in all processes
