"""Selection for the control of cross-approximation: random voxels of the foreground of several scans."""

from __future__ import annotations

import torch
from scans import SHAPE, images, lazy, small_network

from cpic_monai.handlers.select import select_index_sets


def test_random_voxels_lie_in_the_foreground_of_the_scans() -> None:
    network, image = small_network(index_sets="random_voxels", rank=2, channels=1), images(6)
    assert network.indices.count < 75, "as many voxels as the foreground holds, at most"
    dataset = [{"image": scan} for scan in lazy(image)]
    select_index_sets(network, dataset, scans=4, draws=2, seed=3)
    d, h, w = network.voxels().T
    assert len(d) == 2 * network.indices.count
    assert bool((image[:, 0, d, h, w] > 0).all())
    first = network.indices.codes()
    select_index_sets(network, dataset, scans=4, draws=2, seed=3)
    assert torch.equal(network.indices.codes(), first)
    select_index_sets(network, dataset, scans=4, draws=2, seed=4)
    assert not torch.equal(network.indices.codes(), first)


def test_cohort_index_sets_are_chosen_as_before() -> None:
    """As many seeds as the rank; the number of scans does not matter."""
    network = small_network()
    assert network.indices.seeds_wanted == network.rank
    select_index_sets(network, [{"image": scan} for scan in lazy(images(5))], scans=5, seed=1)
    assert bool((network.voxels() < torch.tensor(SHAPE)).all())
