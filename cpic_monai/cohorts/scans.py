"""Scans without outcomes: a folder or a list of them with a table of what is known, to predict on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cpic_monai.cohorts.cohort import Cohort, LeftOut
from cpic_monai.cohorts.finding import find_scans
from cpic_monai.cohorts.prepare import ItemEncoder
from cpic_monai.cohorts.reading import read_table
from cpic_monai.cohorts.target import fraction_of_first

__all__ = ["ScanCohort"]

logger = logging.getLogger(__name__)


class ScanCohort(Cohort):
    """Scans to predict on, with whatever is known of them.

    Parameters
    ----------
    scans
        See :func:`find_scans`.
    encoder
        Of the training cohort, from the checkpoint: it says which tabular columns there are and how the target is
        normalised.
    values
        A CSV with tabular values, one row a subject or several (the first by ``visit_column`` counts), or None.
    subject_column
        Column of ``values`` that names the scans.
    visit_column
        Tabular column that is the time of the visit, e.g. ``Weeks``; None if the cohort has no visits.
    visits
        Times to predict at, counted from the first visit; a row each.
    target_column
        Column of ``values`` with the first value of the target, where the target is relative to it (FVC in mL). Where
        it is unknown the prediction is a fraction of the first value.
    target_name, unit
        Of the predictions; where no scan's first value is known, the cohort's unit says that they are fractions of it.

    Raises
    ------
    FileNotFoundError, ValueError
        If scans or columns are missing, or ``values`` names none of the scans.
    """

    def __init__(
        self,
        scans: str | Path | Sequence[str | Path],
        encoder: ItemEncoder,
        values: str | Path | None = None,
        subject_column: str = "subject",
        visit_column: str | None = None,
        visits: Sequence[float] = (0.0,),
        target_column: str | None = None,
        target_name: str = "target",
        unit: str = "",
    ) -> None:
        named = find_scans(scans)
        times = [float(t) for t in visits] if visit_column else [float("nan")]
        columns, unknown = tuple(encoder.tabular.columns), 0
        wanted = [column.name for column in columns if column.name != visit_column]
        table: dict[str, pd.DataFrame] = {}
        doubts: list[str] = []
        if values is not None:
            table = _read_values(values, subject_column, wanted)
            doubts += _unmatched(str(values), subject_column, list(table), list(named))
        relative = encoder.target.mode == "relative_to_first"
        left_out: list[LeftOut] = []
        notes: list[str] = []
        if wanted and values is None:
            notes.append(f"no table of values: {', '.join(wanted)} are taken as missing")
        unseen: dict[str, list[str]] = {}
        items = []
        for name, path in named.items():
            rows = table.get(name)
            first = _first(rows, visit_column)
            baseline = float(first.get(target_column or "", np.nan))
            if relative and not baseline > 0:
                notes.append(f"{name}: first value of {target_name} unknown; predictions are fractions of it")
                baseline, unknown = 1.0, unknown + 1
            covariates = {c.name: _column(c.name, first, visit_column, times) for c in columns}
            for note in encoder.tabular.unseen(covariates):
                unseen.setdefault(note, []).append(name)
            items.append(
                {
                    "subject": name,
                    "group": name,
                    "image": str(path),
                    "strata": {},
                    "covariates": covariates,
                    "target": np.full(len(times), np.nan),
                    "baseline": baseline,
                    "visit": np.asarray(times),
                }
            )
        super().__init__(
            items=items,
            columns=columns,
            target_name=target_name,
            unit=fraction_of_first(target_name) if unknown == len(named) else unit,
            visit_name=visit_column.lower().removesuffix("s") if visit_column else None,
            scaler=encoder.target,
            left_out=left_out,
            notes=notes,
            name="scans",
        )
        doubts += [f"{note}; {len(of)} of {len(named)} scans: {_some(of)}" for note, of in unseen.items()]
        for doubt in doubts:
            logger.warning("%s: %s", self.name, doubt)
        self.notes += doubts


def _read_values(path: str | Path, subject_column: str, wanted: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Rows by scan of ``values_csv``, which must have what the network was trained on."""
    hint = f"; the network was trained on {', '.join(wanted)}: if one is the time of visits, name it in `visit_column`"
    frame = read_table(
        Path(path).expanduser(), [subject_column, *wanted], [subject_column], hint=hint if wanted else ""
    )
    return {str(name): rows for name, rows in frame.groupby(subject_column)}


def _unmatched(path: str, subject_column: str, rows: Sequence[str], scans: Sequence[str]) -> list[str]:
    """What of a table and a folder has no counterpart, in words.

    Raises
    ------
    ValueError
        If nothing has: all predictions would be from mean values.
    """
    with_row, with_scan = set(rows), set(scans)
    without_row = [name for name in scans if name not in with_row]
    without_scan = [name for name in rows if name not in with_scan]
    if len(without_row) == len(scans):
        raise ValueError(
            f"{path}: column {subject_column!r} names none of the {len(scans)} scans; it has {_some(rows)}, the scans "
            f"are {_some(scans)} (a file without its suffix, or a DICOM folder). Correct the names, or choose another "
            "column with `subject_column`."
        )
    said = []
    if without_row:
        taken = f"tabular values are taken as missing: {_some(without_row)}"
        said.append(f"{len(without_row)} of {len(scans)} scans have no row in {path}, {taken}")
    if without_scan:
        said.append(f"{len(without_scan)} of {len(rows)} names in {path} are no scan's: {_some(without_scan)}")
    return said


def _some(names: Sequence[str]) -> str:
    return (", ".join(map(repr, names[:3])) or "none") + ", ..." * (len(names) > 3)


def _first(rows: pd.DataFrame | None, visit_column: str | None) -> Mapping[str, Any]:
    if rows is None:
        return {}
    if visit_column in rows.columns:
        rows = rows.sort_values(visit_column, kind="stable")
    return rows.iloc[0].to_dict()


def _column(name: str, first: Mapping[str, Any], visit_column: str | None, times: Sequence[float]) -> list[Any]:
    if name == visit_column:
        return list(times)
    return [first.get(name, np.nan)] * len(times)
