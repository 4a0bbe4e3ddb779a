"""Checkpoints that are never half written, and runs that go on as if never stopped."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.transforms import RandAffine
from torch import nn

from cpic_monai.handlers import BestCheckpoint, LastCheckpoint, SeedEpoch
from cpic_monai.handlers.checkpoint import load_best, save_atomically, save_together


def weights(path: Path) -> list[float]:
    return torch.load(path, weights_only=True)["model"]["weight"].flatten().tolist()


def evaluated(epoch: int, best: int, metric: float = -6.5) -> Engine:
    engine = Engine(lambda e, b: None)
    vars(engine.state).update(epoch=epoch, best_metric_epoch=best, best_metric=metric)
    return engine


def test_saved_on_the_best_epoch_alone(tmp_path: Path) -> None:
    path, network = tmp_path / "models" / "model.pt", nn.Linear(1, 1, bias=False)
    save = BestCheckpoint(path, {"model": network})
    save(evaluated(1, best=-1))
    assert not path.exists()
    for epoch, best, value in ((1, 1, 1.0), (2, 1, 2.0), (3, 3, 3.0), (4, 3, 4.0)):
        nn.init.constant_(network.weight, value)
        save(evaluated(epoch, best))
        assert weights(path) == [float(best)]


def test_a_best_metric_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"epoch 1: config key `key_metric` is NaN on the validation split"):
        BestCheckpoint(tmp_path / "m.pt", {"model": nn.Linear(1, 1)})(evaluated(1, 1, float("nan")))
    assert list(tmp_path.iterdir()) == []


def test_every_object_is_kept_under_its_name(tmp_path: Path) -> None:
    BestCheckpoint(tmp_path / "m.pt", {"model": nn.Linear(2, 1), "encoder": nn.Linear(1, 1)})(evaluated(1, 1))
    assert sorted(torch.load(tmp_path / "m.pt", weights_only=True)) == ["encoder", "model"]


def test_a_save_that_fails_half_way_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, network = tmp_path / "model.pt", nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 1.0)
    save = BestCheckpoint(path, {"model": network})
    save(evaluated(1, 1))

    def half(state, file) -> None:
        Path(file).write_bytes(b"PK half a file")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", half)
    nn.init.constant_(network.weight, 2.0)
    with pytest.raises(OSError, match="No space left"):
        save(evaluated(2, 2))
    assert weights(path) == [1.0]
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]


def test_save_atomically_makes_the_folder(tmp_path: Path) -> None:
    path = save_atomically({"a": torch.ones(1)}, tmp_path / "deep" / "er" / "x.pt")
    assert [file.name for file in path.parent.iterdir()] == ["x.pt"]


def best_of(evaluator: Engine) -> tuple[float, int]:
    state = vars(evaluator.state)
    return state["best_metric"], state["best_metric_epoch"]


class Noisy(torch.utils.data.Dataset):
    """Random augmentation as a loader worker would do it."""

    def __init__(self) -> None:
        self.transform = RandAffine(prob=1.0)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> torch.Tensor:
        shift = torch.as_tensor(self.transform.R.uniform(size=2), dtype=torch.float32)
        return shift + index + random.random() + float(np.random.uniform())  # noqa: NPY002


def train(path: Path, epochs: int, resume: bool = False, seed: int = 7) -> tuple[dict, Engine, list[int]]:
    """A little run with everything random that a run has; returns weights, the evaluator and the epochs it did."""
    torch.manual_seed(0 if not resume else 123)
    network = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    dataset = Noisy()
    done: list[int] = []

    def step(engine: Engine, batch: torch.Tensor) -> None:
        optimizer.zero_grad()
        network(batch + 0.1 * torch.randn_like(batch)).square().mean().backward()
        optimizer.step()

    trainer, evaluator = Engine(step), evaluated(0, best=-1)
    SeedEpoch(seed, dataset).attach(trainer)

    def count(engine: Engine) -> None:
        done.append(engine.state.epoch)
        epoch = engine.state.epoch
        vars(evaluator.state).update(best_metric=-10.0 + epoch, best_metric_epoch=epoch)

    trainer.add_event_handler(Events.EPOCH_COMPLETED, count)
    LastCheckpoint(path, {"model": network, "optimizer": optimizer}, evaluator, resume).attach(trainer)
    loader = torch.utils.data.DataLoader(dataset, batch_size=2, shuffle=True)
    trainer.state.max_epochs, trainer.state.epoch_length = epochs, len(loader)  # as MONAI's workflows do
    trainer.run(loader)
    return network.state_dict(), evaluator, done


def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path: Path) -> None:
    whole, _, _ = train(tmp_path / "whole.pt", 4)
    train(tmp_path / "last.pt", 2)
    resumed, evaluator, done = train(tmp_path / "last.pt", 4, resume=True)
    assert done == [3, 4]
    assert all(torch.isfinite(value).all() for value in whole.values())
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert best_of(evaluator) == (-6.0, 4)


def test_the_best_so_far_is_restored(tmp_path: Path) -> None:
    train(tmp_path / "last.pt", 2)
    network, evaluator = nn.Sequential(nn.Linear(2, 4), nn.Dropout(), nn.Linear(4, 1)), evaluated(0, -1)
    trainer = Engine(lambda e, b: None)
    LastCheckpoint(tmp_path / "last.pt", {"model": network}, evaluator, resume=True).attach(trainer)
    assert (trainer.state.epoch, trainer.state.iteration) == (2, 6)
    assert best_of(evaluator) == (-8.0, 2)


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    first, again, other = (train(tmp_path / "last.pt", 1, seed=s)[0] for s in (7, 7, 8))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_nothing_to_resume_and_files_of_another_kind(tmp_path: Path) -> None:
    _, _, done = train(tmp_path / "none.pt", 1, resume=True)
    assert done == [1]
    torch.save({"model": nn.Linear(1, 1).state_dict()}, tmp_path / "model.pt")
    with pytest.raises(KeyError, match=r"lacks \['optimizer', 'epoch', 'iteration'\]"):
        train(tmp_path / "model.pt", 1, resume=True)


def test_seeds_differ_from_epoch_to_epoch() -> None:
    drawn = []
    seed = SeedEpoch(3)
    for epoch in (1, 2, 1):
        seed(evaluated(epoch, -1))
        drawn.append((random.random(), float(np.random.uniform()), float(torch.rand(()))))  # noqa: NPY002
    assert drawn[0] == drawn[2]
    assert all(a != b for a, b in zip(drawn[0], drawn[1], strict=True))


def test_another_learning_rate_is_said_not_to_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    network = nn.Linear(1, 1)

    def resumed(rate: float) -> torch.optim.Optimizer:
        optimizer = torch.optim.Adam(network.parameters(), lr=rate)
        objects = {"model": network, "optimizer": optimizer}
        LastCheckpoint(tmp_path / "last.pt", objects, resume=True).attach(Engine(lambda e, b: None))
        return optimizer

    LastCheckpoint(tmp_path / "last.pt", {"model": network, "optimizer": resumed(0.01)})(Engine(lambda e, b: None))
    resumed(0.01)
    assert "learning rates" not in caplog.text
    assert resumed(0.001).param_groups[0]["lr"] == 0.01
    assert "goes on with the learning rates of last.pt, [0.01], not with those of the settings, [0.001]" in caplog.text


def test_the_best_network_comes_with_its_ridge(tmp_path: Path) -> None:
    saved = {"model": nn.Linear(1, 1), "ridge": nn.Linear(2, 1)}
    save_together(saved, tmp_path / "model.pt")
    fresh = {"model": nn.Linear(1, 1), "ridge": nn.Linear(2, 1)}
    load_best(tmp_path / "model.pt", fresh)
    assert all(torch.equal(saved[name].weight, fresh[name].weight) for name in saved)
    save_together({"model": saved["model"]}, tmp_path / "older.pt")
    load_best(tmp_path / "older.pt", fresh)
