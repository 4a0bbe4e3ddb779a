"""Encoding of tabular values, fitted on training items only."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from sklearn.preprocessing import OneHotEncoder, StandardScaler

__all__ = ["Column", "TabularEncoder", "is_missing"]

KINDS = ("numeric", "categorical", "scaled")
MISSING = "(missing)"


def is_missing(value: Any) -> bool:
    """None, NaN (pandas' NA too) or an empty string."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return True
    try:
        return bool(value != value)
    except TypeError:  # pandas.NA has no truth value
        return True


@dataclass(frozen=True)
class Column:
    """One tabular column.

    Parameters
    ----------
    name
        Its name in the table.
    kind
        ``numeric`` (standardised; mean and an indicator for missing values), ``categorical`` (one-hot; a category not
        seen in training is all zeros) or ``scaled`` (divided by `scale`, no value may be missing).
    scale
        Divisor of a ``scaled`` column.
    """

    name: str
    kind: str = "numeric"
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"column {self.name!r}: kind must be one of {KINDS}, found {self.kind!r}")
        if not self.scale > 0:
            raise ValueError(f"column {self.name!r}: scale must be positive, found {self.scale}")

    def describe(self, values: Sequence[Any]) -> dict[str, Any]:
        """JSON-safe summary of `values`."""
        known = [value for value in values if not is_missing(value)]
        summary: dict[str, Any] = {"kind": self.kind, "missing": len(values) - len(known)}
        if self.kind == "categorical":
            summary["counts"] = dict(sorted(Counter(map(_category, known)).items()))
        elif known:
            numbers = np.asarray(known, float)
            summary |= {"mean": float(numbers.mean()), "sd": float(numbers.std())}
        return summary


def _category(value: Any) -> str:
    """Text of a category: 1.0 and 1 are the same, as one missing value turns a column of integers into floats."""
    if is_missing(value):
        return MISSING
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value).strip()


class TabularEncoder:
    """Turn the tabular columns of items into float32 features.

    Means, standard deviations and categories come from the items given to `fit`, each row (visit) counting once; they
    travel in `state_dict` as plain containers, so that a checkpoint loads with ``weights_only=True``. A numeric column
    gets a missing indicator only if a value is missing in training. A category missing in training is a category of
    its own.
    """

    def __init__(self, columns: Sequence[Column] = ()) -> None:
        self.columns = tuple(columns)
        self._fits: list[dict[str, Any]] | None = None

    @property
    def feature_names(self) -> tuple[str, ...]:
        """One name a feature: ``Age``, ``Age missing``, ``Sex=Male``."""
        names: list[str] = []
        for column, fit in self._fitted():
            if column.kind == "categorical":
                names += [f"{column.name}={category}" for category in fit["categories"]]
            else:
                names += [column.name] + ([f"{column.name} missing"] if fit["indicator"] else [])
        return tuple(names)

    def fit(self, items: Sequence[Mapping[str, Any]]) -> TabularEncoder:
        """Learn means, standard deviations and categories from training items.

        Raises
        ------
        ValueError
            If a numeric column has no value, or one that is no number.
        """
        fits: list[dict[str, Any]] = []
        for column in self.columns:
            fit: dict[str, Any] = {"mean": 0.0, "sd": column.scale, "indicator": False, "categories": []}
            if column.kind == "categorical":
                values = [_category(v) for item in items for v in _values(item, column)]
                encoder = OneHotEncoder().fit(np.array(values, dtype=object)[:, None])
                fit["categories"] = [str(c) for c in encoder.categories_[0]]
            elif column.kind == "numeric":
                numbers = np.concatenate([_numbers(item, column) for item in items])
                if not np.isfinite(numbers).any():
                    raise ValueError(f"tabular column {column.name!r} has no value in any training item: leave it out")
                scaler = StandardScaler().fit(numbers[:, None])  # skips NaN; a constant column gets a sd of 1
                fit |= {
                    "mean": float(scaler.mean_[0]),
                    "sd": float(scaler.scale_[0]),
                    "indicator": bool(np.isnan(numbers).any()),
                }
            fits.append(fit)
        self._fits = fits
        return self

    def transform(self, item: Mapping[str, Any]) -> torch.Tensor:
        """Features (V, F) float32 of one item.

        Raises
        ------
        ValueError
            If a value is no number, or missing in a ``scaled`` column.
        """
        rows = len(item["visit"])
        parts = [np.zeros((rows, 0))]
        for column, fit in self._fitted():
            if column.kind == "categorical":
                values = np.array([_category(v) for v in _values(item, column)], dtype=object)[:, None]
                categories = [np.array(fit["categories"], dtype=object)]
                encoder = OneHotEncoder(categories=categories, handle_unknown="ignore", sparse_output=False)
                parts.append(encoder.fit(categories[0][:, None]).transform(values))
                continue
            numbers = _numbers(item, column)
            missing = np.isnan(numbers)
            if column.kind == "scaled" and missing.any():
                raise ValueError(
                    f"subject {item['subject']}: {column.name!r} is missing at row {int(missing.argmax())}"
                )
            parts.append(np.where(missing, 0.0, (numbers - fit["mean"]) / fit["sd"])[:, None])
            if fit["indicator"]:
                parts.append(missing[:, None].astype(float))
        return torch.as_tensor(np.concatenate(parts, axis=1), dtype=torch.float32)

    def unseen(self, covariates: Mapping[str, Sequence[Any]]) -> list[str]:
        """In words, each value of a categorical column that no training item had, and that is hence all zeros."""
        notes = []
        for column, fit in self._fitted():
            if column.kind == "categorical":
                found = {_category(v) for v in covariates.get(column.name, ()) if not is_missing(v)}
                for value in sorted(found - set(fit["categories"])):
                    known = ", ".join(fit["categories"])
                    notes.append(f"{column.name} {value!r} was not seen in training ({known}): taken as none of them")
        return notes

    def state_dict(self) -> dict[str, Any]:
        """Columns and what was learnt, as plain containers."""
        return {"columns": [{**asdict(column), **fit} for column, fit in self._fitted()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> TabularEncoder:
        """Restore what `state_dict` gave."""
        self.columns = tuple(Column(c["name"], c["kind"], float(c["scale"])) for c in state["columns"])
        self._fits = [{k: c[k] for k in ("mean", "sd", "indicator", "categories")} for c in state["columns"]]
        return self

    def _fitted(self) -> list[tuple[Column, dict[str, Any]]]:
        if self._fits is None:
            raise RuntimeError("the tabular encoder is not fitted: call fit(training items) or load_state_dict first")
        return list(zip(self.columns, self._fits, strict=True))


def _values(item: Mapping[str, Any], column: Column) -> Sequence[Any]:
    try:
        values = item["covariates"][column.name]
    except KeyError:
        known = sorted(item["covariates"])
        raise ValueError(f"subject {item['subject']} has no tabular column {column.name!r}; it has {known}") from None
    return list(values)


def _numbers(item: Mapping[str, Any], column: Column) -> np.ndarray:
    numbers = []
    for value in _values(item, column):
        try:
            number = math.nan if is_missing(value) else float(value)
        except (TypeError, ValueError):
            raise ValueError(
                f"subject {item['subject']}: {column.name!r} is {value!r}, not a number; correct it or make the column "
                "categorical"
            ) from None
        if math.isinf(number):
            raise ValueError(f"subject {item['subject']}: {column.name!r} is infinite")
        numbers.append(number)
    return np.array(numbers, dtype=float)
