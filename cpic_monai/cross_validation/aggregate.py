"""One result of all methods: metrics of each fold, over folds, and of quantiles those of all held-out rows together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from cpic_monai.cross_validation.results import MethodResult, held_out
from cpic_monai.cross_validation.splits import TEST, check_same_splits, split_checksum
from cpic_monai.metrics import summarise
from cpic_monai.report import Evaluated, constant_baseline, summarise_splits
from cpic_monai.report.bootstrap import metric_differences
from cpic_monai.report.comparison import same_rows
from cpic_monai.report.words import COLUMNS, columns_of

__all__ = ["FORMAT", "aggregate"]

FORMAT = 1


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
        One of the metrics' names: of quantiles, classes or survival, which the predictions then are.

    Returns
    -------
    dict
        ``format``, ``splits``, ``split_sha256``, ``subjects``, ``n`` (held-out rows), ``target``, ``scoring``,
        ``key_metric``, and ``methods`` and ``baselines``: name to ``folds`` (a list of each fold's test metrics),
        ``mean`` and ``sd`` (sample standard deviation over folds; NaN where a fold has no value), and of methods
        ``seconds`` (sum over folds) and ``settings`` (of fold 0). Baselines are those that the first method's folds
        have (``constant``, ``tabular``, ridge regression).

        Of quantiles also ``pooled`` (metrics of all held-out rows together, with ``intervals`` over patients; for
        methods with the constant baseline's comparison) and, for all but the first method, ``differences``: a metric's
        pooled value less that of the first, with ends of its paired interval. Baselines whose predictions were not
        written have neither. Log hazards of two folds have no common zero, so nothing is pooled there.

    Raises
    ------
    ValueError
        If methods differ in splits (the first subject that does is named), target, scoring or rows; or there is no such
        metric.
    """
    first, *others = methods.values()
    columns = columns_of(key_metric)
    names = [name for name, *_ in columns]
    for other in others:
        check_same_splits((first.name, other.name), first.folds, other.folds)
        for what in ("target", "scoring"):
            if first.facts.get(what) != other.facts.get(what):
                raise ValueError(
                    f"{what} differs: {first.facts.get(what)} in {first.name}, {other.facts.get(what)} in {other.name}"
                )
    rows = first.held_out()
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
    for method in methods.values():
        entry = _over_folds([scores[TEST] for scores in method.metrics], names)
        entry["seconds"] = sum(method.seconds)
        entry["settings"] = dict(method.settings[0]) if method.settings else {}
        result["methods"][method.name] = entry
    by_fold = [dict(scores[TEST].get("baselines") or {}) for scores in first.metrics]
    for name in by_fold[0]:
        if all(name in entry for entry in by_fold):
            result["baselines"][name] = _over_folds([entry[name] for entry in by_fold], names)
    if columns is COLUMNS:
        _add_pooled(result, methods)
    return result


def _add_pooled(result: dict[str, Any], methods: Mapping[str, MethodResult]) -> None:
    """Metrics of all held-out rows together, of methods and of baselines, and differences from the first method."""
    first = next(iter(methods.values()))
    mine = Evaluated(first.name, first.held_out())

    def differences(name: str, frame: pd.DataFrame) -> dict[str, Any]:
        return _differences(*same_rows(mine, Evaluated(name, frame), TEST), first.scoring)

    # Each method's own: the constant baseline has its rows, in the same order but for rounding of the truth.
    constants = {name: _constants(method) for name, method in methods.items()}
    for name, method in methods.items():
        frame, entry = method.held_out(), result["methods"][name]
        beside = {"constant": held_out(constants[name])}
        entry["pooled"] = summarise_splits(frame, baselines=beside, **method.scoring)[TEST]
        if method is not first:
            entry["differences"] = differences(name, frame)
    constant = constants[first.name]
    by_fold = [summarise(fold[fold["split"] == TEST], missing_truth="omit", **first.scoring) for fold in constant]
    over_folds = {"constant": _over_folds(by_fold, [name for name, *_ in COLUMNS])}
    result["baselines"] = over_folds | {k: v for k, v in result["baselines"].items() if k != "constant"}
    for name, folds in {"constant": constant, **first.baselines}.items():
        if name in result["baselines"]:
            frame = held_out(folds)
            entry = result["baselines"][name]
            entry["pooled"] = summarise_splits(frame, **first.scoring)[TEST]
            entry["differences"] = differences(name, frame)


def _constants(method: MethodResult) -> list[pd.DataFrame]:
    """Of each fold: it learns from the scans that the method learned from."""
    both = bool(method.settings) and method.settings[0].get("fit_on_validation") is True
    return [constant_baseline(fold, ("train", "validation") if both else ("train",)) for fold in method.folds]


def _differences(first: pd.DataFrame, second: pd.DataFrame, scoring: Mapping[str, Any]) -> dict[str, Any]:
    mine, theirs = (summarise(part, **scoring) for part in (first, second))
    intervals = metric_differences(second, first, **scoring)
    return {
        name: {"difference": theirs[name] - mine[name], "low": low, "high": high}
        for name, (low, high) in intervals.items()
    }


def _over_folds(scores: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    values = {name: [math.nan if s.get(name) is None else float(s[name]) for s in scores] for name in names}
    return {
        "folds": [
            {name: values[name][k] for name in names} | {key: s[key] for key in ("n", "subjects") if key in s}
            for k, s in enumerate(scores)
        ],
        "mean": {name: float(np.mean(v)) for name, v in values.items()},
        "sd": {name: float(np.std(v, ddof=1)) if len(v) > 1 else math.nan for name, v in values.items()},
    }
