"""From the folds' predictions to one result: each subject held out once, per fold, over folds, and pooled."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cpic_monai.metrics import summarise
from cpic_monai.metrics.named import NAMES
from cpic_monai.report import Evaluated, constant_baseline, read_metrics, read_predictions, summarise_splits
from cpic_monai.report.bootstrap import metric_differences
from cpic_monai.report.comparison import same_rows

__all__ = ["FORMAT", "MethodResult", "aggregate", "read_method", "split_checksum"]

FORMAT = 1
TEST = "test"


@dataclass(frozen=True)
class MethodResult:
    """
    What the folds of a method have left.

    Attributes
    ----------
    name : str
    folds : list of DataFrame
        Predictions of all splits of each fold.
    metrics : sequence of mapping
        ``metrics.json`` of each fold.
    facts : mapping
        ``report.json`` of the first fold: ``target``, ``scoring``, ``cohort``, ``provenance``.
    seconds : list of float
        Wall time of each fold's process.
    settings : sequence of mapping
        Configuration of each fold.
    """

    name: str
    folds: list[pd.DataFrame]
    metrics: Sequence[Mapping[str, Any]]
    facts: Mapping[str, Any]
    seconds: list[float]
    settings: Sequence[Mapping[str, Any]] = ()

    @property
    def scoring(self) -> dict[str, Any]:
        """Clips of the mLLL, in the target's unit."""
        return dict(self.facts.get("scoring") or {})

    def held_out(self) -> pd.DataFrame:
        """Predictions of every row while it was held out, with a column ``fold``, in the order of the folds."""
        return _held_out(self.folds)

    def constant(self) -> pd.DataFrame:
        """The same rows, each predicted as its fold's training rows are on average."""
        return _held_out([constant_baseline(frame) for frame in self.folds])


def read_method(
    name: str, folder: str | Path, folds: int | Sequence[int], settings: Sequence[Mapping[str, Any]] = ()
) -> MethodResult:
    """
    Read ``fold_0 ...`` of a folder.

    Parameters
    ----------
    name : str
    folder : path
    folds : int or sequence of int
        How many there are; or the numbers of some, and then not every subject need be held out.
    settings : sequence of mapping
        Of these folds.

    Raises
    ------
    FileNotFoundError
        If a fold lacks a file.
    ValueError
        If a subject is not held out exactly once, or predictions are not as they should be.
    """
    numbers = range(folds) if isinstance(folds, int) else folds
    places = [Path(folder) / f"fold_{k}" for k in numbers]
    frames = [read_predictions(place / "eval" / "predictions.csv") for place in places]
    _check_held_out_once(name, frames, everyone_is=isinstance(folds, int))
    metrics = [read_metrics(place / "eval" / "metrics.json") for place in places]
    facts = json.loads((places[0] / "eval" / "report.json").read_text(encoding="utf-8"))
    seconds = [float(json.loads((place / "fold.json").read_text(encoding="utf-8"))["seconds"]) for place in places]
    return MethodResult(name, frames, metrics, facts, seconds, settings)


def split_checksum(folds: Sequence[pd.DataFrame]) -> str:
    """SHA-256 over which subject is in which split of which fold."""
    lines = []
    for k, frame in enumerate(folds):
        lines += [f"{k}\t{split}\t{subject}" for split, subject in sorted(_places(frame))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def aggregate(methods: Mapping[str, MethodResult], splits: Mapping[str, Any], key_metric: str) -> dict[str, Any]:
    """
    One result of all methods.

    Parameters
    ----------
    methods : mapping
        Name to results on the same splits.
    splits : mapping
        ``folds``, ``seed``, ``stratify``, ``validation_fraction``.
    key_metric : str
        One of the metrics' names.

    Returns
    -------
    dict
        ``format``, ``splits``, ``split_sha256``, ``subjects``, ``n`` (held-out rows), ``target``, ``scoring``,
        ``key_metric``, and ``methods`` and ``baselines``: name to ``folds`` (a list of each fold's test metrics),
        ``mean`` and ``sd`` (sample standard deviation over folds; NaN where a fold has no value), ``pooled`` (metrics
        of all held-out rows together, with ``intervals`` over patients; for methods with the constant baseline's
        comparison), ``seconds`` (sum over folds), ``settings`` (of fold 0), and, for all methods but the first,
        ``differences``: a metric's pooled value less that of the first, with ends of its paired interval. Baselines are
        ``constant`` and those that the first method's folds have (``tabular``, ridge regression), which are not pooled.

    Raises
    ------
    ValueError
        If methods differ in splits (the first subject that does is named), target, scoring or rows.
    """
    first, *others = methods.values()
    if key_metric not in NAMES:
        raise ValueError(f"key_metric {key_metric!r} is none of {', '.join(NAMES)}")
    for other in others:
        _check_same_splits(first, other)
        for what in ("target", "scoring"):
            if first.facts.get(what) != other.facts.get(what):
                raise ValueError(
                    f"{what} differs: {first.facts.get(what)} in {first.name}, {other.facts.get(what)} in {other.name}"
                )
    rows = first.held_out()
    constant = first.constant()
    result: dict[str, Any] = {
        "format": FORMAT,
        "splits": dict(splits),
        "split_sha256": split_checksum(first.folds),
        "subjects": int(rows["subject"].nunique()),
        "n": len(rows),
        "target": dict(first.facts.get("target") or {}),
        "scoring": first.scoring,
        "key_metric": key_metric,
        "methods": {},
        "baselines": {},
    }
    mine = Evaluated(first.name, rows)
    for method in methods.values():
        frame = method.held_out()
        entry = _over_folds([scores[TEST] for scores in method.metrics])
        # The constant baseline has the first method's rows, in the same order but for rounding of the truth.
        entry["pooled"] = summarise_splits(frame, baselines={"constant": method.constant()}, **method.scoring)[TEST]
        entry["seconds"] = sum(method.seconds)
        entry["settings"] = dict(method.settings[0]) if method.settings else {}
        if method is not first:
            one, other = same_rows(mine, Evaluated(method.name, frame), TEST)
            entry["differences"] = _differences(one, other, first.scoring)
        result["methods"][method.name] = entry
    by_fold = [summarise(part, missing_truth="omit", **first.scoring) for _, part in constant.groupby("fold")]
    result["baselines"]["constant"] = _over_folds(by_fold) | {
        "pooled": summarise(constant, missing_truth="omit", **first.scoring)
    }
    others_by_fold = [dict(scores[TEST].get("baselines") or {}) for scores in first.metrics]
    for name in others_by_fold[0]:
        if name != "constant" and all(name in entry for entry in others_by_fold):
            result["baselines"][name] = _over_folds([entry[name] for entry in others_by_fold])
    return result


def _differences(first: pd.DataFrame, second: pd.DataFrame, scoring: Mapping[str, Any]) -> dict[str, Any]:
    mine, theirs = (summarise(part, **scoring) for part in (first, second))
    intervals = metric_differences(second, first, **scoring)
    return {
        name: {"difference": theirs[name] - mine[name], "low": low, "high": high}
        for name, (low, high) in intervals.items()
    }


def _over_folds(scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    values = {name: [math.nan if s.get(name) is None else float(s[name]) for s in scores] for name in NAMES}
    return {
        "folds": [
            {name: values[name][k] for name in NAMES} | {key: s[key] for key in ("n", "subjects") if key in s}
            for k, s in enumerate(scores)
        ],
        "mean": {name: float(np.mean(v)) for name, v in values.items()},
        "sd": {name: float(np.std(v, ddof=1)) if len(v) > 1 else math.nan for name, v in values.items()},
    }


def _held_out(folds: Sequence[pd.DataFrame]) -> pd.DataFrame:
    parts = [frame[frame["split"] == TEST].assign(fold=str(k)) for k, frame in enumerate(folds)]
    return pd.concat(parts, ignore_index=True)


def _places(frame: pd.DataFrame) -> set[tuple[str, str]]:
    return set(zip(frame["split"], frame["subject"], strict=True))


def _check_held_out_once(name: str, folds: Sequence[pd.DataFrame], everyone_is: bool) -> None:
    held: dict[str, int] = {}
    everyone: set[str] = set()
    for k, frame in enumerate(folds):
        everyone |= set(frame["subject"])
        for subject in sorted(frame.loc[frame["split"] == TEST, "subject"].unique()):
            if subject in held:
                raise ValueError(
                    f"{name}: subject {subject} is held out in fold {held[subject]} and in fold {k}; the folds come "
                    "from different splits or a table that has changed between them. Remove the folder and run again"
                )
            held[subject] = k
    never = sorted(everyone - set(held))
    if never and everyone_is:
        raise ValueError(
            f"{name}: {len(never)} of {len(everyone)} subjects are held out in no fold, the first is {never[0]}; the "
            "folds come from different splits or a table that has changed between them. Remove the folder and run again"
        )


def _check_same_splits(first: MethodResult, other: MethodResult) -> None:
    for k, (one, two) in enumerate(zip(first.folds, other.folds, strict=True)):
        apart = sorted(_places(one) ^ _places(two), key=lambda place: place[1])
        if apart:
            split, subject = apart[0]
            where = first.name if (split, subject) in _places(one) else other.name
            raise ValueError(
                f"fold {k}: subject {subject} is in the split {split!r} for {where} alone; {first.name} and "
                f"{other.name} do not see the same splits and cannot be compared. Use one cohort for all methods"
            )
