"""From what a client sends (a request's parameters, a submitted outcome) to a cohort's item."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cpic_monai.cohorts import Column, ItemEncoder
from cpic_monai.cohorts.tabular import is_missing
from cpic_monai.cohorts.target import fraction_of_first

__all__ = ["Expected", "RequestError"]


class RequestError(ValueError):
    """What a client sent cannot be used; the message says what to send instead."""


@dataclass(frozen=True)
class Expected:
    """What the bundle asks of a client.

    Attributes
    ----------
    encoder
        Of the training cohort.
    visit_column
        Tabular column that is the time of a visit, which clients give as ``visits``; None without visits.
    visits
        Times predicted at if a request names none.
    baseline_column
        Name under which clients give the first value of a target that is relative to it; None if it is not.
    target_name, unit
        Of the target.
    """

    encoder: ItemEncoder
    visit_column: str | None
    visits: tuple[float, ...]
    baseline_column: str | None
    target_name: str
    unit: str

    @property
    def columns(self) -> tuple[Column, ...]:
        """Tabular columns that clients give; the visit column is not among them."""
        return tuple(c for c in self.encoder.tabular.columns if c.name != self.visit_column)

    @property
    def has_visits(self) -> bool:
        """Whether the bundle predicts at times."""
        return any(c.name == self.visit_column for c in self.encoder.tabular.columns)

    def categories(self, column: Column) -> list[str]:
        """Categories of a column that were seen in training; none for a column of numbers."""
        state = self.encoder.state_dict()["tabular"]["columns"]
        return next(list(entry["categories"]) for entry in state if entry["name"] == column.name)

    def describe(self) -> str:
        """The columns in words, for messages."""
        words = []
        for column in self.columns:
            known = self.categories(column)
            words.append(f"{column.name} ({'one of ' + ', '.join(known) if known else 'a number'})")
        return ", ".join(words) or "none"

    def requested(self, subject: str, image: str, request: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """The item to predict on (with ``unit``, that of the predictions), and notes for who asked.

        Parameters
        ----------
        subject, image
            Name and path of the scan.
        request
            Tabular values under ``tabular`` or, as from a viewer's table of settings, beside the other keys. An empty
            text or null is a missing value. ``visits``: times, a list or a text with commas. The first value of a
            relative target under its own name.

        Raises
        ------
        RequestError
            Naming the column and what is expected, if one is not given or is no number.
        """
        values = self._values(request, f"scan {subject}")
        visits = self._visits(request.get("visits"), f"scan {subject}")
        notes = self.encoder.tabular.unseen({name: [value] for name, value in values.items()})
        baseline = self._baseline(request, f"scan {subject}")
        if self.baseline_column and baseline is None:
            notes.append(
                f"the first value of {self.target_name} was not given ({self.baseline_column}): predictions are "
                "fractions of it"
            )
        target = np.full(len(visits), np.nan)
        item = self._item(subject, image, values, visits, target, 1.0 if baseline is None else baseline)
        unknown = self.baseline_column is not None and baseline is None
        item["unit"] = fraction_of_first(self.target_name) if unknown else self.unit
        return item, notes

    def submitted(self, subject: str, image: str, outcome: Any) -> dict[str, Any]:
        """The item to learn from.

        Parameters
        ----------
        outcome
            Of a submitted label: ``target``, a number or a list with one for each of ``visits``, and ``tabular``.

        Raises
        ------
        RequestError
            Naming the scan and what is wrong.
        """
        who = f"outcome of scan {subject}"
        if not isinstance(outcome, Mapping):
            raise RequestError(f"{who}: expected an object with target, visits and tabular, found {outcome!r:.80}")
        if "target" not in outcome:
            raise RequestError(f"{who}: no target; found {sorted(outcome)}")
        given = outcome["target"]
        target = np.array([_number(v, f"{who}: target") for v in (given if isinstance(given, list) else [given])])
        if not len(target):
            raise RequestError(f"{who}: target is an empty list")
        values = self._values(outcome, who)
        if self.has_visits and "visits" not in outcome:
            raise RequestError(f"{who}: no visits; give the time of each target, counted from the first visit")
        visits = self._visits(outcome.get("visits"), who)
        if len(visits) != len(target):
            raise RequestError(f"{who}: {len(target)} targets for {len(visits)} visits; give one for each")
        baseline = self._baseline(outcome, who)
        if baseline is None:
            baseline = float(target[int(np.argmin(visits))]) if self.has_visits else float(target[0])
        if self.baseline_column and not baseline > 0:
            raise RequestError(f"{who}: the first value of {self.target_name} must be positive, found {baseline}")
        return self._item(subject, image, values, visits, target, baseline)

    def _values(self, given: Mapping[str, Any], who: str) -> dict[str, Any]:
        nested = given.get("tabular")
        if nested is not None and not isinstance(nested, Mapping):
            raise RequestError(f"{who}: tabular must be an object of columns and values, found {nested!r:.80}")
        found = {**given, **(nested or {})}
        missing = [c.name for c in self.columns if c.name not in found]
        if missing:
            raise RequestError(
                f"{who}: tabular column {', '.join(missing)} is missing; this bundle expects {self.describe()}. "
                "Give null for a value that is not known."
            )
        unknown = sorted(set(nested or {}) - {c.name for c in self.encoder.tabular.columns} - {self.baseline_column})
        if unknown:
            raise RequestError(f"{who}: unknown tabular column {', '.join(unknown)}; expected {self.describe()}")
        values = {}
        for column in self.columns:
            value = found[column.name]
            if isinstance(value, list | tuple | dict):
                raise RequestError(f"{who}: {column.name} must be one value, found {value!r:.80}")
            if column.kind == "categorical" or is_missing(value):
                values[column.name] = None if is_missing(value) else value
            else:
                values[column.name] = _number(value, f"{who}: {column.name}")
        return values

    def _visits(self, given: Any, who: str) -> np.ndarray:
        if not self.has_visits:
            if not is_missing(given) and given != []:
                raise RequestError(f"{who}: visits were given, but this bundle has none")
            return np.array([np.nan])
        if given is None or (isinstance(given, str) and not given.strip()):
            return np.array(self.visits, float)
        parts: Sequence[Any] = (
            given.split(",") if isinstance(given, str) else given if isinstance(given, list) else [given]
        )
        times = np.array([_number(v, f"{who}: visits") for v in parts])
        if not len(times):
            raise RequestError(f"{who}: visits is an empty list; leave it out for {list(self.visits)}")
        return times

    def _baseline(self, given: Mapping[str, Any], who: str) -> float | None:
        if not self.baseline_column:
            return None
        value = given.get("baseline", {**given, **(given.get("tabular") or {})}.get(self.baseline_column))
        if is_missing(value):
            return None
        number = _number(value, f"{who}: {self.baseline_column}")
        if not number > 0:
            raise RequestError(f"{who}: {self.baseline_column} must be positive, found {number}")
        return number

    def _item(
        self,
        subject: str,
        image: str,
        values: Mapping[str, Any],
        visits: np.ndarray,
        target: np.ndarray,
        baseline: float,
    ) -> dict[str, Any]:
        covariates = {name: [value] * len(visits) for name, value in values.items()}
        if self.has_visits:
            covariates[str(self.visit_column)] = visits.tolist()
        return {
            "subject": subject,
            "group": subject,
            "image": image,
            "strata": {},
            "covariates": covariates,
            "target": target,
            "baseline": baseline,
            "visit": visits,
        }


def _number(value: Any, name: str) -> float:
    try:
        number = math.nan if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise RequestError(f"{name} must be a number, found {value!r}")
    return number
