"""The end of a training that gets no better."""

from __future__ import annotations

import logging

from ignite.engine import Engine, Events

logger = logging.getLogger(__name__)


class StopWithoutBetter:
    """Stop the trainer once its validator's key metric had no new best for some epochs.

    MONAI's ``EarlyStopHandler`` counts by itself, and anew in a run that is resumed. This one asks the validator which
    epoch was its best, and :class:`LastCheckpoint` restores that: a run that was stopped and resumed is not trained on
    unless ``patience`` was raised.

    Parameters
    ----------
    validator
        A MONAI evaluator with a key metric.
    patience
        Epochs without a new best, at least 1. Epochs that were not validated count too.

    Raises
    ------
    ValueError
        If ``patience`` is below 1.
    """

    def __init__(self, validator: Engine, patience: int) -> None:
        if patience < 1:
            raise ValueError(f"`patience` must be at least 1 epoch, found {patience}; null never stops early")
        self.validator, self.patience = validator, patience

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, after validation and after what resumes it."""
        engine.add_event_handler(Events.STARTED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Stop if the last ``patience`` epochs brought nothing."""
        best = max(0, getattr(self.validator.state, "best_metric_epoch", 0))
        if engine.state.epoch - best >= self.patience:
            logger.info(f"epoch {engine.state.epoch}: no better since epoch {best}, so training ends (`patience`)")
            engine.terminate()
