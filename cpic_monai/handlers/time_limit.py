"""Training for a given time: methods that differ in speed are compared at equal seconds, not at equal epochs."""

from __future__ import annotations

import time

from ignite.engine import Engine, Events
from ignite.handlers import TimeLimit


class TrainingTimeLimit(TimeLimit):
    """Ignite's ``TimeLimit``, attached as MONAI attaches handlers, its clock started when training starts.

    Training ends after the step that passes the limit. An epoch that it cuts off is not validated; checkpoints of
    the epochs before it stay.

    Parameters
    ----------
    limit_sec
        Whole seconds of wall-clock time, at least 1.

    Raises
    ------
    TypeError, ValueError
        If the limit is no whole number, or not positive.
    """

    def attach(self, engine: Engine) -> None:
        """Stop this engine."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def _start(self) -> None:
        self.start_time = time.time()
