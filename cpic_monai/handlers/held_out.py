"""The error at held-out voxels as a curve of its own, beside the training loss that it is a term of."""

from __future__ import annotations

from ignite.engine import Engine
from ignite.metrics import Average
from ignite.metrics.metric import SingleEpochRunningBatchWise

from cpic_monai.inferers import LowRankTerm


class HeldOutCurve:
    """Log the error's mean over an epoch as the trainer's metric ``held_out_error``.

    Parameters
    ----------
    term
        Of the recipe that trains; with a weight of 0 there is no error and nothing is logged.
    """

    def __init__(self, term: LowRankTerm) -> None:
        self.term = term

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        if self.term.weight:
            # Up to date after every step, so that it does not matter which handler comes first when an epoch ends.
            mean = Average(output_transform=lambda _: self.term.last)
            mean.attach(engine, "held_out_error", SingleEpochRunningBatchWise())
