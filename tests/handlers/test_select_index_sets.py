"""Re-selection of index sets: deterministic by seed, when it is due."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from planted import planted_items
from scans import small_network

from cpic_monai.handlers import SelectIndexSets
from cpic_monai.handlers.select import select_index_sets
from cpic_monai.networks import CPICNet

ITEMS = planted_items(4)


def run(handler: SelectIndexSets, epochs: int) -> list[bool]:
    """Which epochs changed the index sets."""
    changed, before = [], handler.network.indices.codes()
    for epoch in range(1, epochs + 1):
        handler(SimpleNamespace(state=SimpleNamespace(epoch=epoch)))
        now = handler.network.indices.codes()
        changed.append(not torch.equal(before, now))
        before = now
    return changed


def select(seed: int, network: CPICNet | None = None, **settings) -> torch.Tensor:
    torch.manual_seed(0)
    network = network or small_network()
    select_index_sets(network, ITEMS, seed=seed, **settings)
    return network.indices.codes()


def test_the_seed_decides() -> None:
    assert torch.equal(select(1), select(1))
    assert not torch.equal(select(1), select(2))


def test_the_global_random_state_has_no_part_in_it() -> None:
    first, second = small_network(), small_network()
    second.load_state_dict(first.state_dict())
    torch.manual_seed(1)
    select_index_sets(first, ITEMS, seed=4)
    torch.manual_seed(2)
    select_index_sets(second, ITEMS, seed=4)
    assert torch.equal(first.indices.codes(), second.indices.codes())


def test_draws_and_mode_of_the_network() -> None:
    network = small_network().train()
    before = len(network.indices.codes())
    select_index_sets(network, ITEMS, draws=3, scans=2)
    assert network.training
    assert network.indices.draws == 3
    assert len(network.indices.codes()) == 3 * before
    assert bool(network.indices.alive.any(-1).all())
    assert not network.grid.inside(network.indices.codes()).logical_not().any()


@pytest.mark.parametrize(
    ("settings", "due"),
    [
        ({"every": 1}, [True, True, True, True, True]),
        ({"every": 2}, [True, False, True, False, True]),
        ({"every": 1, "until": 2}, [True, True, False, False, False]),
        ({"every": 1, "until": 0}, [True, False, False, False, False]),
    ],
    ids=str,
)
def test_epochs_that_select(settings: dict[str, int], due: list[bool]) -> None:
    assert run(SelectIndexSets(small_network(), ITEMS, scans=2, **settings), 5) == due


def test_scan_mode_forgets_its_seeds() -> None:
    network = small_network(index_sets="scan")
    network.indices.seeds = {"a": torch.tensor([1])}
    select_index_sets(network, ITEMS)
    assert not network.indices.seeds
    every = small_network(index_sets="every_voxel")
    select_index_sets(every, ITEMS)  # nothing to choose
    assert len(every.indices.codes()) == 256


def test_settings_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="found 0 and 3"):
        SelectIndexSets(small_network(), ITEMS, every=0, scans=3)
