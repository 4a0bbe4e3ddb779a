"""BraTS survival: brain MR of patients with glioma and their survival in days.

Source: the survival task of MICCAI BraTS 2018 to 2020 (braintumorsegmentation.org). ``survival_info.csv`` holds
``Brats20ID, Age, Survival_days, Extent_of_Resection``; ``<id>/<id>_<sequence>.nii`` or ``.nii.gz`` the scans.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cpic_monai.cohorts.cohort import Cohort, LeftOut
from cpic_monai.cohorts.reading import first_non_number, read_table, to_numbers
from cpic_monai.cohorts.tabular import Column, is_missing
from cpic_monai.cohorts.target import TargetScaler

__all__ = ["BratsCohort"]

FIVE_YEARS = 5 * 365.25  # days
SEQUENCES = ("t1", "t1ce", "t2", "flair")
TABULAR = {"Age": Column("Age"), "Extent_of_Resection": Column("Extent_of_Resection", "categorical")}
_SURVIVAL = ("Survival_days", "Survival")  # 2020, 2018 and 2019
_RESECTION = ("Extent_of_Resection", "ResectionStatus")


class BratsCohort(Cohort):
    """Read the BraTS survival layout: one item a patient, one row an item, survival in days divided by five years.

    Rows whose survival is no number (``ALIVE (361 days later)``) or missing, and patients without the wanted scans, are
    left out and reported.

    Parameters
    ----------
    folder
        Holds the table and one folder a patient.
    sequences
        Any of t1, t1ce, t2, flair; each is a channel. Of one sequence, an item's ``image`` is a path, of several a
        list.
    tabular_columns
        Any of Age, Extent_of_Resection (missing ones are a category of their own).
    table
        Name of the table.
    require_target
        Leave out patients without survival; off, their target is unknown (for prediction).

    Raises
    ------
    FileNotFoundError
        If the table is missing.
    ValueError
        If columns are missing, a patient occurs twice, an age is no number, or no patient is left.
    """

    def __init__(
        self,
        folder: str | Path,
        sequences: Sequence[str] = ("t1",),
        tabular_columns: Sequence[str] = (),
        table: str = "survival_info.csv",
        require_target: bool = True,
    ) -> None:
        for option, given, known in (
            ("sequences", sequences, SEQUENCES),
            ("tabular_columns", tabular_columns, tuple(TABULAR)),
        ):
            unknown = [name for name in given if name not in known]
            if unknown or isinstance(given, str):
                raise ValueError(f"{option} must be a list of any of {list(known)}, found {given!r}")
        if not sequences or len(set(sequences)) < len(sequences):
            raise ValueError(f"sequences must name one or more different sequences, found {list(sequences)}")
        folder = Path(folder).expanduser().resolve()
        frame = _read(folder / table, require_target)
        left_out: list[LeftOut] = []
        items = []
        for _, row in frame.iterrows():
            patient = str(row["patient"])
            paths, reason = _scans(folder / patient, patient, sequences)
            if require_target and pd.isna(row["days"]):
                found = row["survival"]
                reason = "no survival" if is_missing(found) else f"survival is {found!r}, no number of days"
            elif row["days"] <= 0:
                reason = f"survival must be a positive number of days, found {row['days']:g}"
            if reason is not None:
                left_out.append(LeftOut(patient, reason))
                continue
            items.append(_item(patient, row, paths))
        super().__init__(
            items=items,
            columns=tuple(TABULAR[name] for name in tabular_columns),
            target_name="survival",
            unit="days",
            scaler=TargetScaler("constant", FIVE_YEARS),
            left_out=left_out,
            name="BraTS",
        )


def _read(path: Path, require_target: bool) -> pd.DataFrame:
    """Columns patient, Age, Extent_of_Resection, survival (as written) and days (NaN where no number)."""
    frame = read_table(path, ["Age"])
    identifier = next((name for name in frame.columns if re.fullmatch(r"brats\d*_?id", name, re.IGNORECASE)), None)
    if identifier is None:
        raise ValueError(
            f"{path}: no column of identifiers such as Brats20ID or BraTS20ID; found {list(frame.columns)}"
        )
    survival = next((name for name in _SURVIVAL if name in frame.columns), None)
    if survival is None and require_target:
        raise ValueError(f"{path}: column Survival_days is missing; found {list(frame.columns)}")
    resection = next((name for name in _RESECTION if name in frame.columns), None)
    line = first_non_number(frame["Age"])
    if line is not None:
        raise ValueError(f"{path}, line {line}: Age is {frame['Age'][line]!r}, no number")
    nothing = pd.Series(None, index=frame.index, dtype=object)
    given = nothing if survival is None else frame[survival]
    table = pd.DataFrame(
        {
            "patient": frame[identifier].astype(str).str.strip(),
            "Age": to_numbers(frame["Age"]),
            "Extent_of_Resection": nothing if resection is None else frame[resection],
            "survival": given,
            "days": to_numbers(given),
        }
    )
    twice = table.index[table["patient"].duplicated()]
    if len(twice):
        raise ValueError(f"{path}, line {twice[0]}: {table['patient'][twice[0]]} occurs twice; keep one row a patient")
    return table


def _scans(folder: Path, patient: str, sequences: Sequence[str]) -> tuple[list[str], str | None]:
    """Paths of the sequences, and what is wrong if one is missing."""
    paths = []
    for sequence in sequences:
        candidates = [folder / f"{patient}_{sequence}{suffix}" for suffix in (".nii.gz", ".nii")]
        found = next((path for path in candidates if path.is_file()), None)
        if found is None:
            return [], f"no {sequence} scan ({patient}/{patient}_{sequence}.nii or .nii.gz)"
        paths.append(str(found))
    return paths, None


def _item(patient: str, row: pd.Series, paths: list[str]) -> dict[str, Any]:
    resection = row["Extent_of_Resection"]
    return {
        "subject": patient,
        "group": patient,
        "image": paths[0] if len(paths) == 1 else paths,
        "covariates": {"Age": [row["Age"]], "Extent_of_Resection": [resection]},
        "target": np.array([row["days"]], dtype=float),
        "baseline": float(row["days"]),
        "visit": np.array([np.nan]),
        "strata": {n: "unknown" if is_missing(row[n]) else str(row[n]) for n in ("Age", "Extent_of_Resection")},
    }
