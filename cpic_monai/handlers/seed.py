"""One seed an epoch, so that a run resumed from its last checkpoint is the run that was never stopped."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine, Events
from monai.transforms import Randomizable
from monai.utils import set_determinism


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
    """

    def __init__(self, seed: int, dataset: Any = None) -> None:
        self.seed, self.dataset = seed, dataset

    def attach(self, engine: Engine) -> None:
        """Run at the start of every epoch, before the loader starts."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed now."""
        seed = self.seed + 100_003 * engine.state.epoch
        set_determinism(seed % (2**32), use_deterministic_algorithms=None)
        transform = getattr(self.dataset, "transform", None)
        if isinstance(transform, Randomizable):
            transform.set_random_state(seed=seed % (2**32))
