"""Training for a given time: methods that differ in speed are compared at equal seconds, not at equal epochs."""

from __future__ import annotations

import logging
import time
from typing import Any

from ignite.engine import Engine, Events

from cpic_monai.distributed import gather_objects

logger = logging.getLogger(__name__)


class TrainingTimeLimit:
    """End training after a number of seconds; a run that was resumed goes on counting where it was.

    Ignite's ``TimeLimit`` counts from its construction, anew in a resumed run, and each process by its own clock, so
    that one of several may wait for another that has stopped. Here the first process decides for all.

    Training ends after the step that passes the limit. An epoch that it cuts off is not validated; checkpoints of
    the epochs before it stay.

    Parameters
    ----------
    limit_sec
        Whole seconds of wall-clock time, at least 1. ``None``: no limit, seconds are counted alone.

    Raises
    ------
    TypeError, ValueError
        If the limit is no whole number, or not positive.
    """

    #: A ``last.pt`` of before seconds were kept is resumed, too.
    optional = True

    def __init__(self, limit_sec: int | None) -> None:
        if limit_sec is not None and (isinstance(limit_sec, bool) or not isinstance(limit_sec, int)):
            raise TypeError(f"`time_limit` must be whole seconds, found {limit_sec!r}")
        if limit_sec is not None and limit_sec < 1:
            raise ValueError(f"`time_limit` must be at least 1 second, found {limit_sec}")
        self.limit_sec = limit_sec
        self._before = 0.0
        self._started: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds of training, those before a run was resumed included."""
        return self._before + (0.0 if self._started is None else time.monotonic() - self._started)

    def attach(self, engine: Engine) -> None:
        """Stop this engine."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.STARTED | Events.ITERATION_COMPLETED, self)

    def _start(self) -> None:
        self._started = time.monotonic()

    def __call__(self, engine: Engine) -> None:
        """Stop if the time is over."""
        if self.limit_sec is not None and gather_objects(self.seconds >= self.limit_sec)[0]:
            logger.info(f"`time_limit`: training ends after {self.limit_sec} seconds, in epoch {engine.state.epoch}")
            engine.terminate()

    def state_dict(self) -> dict[str, Any]:
        """Seconds until now."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Count on from there."""
        self._before = float(state["seconds"])
