"""What the folds of a method have left: predictions of every split, metrics, facts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from cpic_monai.cross_validation.splits import TEST, check_held_out_once
from cpic_monai.report import read_baselines, read_metrics, read_predictions

__all__ = ["MethodResult", "held_out", "read_method"]


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
    baselines : mapping
        Name to predictions of all splits of each fold, of those whose predictions every fold has.
    """

    name: str
    folds: list[pd.DataFrame]
    metrics: Sequence[Mapping[str, Any]]
    facts: Mapping[str, Any]
    seconds: list[float]
    settings: Sequence[Mapping[str, Any]] = ()
    baselines: Mapping[str, list[pd.DataFrame]] = field(default_factory=dict)

    @property
    def scoring(self) -> dict[str, Any]:
        """Clips of the mLLL, in the target's unit."""
        return dict(self.facts.get("scoring") or {})

    def held_out(self) -> pd.DataFrame:
        """Predictions of every row while it was held out, with a column ``fold``, in the order of the folds."""
        return held_out(self.folds)


def held_out(folds: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The rows of the test split of each fold, with a column ``fold``."""
    parts = [frame[frame["split"] == TEST].assign(fold=str(k)) for k, frame in enumerate(folds)]
    return pd.concat(parts, ignore_index=True)


def read_method(
    name: str,
    folder: str | Path,
    folds: int | Sequence[int],
    settings: Sequence[Mapping[str, Any]] = (),
    read: Callable[[Path], pd.DataFrame] = read_predictions,
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
    read : callable
        Reads ``predictions.csv``.

    Raises
    ------
    FileNotFoundError
        If a fold lacks a file.
    ValueError
        If a subject is not held out exactly once, or predictions are not as they should be.
    """
    numbers = range(folds) if isinstance(folds, int) else folds
    places = [Path(folder) / f"fold_{k}" for k in numbers]
    frames = [read(place / "eval" / "predictions.csv") for place in places]
    check_held_out_once(name, frames, everyone_is=isinstance(folds, int))
    metrics = [read_metrics(place / "eval" / "metrics.json") for place in places]
    facts = json.loads((places[0] / "eval" / "report.json").read_text(encoding="utf-8"))
    seconds = [float(json.loads((place / "fold.json").read_text(encoding="utf-8"))["seconds"]) for place in places]
    beside = [read_baselines(place / "eval" / "baselines.csv") for place in places]
    common = [key for key in beside[0] if all(key in found for found in beside)]
    baselines = {key: [found[key] for found in beside] for key in common}
    return MethodResult(name, frames, metrics, facts, seconds, settings, baselines)
