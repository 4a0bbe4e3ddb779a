"""Training that stops when its time is over."""

import time

import pytest
from ignite.engine import Engine, Events

from cpic_monai.handlers import TrainingTimeLimit


def limited(limit: TrainingTimeLimit) -> tuple[Engine, list[int]]:
    """An engine of slow steps, and the epochs that it finishes."""
    engine = Engine(lambda engine, batch: time.sleep(0.05))
    limit.attach(engine)
    finished: list[int] = []
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: finished.append(engine.state.epoch))
    return engine, finished


def test_stops_after_the_limit_and_counts_from_the_start_of_training() -> None:
    limit = TrainingTimeLimit(1)
    engine, finished = limited(limit)
    assert limit.seconds == 0, "a long preparation before training does not count"
    state = engine.run(range(10), max_epochs=100)
    assert 1 <= len(finished) < 100
    assert 5 < state.iteration < 1000


def test_a_resumed_run_counts_on() -> None:
    limit = TrainingTimeLimit(1)
    limit.load_state_dict({"seconds": 0.7})
    engine, _ = limited(limit)
    assert 1 <= engine.run(range(10), max_epochs=100).iteration < 10
    assert limit.state_dict()["seconds"] >= 1
    limit = TrainingTimeLimit(1)
    limit.load_state_dict({"seconds": 1.0})
    engine, _ = limited(limit)
    assert engine.run(range(10), max_epochs=100).iteration == 0, "its time was over before"


def test_without_a_limit_seconds_are_counted_alone() -> None:
    limit = TrainingTimeLimit(None)
    engine, finished = limited(limit)
    engine.run(range(2), max_epochs=2)
    assert finished == [1, 2]
    assert limit.state_dict()["seconds"] > 0.1


def test_the_first_process_decides_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def others(mine: bool) -> list[bool]:
        asked.append(mine)
        return [len(asked) > 4, mine]  # at the start, and after three steps

    monkeypatch.setattr("cpic_monai.handlers.time_limit.gather_objects", others)
    engine, _ = limited(TrainingTimeLimit(1000))
    assert engine.run(range(10)).iteration == 4
    assert asked == [False] * 5


@pytest.mark.parametrize(("limit", "error"), [(0, ValueError), (1.5, TypeError), (True, TypeError)])
def test_no_time_is_refused(limit: float, error: type[Exception]) -> None:
    with pytest.raises(error, match="`time_limit`"):
        TrainingTimeLimit(limit)  # type: ignore[arg-type]
