"""Training that stops when its time is over."""

import time

import pytest
from ignite.engine import Engine, Events

from cpic_monai.handlers import TrainingTimeLimit


def test_stops_after_the_limit_and_counts_from_the_start_of_training() -> None:
    engine = Engine(lambda engine, batch: time.sleep(0.05))
    limit = TrainingTimeLimit(1)
    limit.attach(engine)
    limit.start_time -= 100  # a long preparation before training does not count
    finished = []
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: finished.append(engine.state.epoch))
    state = engine.run(range(10), max_epochs=100)
    assert 1 <= len(finished) < 100
    assert 5 < state.iteration < 1000


@pytest.mark.parametrize(("limit", "error"), [(0, ValueError), (1.5, TypeError)])
def test_no_time_is_refused(limit: float, error: type[Exception]) -> None:
    with pytest.raises(error):
        TrainingTimeLimit(limit)
