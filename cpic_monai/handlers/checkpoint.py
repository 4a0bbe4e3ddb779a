"""Checkpoints that are never half written: the best network, and all that a run needs to go on."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from cpic_monai.atomic import replacing
from cpic_monai.distributed import barrier, gather_objects, rank
from cpic_monai.handlers.share import share_index_sets
from cpic_monai.networks import CPICNet

logger = logging.getLogger(__name__)


def save_atomically(state: Any, path: str | Path) -> Path:
    """``torch.save`` to a temporary name beside ``path``, then rename: readers see the old file or the new one."""
    with replacing(path) as temporary:
        torch.save(state, temporary)
    return Path(path)


def save_together(objects: Mapping[str, Any], path: Path, more: Mapping[str, Any] | None = None) -> None:
    """The first process saves the objects' states and ``more``; all go on once the file is there."""
    for item in objects.values():
        if isinstance(item, CPICNet):
            share_index_sets(item)
    if rank() == 0:
        save_atomically({name: item.state_dict() for name, item in objects.items()} | dict(more or {}), path)
    barrier(f"checkpoint {path.name}")


def load_best(path: str | Path, objects: Mapping[str, Any], device: str | torch.device = "cpu") -> None:
    """Load the network that :class:`BestCheckpoint` saved, if it is of this run's splits.

    Parameters
    ----------
    path
        The file.
    objects
        Those that it was saved with: ``model`` is loaded, ``ridge`` if both have it; ``trained_on`` then is compared.
    device
        Where the tensors are read to.

    Raises
    ------
    ValueError
        If the file is of other splits, see :class:`cpic_monai.cohorts.TrainedOn`.
    """
    state = torch.load(path, map_location=device, weights_only=True)
    if "trained_on" in state and "trained_on" in objects:
        objects["trained_on"].load_state_dict(state["trained_on"])
    objects["model"].load_state_dict(state["model"])
    if "ridge" in state and "ridge" in objects:
        objects["ridge"].load_state_dict(state["ridge"])


def check_key_metric(value: float, name: str) -> None:
    """Check that epochs can be compared with this one; a ValueError says that the metric of this name is NaN."""
    if math.isnan(value):
        raise ValueError(
            f"{name} is NaN on the validation split, so no epoch can be the best: the split may lack a class, an event "
            "or a second row. Raise `validation_fraction`, or choose another `key_metric`"
        )


class BestCheckpoint:
    """Save the network when an evaluator's key metric is its best so far.

    MONAI's ``CheckpointSaver`` removes the old file before it has written the new one; this one replaces it.

    Parameters
    ----------
    path
        The file, e.g. ``models/model.pt``.
    objects
        Name to object with a ``state_dict``; ``model`` is the network, ``encoder`` the tabular encoding and target
        scale that prediction on new data needs beside the weights. Tensors and plain containers only, so that the file
        loads with ``weights_only=True``.
    """

    def __init__(self, path: str | Path, objects: Mapping[str, Any]) -> None:
        self.path, self.objects = Path(path), dict(objects)

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator, whose state tells the best epoch of its key metric."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save if the epoch just evaluated is the best.

        Raises
        ------
        ValueError
            If that is no number: no other epoch would ever be better.
        """
        if getattr(engine.state, "best_metric_epoch", -1) != engine.state.epoch:
            return
        best = float(getattr(engine.state, "best_metric", math.nan))
        check_key_metric(best, f"epoch {engine.state.epoch}: config key `key_metric`")
        save_together(self.objects, self.path)
        logger.info(f"epoch {engine.state.epoch}: best key metric so far, {best:.4f}; saved {self.path.name}")


class LastCheckpoint:
    """Save everything after each epoch, and go on from there.

    Parameters
    ----------
    path
        The file, e.g. ``models/last.pt``.
    objects
        Name to object with ``state_dict`` and ``load_state_dict``: network, optimizer, scheduler, ridge.
    evaluator
        Whose best metric so far is kept too.
    resume
        True: if the file is there, load it and continue with the next epoch.
    """

    def __init__(
        self, path: str | Path, objects: Mapping[str, Any], evaluator: Engine | None = None, resume: bool = False
    ) -> None:
        if not isinstance(resume, bool):
            raise TypeError(f"`resume` must be a boolean, found {resume!r}; on the command line write --resume True")
        self.path, self.objects, self.evaluator, self.resume = Path(path), dict(objects), evaluator, resume

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, after the handlers whose effect is to be saved."""
        found = gather_objects(self.path.exists())
        if self.resume and not all(found) and any(found):
            lacking = ", ".join(str(n) for n, there in enumerate(found) if not there)
            raise FileNotFoundError(
                f"rank {lacking} does not see {self.path}, other processes do: `output_dir` must be on a file system "
                "that all machines share"
            )
        if self.resume and found[0]:
            self.load(engine)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save now."""
        state: dict[str, Any] = {"epoch": engine.state.epoch, "iteration": engine.state.iteration}
        if self.evaluator is not None:
            best = self.evaluator.state
            state["best"] = {
                "metric": float(getattr(best, "best_metric", -1)), "epoch": int(getattr(best, "best_metric_epoch", -1)),
            }  # fmt: skip
        save_together(self.objects, self.path, state)

    def load(self, engine: Engine) -> None:
        """Restore the objects and the trainer's epoch.

        Raises
        ------
        KeyError
            Naming what the file lacks.
        ValueError
            If it is of other splits.
        """
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        objects = {k: v for k, v in self.objects.items() if k in state or not getattr(v, "optional", False)}
        missing = [name for name in (*objects, "epoch", "iteration") if name not in state]
        if missing:
            raise KeyError(f"{self.path} lacks {missing}; it holds {sorted(state)}: is it a `last.pt` of this recipe?")
        for name, item in objects.items():
            wanted = _learning_rates(item)
            item.load_state_dict(state[name])
            if wanted != _learning_rates(item):
                logger.warning(
                    f"{name} goes on with the learning rates of {self.path.name}, {_learning_rates(item)}, not with "
                    f"those of the settings, {wanted}: to change them, begin a new run, or fine-tune a checkpoint"
                )
        engine.state.epoch, engine.state.iteration = state["epoch"], state["iteration"]
        if self.evaluator is not None and "best" in state:
            best = state["best"]
            vars(self.evaluator.state).update(best_metric=best["metric"], best_metric_epoch=best["epoch"])
        logger.info(f"resumed from {self.path.name} after epoch {state['epoch']}")


def _learning_rates(item: Any) -> list[float]:
    """Of an optimizer's groups, as they were before any scheduler; nothing of other objects."""
    groups = item.param_groups if isinstance(item, torch.optim.Optimizer) else []
    return [float(group.get("initial_lr", group["lr"])) for group in groups]
