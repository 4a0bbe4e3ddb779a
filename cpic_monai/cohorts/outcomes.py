"""Cohorts of a CSV whose outcome is no measured number: a class, or a time to an event that may not have come yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cpic_monai.cohorts.cohort import LeftOut
from cpic_monai.cohorts.table import TableCohort, check_not_told
from cpic_monai.cohorts.tabular import is_missing
from cpic_monai.cohorts.target import TargetScaler

__all__ = ["ClassTableCohort", "SurvivalTableCohort"]

EVENT = {"1": True, "1.0": True, "true": True, "yes": True, "0": False, "0.0": False, "false": False, "no": False}


class _OutcomeTableCohort(TableCohort):
    """A table whose outcome columns are read as they are written, and turned into numbers by ``_code``."""

    def __init__(self, cohort_csv: str | Path, outcome: Sequence[str], tabular_columns: Any, **given: Any) -> None:
        tabular = [tabular_columns] if isinstance(tabular_columns, str) else list(tabular_columns)
        check_not_told(outcome, tabular)
        categorical = given.pop("categorical_columns", ())
        categorical = [categorical] if isinstance(categorical, str) else list(categorical)
        # As categorical columns outcomes reach the items with their visits in order; they are taken out again below.
        super().__init__(
            cohort_csv,
            target_column=None,
            require_target=False,
            tabular_columns=[*tabular, *outcome],
            categorical_columns=[*categorical, *outcome],
            **given,
        )
        self.columns = tuple(column for column in self.columns if column.name not in outcome)
        kept = []
        for item in self.items:
            cells = list(zip(*(item["covariates"].pop(name) for name in outcome), strict=True))
            for name in outcome:
                if not given.get("strata_columns"):
                    item["strata"].pop(name, None)
            codes: dict[int, float] = {}
            for k, row in enumerate(cells):
                try:
                    codes[k] = self._code(row)
                except ValueError as error:
                    name = f"{item['subject']} (visit {k + 1} of {len(cells)})" if len(cells) > 1 else item["subject"]
                    self.left_out.append(LeftOut(name, str(error)))
            if codes:
                kept.append(_with_outcomes(item, codes))
        self.items = kept
        self.scaler = TargetScaler("constant", 1.0)
        self.__post_init__()

    def _code(self, row: Sequence[Any]) -> float:
        """The outcome as a number; ValueError says why a scan cannot be used."""
        raise NotImplementedError


def _with_outcomes(item: dict[str, Any], codes: Mapping[int, float]) -> dict[str, Any]:
    """The item with the visits alone whose outcome is known."""
    target = np.array(list(codes.values()), dtype=float)
    return item | {
        "covariates": {name: [cells[k] for k in codes] for name, cells in item["covariates"].items()},
        "target": target,
        "baseline": float(target[0]),
        "visit": item["visit"][list(codes)],
    }


class ClassTableCohort(_OutcomeTableCohort):
    """Scans with a class each (or each visit), such as a diagnosis.

    Parameters
    ----------
    cohort_csv, tabular_columns, given
        As :class:`TableCohort`.
    target_column
        Column of the class, text or numbers.
    classes
        Classes in the order of the network's outputs; by default those of the table, sorted. Of two, the second is the
        positive one. Scans of another class are left out and reported.

    Raises
    ------
    ValueError
        If there are fewer than two classes; and those of :class:`TableCohort`.
    """

    def __init__(
        self,
        cohort_csv: str | Path,
        target_column: str = "target",
        tabular_columns: str | Sequence[str] = (),
        classes: Sequence[str] | None = None,
        **given: Any,
    ) -> None:
        self.classes: tuple[str, ...] = tuple(str(name) for name in classes or ())
        self._given = bool(classes)
        self._found: dict[str, int] = {}
        super().__init__(cohort_csv, (target_column,), tabular_columns, **given)
        if not self._given:
            order = sorted(self._found)
            rank = np.array([order.index(name) for name in self._found], dtype=float)
            for item in self.items:
                item["target"] = rank[item["target"].astype(int)]
                item["baseline"] = float(item["target"][0])
            self.classes = tuple(order)
        if len(self.classes) < 2:
            raise ValueError(f"{self.name}: {target_column} has the classes {list(self.classes)}; two are needed")
        self.target_name = target_column

    def _code(self, row: Sequence[Any]) -> float:
        if is_missing(row[0]):
            raise ValueError("no class")
        whole = isinstance(row[0], float) and row[0].is_integer()  # as pandas reads a column of 0, 1 and empty cells
        name = str(int(row[0]) if whole else row[0]).strip()
        if self._given and name not in self.classes:
            raise ValueError(f"class {name!r} is none of {', '.join(self.classes)}")
        return float(self.classes.index(name) if self._given else self._found.setdefault(name, len(self._found)))

    def describe(self) -> dict[str, Any]:
        """Counts of the classes in the place of a mean."""
        target = np.concatenate([item["target"] for item in self.items]).astype(int)
        counts = dict(zip(self.classes, np.bincount(target, minlength=len(self.classes)).tolist(), strict=True))
        facts = super().describe()
        return {key: value for key, value in facts.items() if not key.startswith("target_")} | {"classes": counts}


class SurvivalTableCohort(_OutcomeTableCohort):
    """Scans with a time, and whether it is that of an event or the end of follow-up (right-censored).

    The outcome is one number: the time of an event, or minus the time of censoring (see `cpic_monai.losses.CoxLoss`).

    Parameters
    ----------
    cohort_csv, tabular_columns, given
        As :class:`TableCohort`.
    time_column
        Column of times, positive.
    event_column
        1, true or yes: the event came at that time. 0, false or no: not until then.

    Raises
    ------
    ValueError
        If no scan has an event; and those of :class:`TableCohort`.
    """

    def __init__(
        self,
        cohort_csv: str | Path,
        time_column: str = "time",
        event_column: str = "event",
        tabular_columns: str | Sequence[str] = (),
        **given: Any,
    ) -> None:
        self._names = (time_column, event_column)
        super().__init__(cohort_csv, self._names, tabular_columns, **given)
        if not self.describe()["events"]:
            raise ValueError(f"{self.name}: {event_column} says that no scan has an event: there is nothing to learn")
        self.target_name = time_column
        # A unit of about one keeps the signed times exact enough beside the ridge's residuals in float32.
        self.scaler = TargetScaler("constant", self.describe()["longest_time"])

    def _code(self, row: Sequence[Any]) -> float:
        for name, cell in zip(self._names, row, strict=True):
            if is_missing(cell):
                raise ValueError(f"no {name}")
        try:
            time = float(row[0])
        except ValueError:
            raise ValueError(f"{self._names[0]} is {row[0]!r}, no number") from None
        if not 0 < time < np.inf:
            raise ValueError(f"{self._names[0]} is {row[0]}; times are positive")
        event = EVENT.get(str(row[1]).strip().lower())
        if event is None:
            raise ValueError(f"{self._names[1]} is {row[1]!r}; write 1 for an event, 0 for the end of follow-up")
        return time if event else -time

    def describe(self) -> dict[str, Any]:
        """Events and the longest time in the place of a mean."""
        target = np.concatenate([item["target"] for item in self.items])
        facts = {key: value for key, value in super().describe().items() if not key.startswith("target_")}
        return facts | {"events": int((target > 0).sum()), "longest_time": float(np.abs(target).max())}
