"""All folds of all methods, one after the other, and their result."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from monai.utils import ensure_tuple
from tqdm import tqdm

from cpic_monai.cross_validation.aggregate import aggregate
from cpic_monai.cross_validation.fold import FoldRun
from cpic_monai.cross_validation.page import write_results
from cpic_monai.cross_validation.results import read_method
from cpic_monai.cross_validation.track import ParentRun
from cpic_monai.report import read_predictions
from cpic_monai.report.words import COLUMNS, columns_of
from cpic_monai.tasks import read_task_predictions

__all__ = ["CrossValidation"]

logger = logging.getLogger(__name__)
#: What makes the splits; the same for every method, or they could not be compared.
SPLIT_KEYS = ("fold", "folds", "seed", "stratify", "validation_fraction")
OWN_KEYS = ("output_dir", "tracking_uri", "experiment_name", "run_name")
#: What lies in the folder of each fold.
FOLD_KEYS = ("models_dir", "eval_dir", "ckpt_path")


class CrossValidation:
    """
    Cross-validate one method or several on identical splits.

    Every fold of every method is a run of the training workflow in a process of its own, in
    ``<output_dir>/<method>/fold_<k>``; a fold that is done is not run again. Then ``cv_metrics.json``, ``cv_table.md``
    and ``cv_report.html`` are written to ``output_dir``, and to each method's folder ``predictions.csv`` of all rows
    while they were held out; of quantiles also their ``metrics.json`` and a report.

    Parameters
    ----------
    output_dir : path
    config_files : str or sequence of str
        The training configuration and its overlays, for all methods.
    overrides : mapping
        Of the configuration's keys, for all methods.
    methods : mapping
        Name to ``config_files`` (further overlays) and ``overrides``, both optional. The others are compared with the
        first.
    folds, seed, stratify, validation_fraction
        See :func:`cpic_monai.cohorts.split`; the same for all methods.
    key_metric : str, optional
        The metric that the report is about; by default that of the training configuration.
    tracking_uri, experiment_name, run_name : str
        Of MLflow.
    phantom_dir : str, optional
        Where all folds find the phantom cohort, where the configuration makes one.
    run_id : str
        Workflow of the training configuration.
    logging_file : str, optional
        Of the folds' processes.

    Raises
    ------
    ValueError
        If there are less than two folds, no methods, a method sets what is common to all, or the key metric is none of
        the predictions' (an autoencoder's has no table over folds).
    """

    def __init__(
        self,
        output_dir: str | Path,
        config_files: str | Sequence[str],
        overrides: Mapping[str, Any] | None = None,
        methods: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        folds: int = 5,
        seed: int = 0,
        stratify: bool = False,
        validation_fraction: float = 0.15,
        key_metric: str | None = None,
        tracking_uri: str,
        experiment_name: str = "cpic",
        run_name: str = "cross_validation",
        phantom_dir: str | None = None,
        run_id: str = "training",
        logging_file: str | None = None,
    ) -> None:
        self.output_dir, self.methods = Path(output_dir), dict({"cpic": {}} if methods is None else methods)
        if not self.methods:
            raise ValueError("config key `methods` names none; {'cpic': {}} is the configuration as it is")
        if folds < 2:
            raise ValueError(f"folds={folds}: cross-validation needs two folds or more")
        self.folds, self.tracking = folds, (tracking_uri, experiment_name, run_name)
        self.splits = {"folds": folds, "seed": seed, "stratify": stratify, "validation_fraction": validation_fraction}
        shared = {**(overrides or {}), **self.splits}
        _check_overrides("overrides set", overrides, "; set these as keys of the cross-validation itself")
        if phantom_dir is not None:
            shared.setdefault("phantom_dir", phantom_dir)
        self.runs: dict[str, list[FoldRun]] = {}
        for name, given in self.methods.items():
            _check_method(name, given)
            files = [*ensure_tuple(config_files), *ensure_tuple(given.get("config_files") or ())]
            self.runs[name] = [
                FoldRun(
                    name,
                    k,
                    self.output_dir / name / f"fold_{k}",
                    run_id,
                    [str(file) for file in files],
                    {**shared, **(given.get("overrides") or {}), "fold": k},
                    logging_file,
                )
                for k in range(folds)
            ]
        first = next(iter(self.runs.values()))[0].settings()
        own = str((first.get("key_metric") or {}).get("name", "rmse"))
        self.key_metric = key_metric or own
        if columns_of(own) is not columns_of(self.key_metric):
            raise ValueError(
                f"config key `key_metric` is {self.key_metric!r}, which this training's predictions do not have; "
                f"choose one of {', '.join(name for name, *_ in columns_of(own))}"
            )

    def run(self) -> dict[str, Any]:
        """
        Run the folds that are missing, fold by fold through all methods, then write the result.

        Returns
        -------
        dict
            Content of ``cv_metrics.json``; see :func:`cpic_monai.cross_validation.aggregate`.

        Raises
        ------
        SettingsChangedError
            If a fold is there that was made with other settings; nothing is run then.
        RuntimeError
            If a fold fails; started again, the cross-validation goes on there.
        ValueError
            If methods had different splits, or a subject was not held out exactly once.
        """
        # All folds are checked before the first one costs time; the first folds of all methods come first.
        planned = [runs[k] for k in range(self.folds) for runs in self.runs.values()]
        waiting = [run for run in planned if not run.is_done()]
        if len(waiting) < len(planned):
            logger.info(f"{len(planned) - len(waiting)} of {len(planned)} folds are done already")
        self.output_dir.mkdir(parents=True, exist_ok=True)
        parameters = {**self.splits, "methods": ", ".join(self.methods)}
        parent = ParentRun(*self.tracking, self.output_dir, parameters)
        try:
            with tqdm(planned, desc="folds", unit="fold", initial=len(planned) - len(waiting)) as bar:
                for run in waiting:
                    self._run_fold(run, parent, bar)
            read = reader_of(self.key_metric)
            found = {
                name: read_method(name, self.output_dir / name, self.folds, [run.settings() for run in runs], read)
                for name, runs in self.runs.items()
            }
            result = aggregate(found, self.splits, self.key_metric)
            files = write_results(self.output_dir, result, found)
        except BaseException as error:
            parent.end(parent.run_id, "FAILED" if isinstance(error, Exception) else "KILLED")
            raise
        parent.finish(result, files)
        for name, entry in result["methods"].items():
            mean, sd = entry["mean"][self.key_metric], entry["sd"][self.key_metric]
            logger.info(f"{name}: {self.key_metric} {mean:.4g}, SD {sd:.2g} over {self.folds} folds")
        logger.info(f"wrote {self.output_dir / 'cv_report.html'}")
        return result

    @staticmethod
    def _run_fold(run: FoldRun, parent: ParentRun, bar: tqdm) -> None:
        child, names = parent.child(f"{run.method}, fold {run.number}")
        bar.set_description(f"{run.method}, fold {run.number}")
        status = "KILLED"
        try:
            run.run(lambda line: bar.set_postfix_str(line[:80]), names)
            status = "FINISHED"
        except RuntimeError:
            status = "FAILED"
            raise
        finally:
            parent.end(child, status)
        bar.update()


def reader_of(key_metric: str) -> Callable[[Path], pd.DataFrame]:
    """Reads the ``predictions.csv`` that this metric is computed from: of quantiles, or of a task."""
    return read_predictions if columns_of(key_metric) is COLUMNS else read_task_predictions


def _check_method(name: str, given: Mapping[str, Any]) -> None:
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(f"method {name!r}: a name of letters, digits, '_', '-' and '.', for it becomes a folder")
    unknown = set(given) - {"config_files", "overrides"}
    if unknown:
        raise ValueError(f"method {name!r} has {sorted(unknown)}; it may have config_files and overrides")
    advice = ", which must be the same for all methods: set it for all"
    _check_overrides(f"method {name!r} sets", given.get("overrides"), advice)


def _check_overrides(who: str, overrides: Mapping[str, Any] | None, advice: str) -> None:
    """Check that overrides leave alone what is not theirs to set; a ValueError says what ``who`` does, and advises."""
    given = overrides or {}
    shared = {key: value for key, value in given.items() if key in FOLD_KEYS}
    if shared:
        raise ValueError(
            f"{who} {shared}: folds would overwrite each other there; leave it out, each has its own folder"
        )
    taken = {key: value for key, value in given.items() if key in (*SPLIT_KEYS, *OWN_KEYS)}
    if taken:
        raise ValueError(f"{who} {taken}{advice}")
