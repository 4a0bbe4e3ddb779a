"""The run of a fine-tuning: take over, fit basis and head, report before and after."""

from __future__ import annotations

import copy
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from ignite.engine import Engine
from monai.handlers import MLFlowHandler
from torch import Tensor

from cpic_monai.atomic import write_text_atomically
from cpic_monai.cohorts import ItemEncoder, Splits
from cpic_monai.cohorts.trained_on import OTHERS
from cpic_monai.distributed import broadcast_module, gather_objects, rank
from cpic_monai.evaluation import Evaluation
from cpic_monai.export import read_checkpoint
from cpic_monai.finetune.weights import MismatchError, Part, differences, take_encoder, take_voxels_and_basis
from cpic_monai.handlers import FitBasisAndHead
from cpic_monai.handlers.checkpoint import check_key_metric, save_together
from cpic_monai.handlers.fit import HeadSchedule, collect_trains, fit_head
from cpic_monai.handlers.select import select_index_sets
from cpic_monai.networks import CPICNet
from cpic_monai.report import Evaluated, write_comparison

__all__ = ["FineTuning"]

logger = logging.getLogger(__name__)
FREEZE = ("encoder", "none")
REFIT = ("basis", "head")


class FineTuning:
    """Start a network from a checkpoint, fit what belongs to the cohort, and report before and after.

    ``eval/`` gets the report of the result, ``transfer.json`` (what was taken from the checkpoint, what was not and
    why, seconds of the closed-form fit) and ``comparison.html``. Where the encoder goes on learning, *before* is the
    closed-form fit on the checkpoint's encoder, with its own report in ``eval/before``, and it stays the result unless
    an epoch is better in the validation's key metric. Where the encoder is frozen, *before* is the same head without
    the scans.

    Parameters
    ----------
    pretrained
        A checkpoint of training, or ``models/model.pt`` of a packed bundle.
    network
        To be started; it has the new cohort's grid, tabular columns and quantiles.
    freeze
        ``encoder``: no weight of it changes. ``none``: the trainer runs after :meth:`start`.
    refit
        ``basis``: voxels are chosen, basis and head fitted on the training scans. ``head``: voxels and basis stay the
        checkpoint's; needs its grid, rank and channels, and a frozen encoder.
    fit
        Fits basis and head; its loader gives the training scans without augmentation.
    scans, select_scans, draws, tolerance, seed
        Of :func:`cpic_monai.handlers.select.select_index_sets`: training scans without patches.
    splits
        Of the new cohort.
    evaluation
        Of the result.
    validator
        The engine whose best metric chooses the checkpoint.
    key_metric
        Its name.
    checkpoint, objects
        File of the result, and what it holds: see :class:`cpic_monai.handlers.BestCheckpoint`.
    trainer, tracker
        The tracker's run is started without the trainer where the encoder is frozen.
    calibrates_left_out
        Whether the result will be calibrated on its training scans, left out by a regression that ``refit: head`` does
        not make.
    fits_on_validation
        Whether basis and head of the result will be fitted once more, which ``refit: head`` does not want.
    same_cohort
        False: patients are others than those that the checkpoint learned from, even where names are the same.

    Raises
    ------
    ValueError
        If ``freeze`` or ``refit`` is unknown, or they contradict each other, or the result would overwrite
        ``pretrained``.
    FileNotFoundError
        If there is no checkpoint.
    """

    def __init__(
        self,
        pretrained: str | Path | None,
        network: CPICNet,
        *,
        freeze: str,
        refit: str,
        fit: FitBasisAndHead,
        scans: Sequence[dict[str, Any]],
        select_scans: int,
        draws: int,
        tolerance: float,
        seed: int,
        splits: Splits,
        evaluation: Evaluation,
        validator: Engine,
        key_metric: str,
        checkpoint: str | Path,
        objects: Mapping[str, Any],
        trainer: Engine,
        tracker: MLFlowHandler | None = None,
        calibrates_left_out: bool = False,
        fits_on_validation: bool = False,
        same_cohort: bool = True,
    ) -> None:
        for key, value, known in (("freeze", freeze, FREEZE), ("refit", refit, REFIT)):
            if value not in known:
                raise ValueError(f"`{key}` is {value!r}, none of {', '.join(known)}")
        if refit == "head" and freeze == "none":
            raise ValueError("`refit: head` keeps the basis, which a learning encoder outgrows: set `freeze: encoder`")
        if refit == "head" and calibrates_left_out:
            raise ValueError(
                "`refit: head` keeps the checkpoint's basis, whose features know no scan left out: set "
                "`calibration_source` to validation"
            )
        if refit == "head" and fits_on_validation:
            raise ValueError("`refit: head` keeps the checkpoint's basis, `fit_on_validation` fits another: choose one")
        if not pretrained or not Path(pretrained).is_file():
            raise FileNotFoundError(
                f"`pretrained`: no checkpoint at {pretrained!s}; give the model.pt of a training run or of a packed "
                "bundle (--pretrained PATH)"
            )
        if Path(pretrained).resolve() == Path(checkpoint).resolve():
            raise ValueError(f"`pretrained` {pretrained} would be overwritten by the result: give another `output_dir`")
        self.pretrained, self.network, self.freeze, self.refit, self.fit = pretrained, network, freeze, refit, fit
        self.scans, self.select_scans, self.seed = scans, select_scans, seed
        self.draws, self.tolerance = draws, tolerance
        self.same_cohort = same_cohort
        self.known: int | None = None  # test groups that the pretrained encoder had learned from, if that is known
        self.splits, self.evaluation, self.validator, self.key_metric = splits, evaluation, validator, key_metric
        self.checkpoint, self.objects = Path(checkpoint), objects
        self.trainer, self.tracker = trainer, tracker
        self.folder = Path(evaluation.output_dir)

    def start(self) -> dict[str, Any]:
        """Take what fits, fit the rest, and save it as the best checkpoint so far; returns ``transfer.json``.

        Raises
        ------
        MismatchError
            If nothing of the encoder fits, or a part that should be frozen or kept does not.
        """
        parts = self.take()
        for part in parts:
            logger.info(f"{self.pretrained}, {part}")
        begun = time.perf_counter()
        self.fit_basis_and_head()
        seconds = time.perf_counter() - begun
        logger.info(f"fitted basis and head on {len(self.splits.train)} scans in {seconds:.1f} s")
        save_together(self.objects, self.checkpoint)
        facts = {
            "pretrained": str(self.pretrained), "freeze": self.freeze, "refit": self.refit,
            "parts": [asdict(part) for part in parts], "closed_form_seconds": round(seconds, 2),
            "training_scans": len(self.splits.train), "test_groups_known_to_the_encoder": self.known,
        }  # fmt: skip
        if rank() == 0:
            write_text_atomically(self.folder / "transfer.json", json.dumps(facts, indent=2) + "\n")
        if self.freeze == "none":
            before = copy.copy(self.evaluation)
            before.output_dir = self.folder / "before"
            metrics = gather_objects(before.run())[0]
            if "validation" in metrics:
                best = metrics["validation"][self.key_metric]
                check_key_metric(best, f"{self.pretrained}, re-fitted: the key metric {self.key_metric}")
                vars(self.validator.state).update(best_metric=best, best_metric_epoch=0)
        elif self.tracker is not None:
            self.tracker.start(self.trainer)
        return facts

    def take(self) -> list[Part]:
        """Copy what fits; returns what became of every part."""
        found = read_checkpoint(self.pretrained or "")
        state, source = found["model"], str(self.pretrained)
        before = found.get("trained_on")
        if not self.same_cohort:
            self.known = 0
        elif before is None:
            logger.warning(
                f"{source} does not say whom it learned from: some may be among those held out for testing now"
            )
        else:
            self.known = self.objects["trained_on"].include(before, self.splits.test)
            if self.known:
                logger.warning(
                    f"{source}: its encoder had learned from {self.known} of the patients that are held out for "
                    f"testing now: errors on them will look smaller than on new patients. {OTHERS}"
                )
        parts = take_encoder(self.network, state, source)
        lost = [str(part) for part in parts if part.action != "taken"]
        if lost and self.freeze == "encoder":
            raise MismatchError(
                f"{source}: {'; '.join(lost)}, and `freeze: encoder` would leave that random. Make these keys the "
                "checkpoint's, or let the encoder learn: --freeze none"
            )
        if self.refit == "head":
            parts += take_voxels_and_basis(self.network, state, source)
        else:
            other = differences(self.network, state)
            named = "; ".join(f"{key}: checkpoint {a}, network {b}" for key, (a, b) in other.items())
            parts.append(Part("index sets", "re-selected", "voxels belong to a grid and a cohort"))
            parts.append(Part("basis", "re-fitted", named or "scans of the new cohort"))
        return [*parts, Part("head", "re-fitted", self._head_difference(state, ItemEncoder(found["encoder"])))]

    def fit_basis_and_head(self) -> None:
        """Choose voxels and fit basis and head, or the head alone; the encoder stays as it is."""
        if self.refit == "basis":
            select_index_sets(
                self.network,
                self.scans,
                scans=self.select_scans,
                draws=self.draws,
                tol=self.tolerance,
                seed=self.seed + 1000003,
            )
            self.fit()
            return
        self.network.eval()
        trains, rows = collect_trains(self.network, self.fit.loader, self.fit.device)
        features = self.network.basis(trains).detach()
        schedule = self.fit.schedule or HeadSchedule()
        fit_head(self.network.head, features, rows, self.fit.loss_function, schedule, self.fit.seed)
        broadcast_module(self.network)

    def report(self) -> dict[str, Any]:
        """Evaluate the result and compare it with what was before; returns ``metrics.json``.

        Where outcomes are no quantiles (:mod:`cpic_monai.tasks`) there is no page of comparison.
        """
        metrics = self.evaluation.run()
        if rank() > 0 or not isinstance(self.evaluation, Evaluation):
            return metrics
        after = Evaluated.read(self.folder, "fine-tuned" if self.freeze == "none" else "frozen encoder, re-fitted")
        if self.freeze == "none":
            before = Evaluated.read(self.folder / "before", "re-fitted only")
        else:
            frames = pd.concat(self.evaluation.baselines["tabular"]().values(), ignore_index=True)
            before = Evaluated("without the scans", frames, after.facts)
        logger.info(f"before and after: {write_comparison(self.folder, before, after, seed=self.seed)}")
        return metrics

    def _head_difference(self, state: Mapping[str, Tensor], encoder: ItemEncoder) -> str:
        """Why the old head does not stay: another cohort, and the inputs and outputs that differ by name."""
        found = ["outcome of the new cohort"]
        old, new = (", ".join(e.feature_names) or "none" for e in (encoder, self.splits))
        if old != new:
            found.append(f"tabular features: checkpoint {old}, network {new}")
        there, here = (
            [value.shape[0] for key, value in weights.items() if key.startswith("head.joint.") and value.ndim == 2]
            for weights in (state, self.network.head.state_dict(prefix="head."))
        )
        if there[-1:] != here[-1:]:
            found.append(f"quantiles: checkpoint {there[-1]}, network {here[-1]}")
        return "; ".join(found)
