"""Scans without outcomes: a folder or a list of them with a table of what is known, to predict on."""

from __future__ import annotations

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
        If scans or columns are missing.
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
        table = _read_values(values, subject_column, wanted) if values is not None else {}
        relative = encoder.target.mode == "relative_to_first"
        left_out: list[LeftOut] = []
        notes: list[str] = []
        if wanted and values is None:
            notes.append(f"no table of values: {', '.join(wanted)} are taken as missing")
        items = []
        for name, path in named.items():
            rows = table.get(name)
            if rows is None and table:
                notes.append(f"{name}: not in {Path(str(values)).name}; tabular values are taken as missing")
            first = _first(rows, visit_column)
            baseline = float(first.get(target_column or "", np.nan))
            if relative and not baseline > 0:
                notes.append(f"{name}: first value of {target_name} unknown; predictions are fractions of it")
                baseline, unknown = 1.0, unknown + 1
            items.append(
                {
                    "subject": name,
                    "group": name,
                    "image": str(path),
                    "strata": {},
                    "covariates": {c.name: _column(c.name, first, visit_column, times) for c in columns},
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


def _read_values(path: str | Path, subject_column: str, wanted: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Rows by scan of ``values_csv``, which must have what the network was trained on."""
    hint = f"; the network was trained on {', '.join(wanted)}: if one is the time of visits, name it in `visit_column`"
    frame = read_table(
        Path(path).expanduser(), [subject_column, *wanted], [subject_column], hint=hint if wanted else ""
    )
    return {str(name): rows for name, rows in frame.groupby(subject_column)}


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
