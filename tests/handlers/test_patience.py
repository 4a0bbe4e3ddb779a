"""Training that stops when it gets no better, in one run or in several."""

import pytest
from ignite.engine import Engine, Events

from cpic_monai.handlers import StopWithoutBetter


def run(best: dict[int, int], patience: int, max_epochs: int, done: int = 0) -> tuple[int, int]:
    """Epochs that a trainer is at in the end, and trained; ``best``: epoch to best epoch so far, from then on."""
    validator, trainer = Engine(lambda engine, batch: None), Engine(lambda engine, batch: None)
    trained = []

    @trainer.on(Events.EPOCH_COMPLETED)
    def validate(engine: Engine) -> None:
        trained.append(engine.state.epoch)
        validator.state.best_metric_epoch = max(b for e, b in best.items() if e <= engine.state.epoch)

    trainer.state.max_epochs, trainer.state.epoch_length = max_epochs, 2
    trainer.state.epoch, trainer.state.iteration = done, 2 * done
    validator.state.best_metric_epoch = max(b for e, b in best.items() if e <= done)
    StopWithoutBetter(validator, patience).attach(trainer)
    trainer.run(range(2))
    return trainer.state.epoch, len(trained)


def test_stops_so_many_epochs_after_the_best() -> None:
    assert run({0: -1, 1: 1, 2: 2}, patience=3, max_epochs=100) == (5, 5)


def test_a_metric_that_is_never_known_stops_too() -> None:
    assert run({0: -1}, patience=4, max_epochs=100) == (4, 4)


def test_trains_on_while_it_gets_better() -> None:
    assert run({0: -1, **{k: k for k in range(1, 10)}}, patience=1, max_epochs=9) == (9, 9)


def test_the_count_goes_on_where_a_run_is_resumed() -> None:
    best = {0: -1, 1: 1}
    assert run(best, patience=4, max_epochs=100, done=3) == (5, 2)


def test_a_run_that_was_stopped_is_not_trained_on() -> None:
    best = {0: -1, 1: 1}
    assert run(best, patience=4, max_epochs=100, done=5)[1] == 0
    assert run(best, patience=6, max_epochs=100, done=5) == (7, 2), "unless it may go on for longer"


def test_no_patience_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 epoch, found 0"):
        StopWithoutBetter(Engine(lambda engine, batch: None), 0)
