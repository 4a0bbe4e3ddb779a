"""Re-selection of the index sets between epochs (paper Algorithm 1, lines 2-4)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor
from tqdm import tqdm

from cpic_monai.cross.bank import CohortIndexSets, ScanIndexSets
from cpic_monai.cross.random_voxels import RandomVoxels
from cpic_monai.distributed import broadcast_module, gather_rows, rank, world_size
from cpic_monai.networks import CPICNet

logger = logging.getLogger(__name__)


class SelectIndexSets:
    """Choose new cross indices with the encoder as it is.

    Cohort sets may differ between learning and predicting: one draw an epoch to learn on (a new draw is augmentation,
    too), and several to predict with, over which the choice's noise averages out. List one handler for each, the one
    with ``when="end"`` before the handler that fits basis and head.

    Parameters
    ----------
    network
        Whose index sets are chosen.
    dataset
        Gives items with a lazy scan under ``image`` (no sampled patches).
    every
        Epochs between selections; the first epoch always selects.
    scans
        Scans that choose jointly; a random subset of this size in larger cohorts.
    draws
        Draws of index sets to choose; the network's own number by default.
    seed
        With the epoch number it fixes the choice.
    tol
        Relative residual below which a pivot is not used.
    until
        Last epoch that may select. Later epochs keep the sets, so that the basis and head settle.
    when
        ``start`` or ``end`` of an epoch.
    """

    def __init__(
        self,
        network: CPICNet,
        dataset: Sequence[dict[str, Any]],
        every: int = 4,
        scans: int = 24,
        draws: int | None = None,
        seed: int = 0,
        tol: float = 1e-4,
        until: int | None = None,
        when: str = "start",
    ) -> None:
        if when not in ("start", "end"):
            raise ValueError(f"`when` must be 'start' or 'end' of an epoch, found {when!r}")
        if every < 1 or scans < 1:
            raise ValueError(f"`every` and `scans` must be at least 1, found {every} and {scans}")
        self.network, self.dataset, self.every, self.scans = network, dataset, every, scans
        self.draws, self.seed, self.tol, self.until = draws, seed, tol, until
        self.event = Events.EPOCH_STARTED if when == "start" else Events.EPOCH_COMPLETED

    def attach(self, engine: Engine) -> None:
        """Run at the start of an epoch, before the loader's workers take the indices along, or at its end."""
        engine.add_event_handler(self.event, self)

    def __call__(self, engine: Engine) -> None:
        """Select if this epoch does."""
        past = engine.state.epoch - 1
        if past % self.every or (self.until is not None and engine.state.epoch > max(1, self.until)):
            return
        select_index_sets(
            self.network, self.dataset, scans=self.scans, draws=self.draws, tol=self.tol, seed=self.seed + past
        )


@torch.no_grad()
def select_index_sets(
    network: CPICNet,
    dataset: Sequence[dict[str, Any]],
    *,
    scans: int = 24,
    draws: int | None = None,
    tol: float = 1e-4,
    seed: int = 0,
) -> None:
    """Choose the network's index sets anew; see :class:`SelectIndexSets` for the parameters.

    Of several processes each encodes some of the scans, and all choose from the values of all.
    """
    sets = network.indices
    if isinstance(sets, ScanIndexSets):
        sets.forget(draw=seed)
        return
    if not isinstance(sets, CohortIndexSets | RandomVoxels):
        return
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(dataset), generator=generator)[:scans].tolist()
    images = [dataset[i]["image"] for i in chosen]
    source = network.source(images)
    # With fewer scans than processes each encodes all of them.
    dealt = 1 < world_size() <= len(images)
    mine = network.source(images[rank() :: world_size()]) if dealt else source
    training = network.training
    network.eval()
    draws = sets.draws if draws is None else draws
    wanted = sets.seeds_wanted
    candidates = network.seeds(source, generator, max(network.rank, -(-2 * wanted // len(images))))
    places = [torch.randint(candidates.numel(), (wanted,), generator=generator) for _ in range(draws)]
    seeds = [candidates.flatten()[place] for place in places]
    with tqdm(desc="select voxels", unit="voxel", total=None, leave=False, disable=rank() > 0) as bar:

        def evaluate(codes: Tensor) -> Tensor:
            bar.update(codes.shape[1])
            values = network.encode(mine.patches(network.grid.decode(codes[0])))
            return gather_rows(values, "voxel selection") if dealt else values

        sets.select(evaluate, seeds, generator, tol)
    broadcast_module(sets)
    network.train(training)
    bonds = (
        f"; mean bond rank {sets.alive.sum(-1).float().mean().item():.1f}" if isinstance(sets, CohortIndexSets) else ""
    )
    logger.info(f"selected {len(sets.codes())} voxels in {draws} draw(s) on {len(chosen)} scans{bonds}")
