"""Run an experiment's folds, each in a process of its own; what is done already is left alone."""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from results_experiment import Experiment
from tqdm import tqdm

from cpic_monai.atomic import write_text_atomically
from cpic_monai.cross_validation import CrossValidation, FoldRun, SettingsChangedError

logger = logging.getLogger(__name__)
#: Beside what a fold leaves: on what it ran and how training went, or why it failed.
TRAINED, FAILED = "trained.json", "failed.json"


def machine_words() -> str:
    """The machine in words, without a name: ``2 cores (x86_64), no GPU``."""
    gpus = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    return f"{len(os.sched_getaffinity(0))} cores ({platform.machine()}), {', '.join(gpus) or 'no GPU'}"


def planned(experiment: Experiment, output_dir: Path) -> list[CrossValidation]:
    """The experiment's cross-validation; with ``seeds`` one a seed."""
    if not experiment.seeds:
        return [experiment.cross_validation(output_dir)]
    return [experiment.cross_validation(output_dir, seed=seed) for seed in experiment.seeds]


def run_experiment(
    experiment: Experiment, output_dir: Path, methods: Sequence[str] = (), folds: Sequence[int] = ()
) -> list[str]:
    """
    Run the folds that are missing, fold by fold through the methods; where all are done, write their cross-validation.

    Parameters
    ----------
    experiment : Experiment
    output_dir : path
        Everything goes below ``output_dir/NAME``.
    methods, folds : sequence
        Only these; all by default. An experiment with ``seeds`` has fold 0 alone.

    Returns
    -------
    list of str
        What failed; the others were run nevertheless.

    Raises
    ------
    SettingsChangedError
        If a fold is there that was made with other settings; nothing is run then.
    ValueError
        If there is no such method or fold.
    """
    unknown = sorted(set(methods) - set(experiment.methods))
    if unknown:
        raise ValueError(f"{experiment.name} has no methods {unknown}; it has {', '.join(experiment.methods)}")
    numbers = list(folds or range(1 if experiment.seeds else experiment.folds))
    if set(numbers) - set(range(experiment.folds)):
        raise ValueError(f"{experiment.name} has folds 0 to {experiment.folds - 1}, asked for {numbers}")
    plans = planned(experiment, output_dir)
    runs = [plan.runs[name][k] for plan in plans for k in numbers for name in methods or experiment.methods]
    waiting = [run for run in runs if not run.is_done()]
    failed = []
    with tqdm(runs, desc=experiment.name, unit="fold", initial=len(runs) - len(waiting)) as bar:
        for run in waiting:
            bar.set_description(f"{experiment.name}: {_named(run)}")
            try:
                _train(run, experiment, output_dir, bar)
            except RuntimeError as error:
                failed.append(f"{experiment.name}: {_named(run)}")
                write_text_atomically(run.folder / FAILED, json.dumps({"error": str(error)}, indent=2) + "\n")
                logger.error(str(error))
            bar.update()
    for run in runs:  # stopped between the end of a fold and its record
        if (run.folder / "fold.json").is_file() and not (run.folder / TRAINED).is_file():
            _record(run)
    if not experiment.seeds:
        done = [name for name, runs in plans[0].runs.items() if all(_is_done_as_now(run) for run in runs)]
        if done:
            experiment.cross_validation(output_dir, done).run()  # trains nothing: writes cv_metrics.json and the pages
    return failed


def _named(run: FoldRun) -> str:
    seed = f", seed {run.overrides['seed']}" if run.folder.parents[1].name.startswith("seed_") else ""
    return f"{run.method}, fold {run.number}{seed}"


def _is_done_as_now(run: FoldRun) -> bool:
    """Whether a fold is done with the settings of now; one of other settings is no part of the comparison."""
    try:
        return run.is_done()
    except SettingsChangedError as error:
        logger.warning(f"left out of cv_metrics.json: {error}")
        return False


def _train(run: FoldRun, experiment: Experiment, output_dir: Path, bar: tqdm) -> None:
    (run.folder / FAILED).unlink(missing_ok=True)
    tracking = {
        "tracking_uri": experiment.tracking_uri(output_dir),
        "experiment_name": experiment.name,
        "run_name": f"{_named(run)}, {time.strftime('%Y-%m-%d %H:%M:%S')}",
    }
    # In a file only what is done: the fold's own log.txt has the rest.
    run.run((lambda line: bar.set_postfix_str(line[:80])) if sys.stderr.isatty() else None, tracking)
    _record(run)


def _record(run: FoldRun) -> None:
    record = {"machine": machine_words(), **training_record(run.folder / "models" / "last.pt")}
    write_text_atomically(run.folder / TRAINED, json.dumps(record) + "\n")


def training_record(checkpoint: Path) -> dict[str, Any]:
    """
    How a training went, from its last checkpoint.

    Returns
    -------
    dict
        ``steps`` of the trainer; ``skipped``, those that the optimizer did not take (mixed precision leaves out a step
        whose gradients are infinite); ``finite``, whether all weights are.
    """
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    taken = [int(entry["step"]) for entry in state["optimizer"]["state"].values() if "step" in entry]
    weights = [value for value in state["model"].values() if isinstance(value, torch.Tensor)]
    return {
        "steps": int(state["iteration"]),
        "skipped": int(state["iteration"]) - max(taken) if taken else None,
        "finite": all(bool(torch.isfinite(value).all()) for value in weights),
    }
