"""What a cohort is: scans with their visits, outcomes and tabular values, and a record of what was left out."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cpic_monai.cohorts.tabular import Column
from cpic_monai.cohorts.target import TargetScaler

__all__ = ["Cohort", "LeftOut"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LeftOut:
    """A subject, row or visit that is not in the cohort, and why."""

    subject: str
    reason: str


@dataclass
class Cohort:
    """Scans of a study, one item (dict) a scan.

    Parameters
    ----------
    items
        One a scan with V >= 1 visits: ``subject`` str, ``group`` str (never split between training and test), ``image``
        absolute path or list of paths (one a channel), ``strata`` dict[str, str], and as read:
        ``covariates`` dict[str, list] of V values a tabular column, ``target`` float64 (V,) in `unit` (NaN where
        unknown), ``baseline`` float (first target, NaN without visits), ``visit`` float64 (V,) (NaN without visits).
        `cpic_monai.cohorts.prepare` turns the latter into the tensors the network wants.
    columns
        Tabular columns in order, as `Column`.
    target_name, unit
        Name and unit of the outcome.
    visit_name
        Name of the visit variable (``week``), or None.
    scaler
        How the target is normalised; fitted on training items by `prepare`.
    left_out
        What was left out, and why.
    notes
        What was altered while reading (duplicates averaged).
    """

    items: list[dict[str, Any]]
    columns: tuple[Column, ...]
    target_name: str
    unit: str
    visit_name: str | None = None
    scaler: TargetScaler = field(default_factory=TargetScaler)
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    name: str = "cohort"

    def __post_init__(self) -> None:
        if not self.items:
            reasons = "; ".join(f"{s.subject}: {s.reason}" for s in self.left_out[:5])
            raise ValueError(f"{self.name}: no scan is left; left out: {reasons or 'none, the table is empty'}")
        self._log()

    def __len__(self) -> int:
        return len(self.items)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Tabular columns; the features of an encoded item (one-hot) are named by `Splits.feature_names`."""
        return tuple(column.name for column in self.columns)

    def describe(self) -> dict[str, Any]:
        """Counts and means, JSON-safe."""
        target = np.concatenate([np.asarray(item["target"], float) for item in self.items])
        known = target[np.isfinite(target)]
        visits = np.array([len(item["target"]) for item in self.items])
        summary: dict[str, Any] = {
            "name": self.name,
            "scans": len(self.items),
            "groups": len({item["group"] for item in self.items}),
            "rows": int(visits.sum()),
            "visits_per_scan": float(visits.mean()),
            "target": self.target_name,
            "unit": self.unit,
            "target_known": int(known.size),
            "left_out": [{"subject": s.subject, "reason": s.reason} for s in self.left_out],
            "notes": list(self.notes),
            "tabular": {},
        }
        for key, function in (("mean", np.mean), ("sd", np.std), ("min", np.min), ("max", np.max)):
            summary[f"target_{key}"] = float(function(known)) if known.size else None
        for column in self.columns:
            values = [value for item in self.items for value in item["covariates"][column.name]]
            summary["tabular"][column.name] = column.describe(values)
        return summary

    def _log(self) -> None:
        rows = sum(len(item["target"]) for item in self.items)
        logger.info("%s: %d scans, %d rows, %d left out", self.name, len(self.items), rows, len(self.left_out))
        for reason, count in Counter(s.reason for s in self.left_out).items():
            names = [s.subject for s in self.left_out if s.reason == reason]
            shown = ", ".join(names[:5]) + (", ..." if count > 5 else "")
            logger.warning("%s: %d left out (%s): %s", self.name, count, shown, reason)
        for note in self.notes:
            logger.info("%s: %s", self.name, note)
