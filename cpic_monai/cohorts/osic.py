"""OSIC Pulmonary Fibrosis Progression: CT series and repeated spirometry, in Kaggle's layout.

Source: kaggle.com/c/osic-pulmonary-fibrosis-progression. ``train.csv`` holds one row a visit: ``Patient, Weeks, FVC,
Percent, Age, Sex, SmokingStatus``; ``train/<Patient>/<n>.dcm`` one CT series a patient.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cpic_monai.cohorts.cohort import Cohort, LeftOut
from cpic_monai.cohorts.reading import first_non_number, read_table, to_numbers
from cpic_monai.cohorts.tabular import Column, is_missing
from cpic_monai.cohorts.target import TargetScaler

__all__ = ["OsicCohort"]

COLUMNS = ("Patient", "Weeks", "FVC", "Percent", "Age", "Sex", "SmokingStatus")
TABULAR = {
    "Weeks": Column("Weeks", "scaled", 52.0),
    "Percent": Column("Percent"),
    "Age": Column("Age"),
    "FVC": Column("FVC"),
    "Sex": Column("Sex", "categorical"),
    "SmokingStatus": Column("SmokingStatus", "categorical"),
}


class OsicCohort(Cohort):
    """Read the OSIC layout: one item a patient, with all visits.

    The first visit is the one of the smallest ``Weeks``. The target is FVC in mL, normalised relative to the first
    visit (`TargetScaler`, mode ``relative_to_first``). Of the tabular columns, ``Weeks`` is the time since the first
    visit in years of 52 weeks; all others are those of the first visit, for later ``Percent`` and ``FVC`` are the
    outcome itself. An item's ``visit`` is ``Weeks`` as in the file (relative to the CT).

    Parameters
    ----------
    folder
        Holds the table and the scans.
    tabular_columns
        Any of Weeks, Percent, Age, Sex, SmokingStatus, FVC.
    table, images
        Name of the table and of the folder of scans (``test.csv`` and ``test`` for Kaggle's test set).
    include_baseline
        Keep the first visit as a row. On by default: the competition scores it as well, and its change is 0.
    weeks
        Further ``Weeks`` (as in the file) at which every patient gets a row without a target: for prediction.
    target_fraction
        Fraction of the first FVC that is one unit of the label.
    require_target
        Leave out visits without FVC; off, they are kept with an unknown target (the first visit needs one always).

    Raises
    ------
    FileNotFoundError
        If the table or the folder of scans is missing.
    ValueError
        If columns are missing, a value is no number, or no patient is left.
    """

    def __init__(
        self,
        folder: str | Path,
        tabular_columns: Sequence[str] = ("Weeks",),
        table: str = "train.csv",
        images: str = "train",
        include_baseline: bool = True,
        weeks: Sequence[float] | None = None,
        target_fraction: float = 0.1,
        require_target: bool = True,
    ) -> None:
        unknown = [name for name in tabular_columns if name not in TABULAR]
        if unknown:
            raise ValueError(f"tabular_columns: {unknown} unknown to the OSIC cohort; choose among {list(TABULAR)}")
        folder = Path(folder).expanduser().resolve()
        frame = _read(folder / table)
        if not (folder / images).is_dir():
            raise FileNotFoundError(f"{folder / images} is missing: it should hold one folder of DICOM files a Patient")
        nameless = frame.index[frame["Patient"].map(is_missing).astype(bool)]
        left_out = [LeftOut(f"line {line}", "no Patient") for line in nameless]
        notes: list[str] = []
        items = []
        for patient, visits in frame.groupby("Patient", sort=True):
            try:
                visits = _visits(str(patient), visits, require_target, left_out, notes)
                scan = _series(folder / images / str(patient))
                items.append(_item(str(patient), visits, scan, include_baseline, weeks))
            except _Unusable as fault:
                left_out.append(LeftOut(str(patient), str(fault)))
        super().__init__(
            items=items,
            columns=tuple(TABULAR[name] for name in tabular_columns),
            target_name="FVC",
            unit="mL",
            visit_name="week",
            scaler=TargetScaler("relative_to_first", target_fraction),
            left_out=left_out,
            notes=notes,
            name="OSIC",
        )


class _Unusable(ValueError):
    """A patient that cannot be used; the message is the reason reported."""


def _read(path: Path) -> pd.DataFrame:
    frame = read_table(path, COLUMNS, ["Patient"])
    for name in ("Weeks", "FVC", "Percent", "Age"):
        line = first_non_number(frame[name])
        if line is not None:
            raise ValueError(
                f"{path}, line {line} ({frame['Patient'][line]}): {name} is {frame[name][line]!r}, no number"
            )
        frame[name] = to_numbers(frame[name])
    return frame


def _visits(
    patient: str, visits: pd.DataFrame, require_target: bool, left_out: list[LeftOut], notes: list[str]
) -> pd.DataFrame:
    """Visits in order of Weeks, one a week."""
    wanted = ["Weeks", "FVC"] if require_target else ["Weeks"]
    usable = visits.dropna(subset=wanted)
    if len(usable) < len(visits):
        left_out += [LeftOut(patient, f"a visit without {' or '.join(wanted)}")] * (len(visits) - len(usable))
    if usable.empty:
        raise _Unusable("no visit with Weeks and FVC")
    if usable["Weeks"].duplicated().any():
        repeated = sorted({float(w) for w in usable["Weeks"][usable["Weeks"].duplicated()]})
        notes.append(f"{patient}: several rows at Weeks {repeated}, FVC and Percent averaged")
        ways = dict.fromkeys(usable.columns, "first") | {"FVC": "mean", "Percent": "mean"}
        usable = usable.groupby("Weeks", as_index=False, sort=True).agg(ways)
    return usable.sort_values("Weeks", kind="stable").reset_index(drop=True)


def _series(folder: Path) -> Path:
    if not folder.is_dir():
        raise _Unusable("its folder of DICOM files is missing")
    if not any(entry.is_file() and not entry.name.startswith(".") for entry in folder.iterdir()):
        raise _Unusable("its folder of DICOM files is empty")
    return folder


def _item(
    patient: str, visits: pd.DataFrame, scan: Path, include_baseline: bool, weeks: Sequence[float] | None
) -> dict[str, object]:
    first = visits.iloc[0]
    if not first["FVC"] > 0:
        raise _Unusable(f"FVC of the first visit must be a positive number of mL, found {first['FVC']}")
    rows = visits[["Weeks", "FVC"]] if include_baseline else visits[["Weeks", "FVC"]].iloc[1:]
    if weeks is not None:
        further = sorted({float(w) for w in weeks} - {float(w) for w in rows["Weeks"]})
        added = pd.DataFrame({"Weeks": further, "FVC": np.nan}, dtype=float)
        rows = pd.concat([rows.astype(float), added]).sort_values("Weeks", kind="stable")
    if rows.empty:
        raise _Unusable("no visit after the first, and include_baseline is off")
    count = len(rows)
    week = rows["Weeks"].to_numpy(float)
    covariates = {name: [first[name]] * count for name in ("Percent", "Age", "Sex", "SmokingStatus", "FVC")}
    covariates["Weeks"] = list(week - float(first["Weeks"]))
    strata = {n: "unknown" if is_missing(first[n]) else str(first[n]) for n in ("Age", "Sex", "SmokingStatus")}
    return {
        "subject": patient,
        "group": patient,
        "image": str(scan),
        "covariates": covariates,
        "target": rows["FVC"].to_numpy(float),
        "baseline": float(first["FVC"]),
        "visit": week,
        "strata": strata,
    }
