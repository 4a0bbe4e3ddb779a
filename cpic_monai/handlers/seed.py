"""One seed an epoch, so that a run resumed from its last checkpoint is the run that was never stopped."""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.transforms import Randomizable
from monai.utils import set_determinism

from cpic_monai.distributed import rank


class SeedEpoch:
    """Seed Python, NumPy, torch and the dataset's random transforms with ``seed + epoch`` when an epoch starts.

    An epoch then depends on nothing but the state it starts from: shuffling, augmentation (in loader workers too, whose
    seeds are drawn from torch's generator) and the noise on tabular values.

    Parameters
    ----------
    seed
        Of the run.
    dataset
        A dataset with a ``transform`` attribute, or None.
    generator
        The loader's, from which the seeds of its workers are drawn; None where it has none of its own.

    Notes
    -----
    Of several processes each augments its scans by random numbers of its own; all other random numbers, those of the
    head's noise among them, are the same everywhere, since every process computes the whole batch after the encoder.
    """

    def __init__(self, seed: int, dataset: Any = None, generator: torch.Generator | None = None) -> None:
        self.seed, self.dataset, self.generator = seed, dataset, generator

    def attach(self, engine: Engine) -> None:
        """Run at the start of every epoch, before the loader starts."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed now."""
        seed = self.seed + 100_003 * engine.state.epoch
        set_determinism(seed % (2**32), use_deterministic_algorithms=None)
        own = (seed + 15_485_863 * rank()) % (2**32)
        if self.generator is not None:
            self.generator.manual_seed(own)
        transform = getattr(self.dataset, "transform", None)
        if isinstance(transform, Randomizable):
            transform.set_random_state(seed=own)
