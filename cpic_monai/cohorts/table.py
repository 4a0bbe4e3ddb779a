"""Any cohort that a CSV describes: one row a scan, or one row a visit."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cpic_monai.cohorts.cohort import Cohort, LeftOut
from cpic_monai.cohorts.reading import first_non_number, read_table, to_numbers
from cpic_monai.cohorts.tabular import Column, is_missing
from cpic_monai.cohorts.target import TargetScaler
from cpic_monai.volumes.store_access import names_no_path

__all__ = ["TableCohort"]


class TableCohort(Cohort):
    """Read a table of scans, outcomes and tabular values.

    Rows of the same image are visits of one scan: it is read once. A row without a target, a group, a visit or a file
    is left out and reported with its line.

    Parameters
    ----------
    cohort_csv
        The table (CSV, or TSV by its suffix).
    image_column
        Column of image paths, relative to the table or absolute; several columns are the channels of one scan. URLs
        (``http(s)://``, ``s3://``, ``gs://``, ``file://``) are handed to :func:`~cpic_monai.volumes.open_volume` as
        they are: whether anything is there shows when the scan is first read.
    target_column
        Column of the outcome. May be None with `require_target` off.
    tabular_columns
        Columns of tabular values. A column of numbers is standardised, any other is categorical; missing values are
        allowed in both.
    group_column
        Rows of a group are never split between training and test; by default every scan is its own group.
    subject_column
        Names of the scans in reports; by default the group, where it has one scan, else the image's path.
    visit_column
        When a row was measured (a number); visits are put in its order.
    categorical_columns
        Tabular columns of numbers that are categories (codes of sites).
    strata_columns
        Columns of subgroups for reports; by default all tabular columns but the visit; numbers are cut into terciles.
    unit
        The target's unit in reports.
    target_mode, target_factor
        How the target is normalised, see `TargetScaler`.
    require_target
        Off, rows without a target are kept with an unknown one (for prediction).

    Raises
    ------
    FileNotFoundError
        If the table is missing.
    ValueError
        If `cohort_csv` is None or no table, columns are missing, a column of numbers holds text, a scan is in two
        groups, or no scan is left.
    """

    def __init__(
        self,
        cohort_csv: str | Path,
        image_column: str | Sequence[str] = "image",
        target_column: str | None = "target",
        tabular_columns: str | Sequence[str] = (),
        group_column: str | None = None,
        subject_column: str | None = None,
        visit_column: str | None = None,
        categorical_columns: str | Sequence[str] = (),
        strata_columns: str | Sequence[str] | None = None,
        unit: str = "",
        target_mode: str = "standardise",
        target_factor: float = 0.1,
        require_target: bool = True,
    ) -> None:
        if not cohort_csv:
            raise ValueError("cohort_csv is not set: name the table, as in --cohort_csv study.csv")
        path = Path(os.path.abspath(Path(cohort_csv).expanduser()))
        images, tabular, categorical = (_names(v) for v in (image_column, tabular_columns, categorical_columns))
        if not images:
            raise ValueError("image_column must name one column of paths or more")
        if not target_column and require_target:
            raise ValueError("target_column must name the outcome; for prediction alone pass require_target=False")
        check_not_told([target_column] if target_column else [], tabular)
        strata = None if strata_columns is None else _names(strata_columns)
        names = [name for name in (group_column, subject_column) if name]
        required = [*images, *tabular, *names, *(strata or ())] + [n for n in (visit_column,) if n]
        if target_column and require_target:
            required.append(target_column)
        frame = read_table(path, list(dict.fromkeys(required)), [*images, *names])
        columns = tuple(_column(path, frame, name, name in categorical) for name in tabular)
        if strata is None:
            strata = tuple(column.name for column in columns if column.name != visit_column)

        rows = pd.DataFrame(index=frame.index)
        known = target_column in frame.columns
        rows["target"] = to_numbers(frame[target_column]) if known else np.nan
        rows["visit"] = to_numbers(frame[visit_column]) if visit_column else np.nan
        rows["image"] = [_paths(path.parent, frame.loc[line, list(images)]) for line in frame.index]
        rows["file"] = [tuple(map(_file, image)) for image in rows["image"]]
        rows["group"] = frame[group_column] if group_column else None
        left_out: list[LeftOut] = []
        kept = []
        for line, row in rows.iterrows():
            found = frame[target_column][line] if target_column and known else None
            reason = _fault(row, found, require_target, group_column, visit_column)
            if reason is None:
                kept.append(line)
            else:
                name = next((str(frame[n][line]) for n in (subject_column, group_column, *images) if n), "")
                left_out.append(LeftOut(f"{name} (line {line})", reason))
        rows = rows.loc[kept]
        if not group_column:
            rows["group"] = [_label(path.parent, image) for image in rows["image"]]
        scans = list(rows.groupby("file", sort=False))
        shared = pd.Series([part["group"].iloc[0] for _, part in scans], dtype=object).value_counts()
        items = []
        for _, part in scans:
            image = part["image"].iloc[0]
            groups = part["group"].unique()
            if len(groups) > 1:
                raise ValueError(
                    f"{path}, lines {list(part.index)}: {_label(path.parent, image)} is in groups {list(groups)}; "
                    f"give every row of a scan the same {group_column}"
                )
            if subject_column:
                subject = str(frame[subject_column][part.index[0]])
            else:
                subject = str(groups[0]) if shared[groups[0]] == 1 else _label(path.parent, image)
            part = part.sort_values("visit", kind="stable")
            items.append(_item(subject, image, part, frame.loc[part.index], [*tabular], strata))
        super().__init__(
            items=items,
            columns=columns,
            target_name=target_column or "target",
            unit=unit,
            visit_name=visit_column or None,
            scaler=TargetScaler(target_mode, target_factor),
            left_out=left_out,
            name=path.name,
        )


def check_not_told(outcome: Sequence[str], tabular: Sequence[str]) -> None:
    """Check that no column of the outcome is among the tabular ones; a ValueError names it."""
    taken = [name for name in outcome if name in tabular]
    if taken:
        raise ValueError(f"{taken[0]} is the outcome: take it out of tabular_columns, or the head is told the answer")


def _names(value: str | Sequence[str]) -> tuple[str, ...]:
    return ((value,) if value else ()) if isinstance(value, str) else tuple(value)


def _column(path: Path, frame: pd.DataFrame, name: str, categorical: bool) -> Column:
    values = frame[name]
    if categorical or pd.api.types.is_bool_dtype(values):
        return Column(name, "categorical")
    line = first_non_number(values)
    if line is None:
        return Column(name)
    if to_numbers(values).notna().sum() > 0.5 * (~values.map(is_missing).astype(bool)).sum():
        raise ValueError(
            f"{path}, line {line}: {name} is {values[line]!r} in a column of numbers; correct it, leave it empty, or "
            f"name {name} in categorical_columns"
        )
    return Column(name, "categorical")


def _paths(folder: Path, cells: pd.Series) -> tuple[str, ...]:
    """Absolute paths of a row's images, URLs as they are; an empty one where the cell is empty."""
    places = ["" if is_missing(cell) else str(cell) for cell in cells]
    return tuple(
        os.path.abspath(folder / Path(place).expanduser()) if place and not names_no_path(place) else place
        for place in places
    )


def _file(image: str) -> str:
    """What tells one file from another however it is spelled. Not to be opened: a link's target may lack the suffix."""
    return image if names_no_path(image) else os.path.realpath(image)


def _label(folder: Path, image: tuple[str, ...]) -> str:
    if names_no_path(image[0]):
        return image[0]
    path = Path(image[0])
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def _fault(
    row: pd.Series, found: Any, require_target: bool, group_column: str | None, visit_column: str | None
) -> str | None:
    """Why a row cannot be used."""
    if not all(row["image"]):
        return "no image path"
    absent = [image for image in row["image"] if not names_no_path(image) and not Path(image).exists()]
    if absent:
        return f"{absent[0]} does not exist"
    if group_column and is_missing(row["group"]):
        return f"no {group_column}"
    if visit_column and pd.isna(row["visit"]):
        return f"{visit_column} is missing or no number"
    if require_target and pd.isna(row["target"]):
        return "no target" if is_missing(found) else f"target is {found!r}, no number"
    return None


def _item(
    subject: str,
    image: tuple[str, ...],
    part: pd.DataFrame,
    frame: pd.DataFrame,
    tabular: Sequence[str],
    strata: Sequence[str],
) -> dict[str, Any]:
    first = frame.iloc[0]
    target = part["target"].to_numpy(float)
    return {
        "subject": subject,
        "group": str(part["group"].iloc[0]),
        "image": image[0] if len(image) == 1 else list(image),
        "covariates": {name: frame[name].tolist() for name in tabular},
        "target": target,
        "baseline": float(target[0]),
        "visit": part["visit"].to_numpy(float),
        "strata": {name: "unknown" if is_missing(first[name]) else str(first[name]) for name in strata},
    }
