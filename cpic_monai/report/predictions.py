"""
The predictions table: one row a visit, in the target's natural unit.

Columns of the frame, in this order: ``split`` and ``subject`` (str), ``visit`` (float: week, or NaN where a cohort
has no visits), one ``q<level>`` a quantile (float), ``truth`` (float, NaN where unknown), ``offset`` (float: what the
target is relative to, such as the first visit's FVC), ``patient`` (str: whose scan the subject is). Further columns,
such as ``sex``, are kept behind these as strata. A subject may have several rows of one visit, as OSIC's patients
measured twice in a week do. A patient may have several subjects, as the scans of a table's groups are, but a subject
has one patient.
In `predictions.csv` the visit column carries the cohort's own name, such as ``week``. `baselines.csv` holds the same
rows once a baseline, named in a further column ``baseline``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from cpic_monai.atomic import write_text_atomically
from cpic_monai.losses import check_quantiles
from cpic_monai.metrics import quantile_columns

__all__ = [
    "check_predictions",
    "patients_of",
    "predictions_frame",
    "read_baselines",
    "read_predictions",
    "strata_columns",
    "write_baselines",
    "write_predictions",
]

_KEYS = ["split", "subject", "visit"]
_TAIL = ["truth", "offset"]
_BASELINE = "baseline"


def predictions_frame(
    *,
    split: str | Sequence[str],
    subject: Sequence[str],
    pred: npt.ArrayLike,
    visit: npt.ArrayLike | None = None,
    truth: npt.ArrayLike | None = None,
    offset: npt.ArrayLike | None = None,
    patient: Sequence[str] | None = None,
    quantiles: Sequence[float] = (0.2, 0.5, 0.8),
    strata: dict[str, Sequence[str]] | None = None,
) -> pd.DataFrame:
    """
    Put predictions of R rows into a frame.

    Parameters
    ----------
    split : str, or sequence of R str
    subject : sequence of R str
    pred : array, shape (R, Q)
        Quantiles in natural units.
    visit, truth, offset : array, shape (R,) or (R, 1), optional
        NaN where not given.
    patient : sequence of R str, optional
        Whose scan a row is of; by default the subject is the patient.
    quantiles : sequence of Q float
    strata : dict of sequences of R str, optional
        Further columns, such as sex; left out where named like one of the above.

    Returns
    -------
    DataFrame

    Raises
    ------
    ValueError
        If lengths differ, or see `check_predictions`.
    """
    levels = check_quantiles(quantiles)
    values = np.asarray(pred, dtype=np.float64)
    rows = len(subject)
    if values.shape != (rows, len(levels)):
        raise ValueError(f"pred has shape {values.shape}, expected ({rows}, {len(levels)}): a row a subject's visit")
    columns: dict[str, object] = {"split": [split] * rows if isinstance(split, str) else list(split)}
    columns["subject"] = list(subject)
    for name, given in (("visit", visit), ("truth", truth), ("offset", offset)):
        column = np.full(rows, np.nan) if given is None else np.asarray(given, dtype=np.float64)
        if column.shape not in ((rows,), (rows, 1)):
            raise ValueError(f"{name} has shape {column.shape}, expected ({rows},) or ({rows}, 1)")
        columns[name] = column.reshape(rows)
    columns |= {f"q{level:g}": values[:, k] for k, level in enumerate(levels)}
    columns["patient"] = list(subject if patient is None else patient)
    # These win over strata of their names: the table's own column of patients may be one.
    return check_predictions(pd.DataFrame({**(strata or {}), **columns}))


def check_predictions(frame: pd.DataFrame) -> pd.DataFrame:
    """
    The same predictions with checked columns, in the order and of the types written above.

    Parameters
    ----------
    frame : DataFrame

    Returns
    -------
    DataFrame
        A new frame with a fresh index; the row order is kept. Without ``patient``, as in older files, each
        subject is a patient.

    Raises
    ------
    ValueError
        If a column is missing, there are no rows, a subject, patient or split is empty, or a quantile is not finite.
    """
    quantiles = quantile_columns(frame)
    missing = [name for name in _KEYS + _TAIL if name not in frame.columns]
    if missing:
        raise ValueError(f"predictions lack the columns {missing}; found {[str(name) for name in frame.columns]}")
    if frame.empty:
        raise ValueError("predictions have no rows; was the list of scans empty?")
    if "patient" not in frame.columns:
        frame = frame.assign(patient=frame["subject"])
    head = [*_KEYS, *quantiles.values(), *_TAIL, "patient"]
    result = frame[[*head, *(name for name in frame.columns if name not in head)]].reset_index(drop=True)
    for name in ("split", "subject", "patient"):
        if result[name].isna().any() or (result[name].astype(str) == "").any():
            raise ValueError(f"predictions: the column {name!r} is empty in row {int(result[name].isna().argmax())}")
        result[name] = result[name].astype(str)
    # Scans of one name are never patients of their own, as they would be in a table without a column of groups.
    result["patient"] = result["subject"].map(patients_of(result))
    for name in ["visit", *quantiles.values(), *_TAIL]:
        result[name] = pd.to_numeric(result[name]).astype(np.float64)
    spoilt = ~np.isfinite(result[list(quantiles.values())].to_numpy()).all(axis=1)
    if spoilt.any():
        raise ValueError(
            f"predictions: {int(spoilt.sum())} of {len(result)} rows have a quantile that is not finite, the first of "
            f"subject {result.loc[int(spoilt.argmax()), 'subject']!r}; the network has diverged or its input is spoilt"
        )
    return result


def patients_of(frame: pd.DataFrame) -> pd.Series:
    """Name of the patient by the subject's."""
    return frame.groupby("subject")["patient"].first()


def strata_columns(frame: pd.DataFrame) -> list[str]:
    """Names of the columns beyond the fixed ones, such as ``sex``."""
    fixed = {*_KEYS, *_TAIL, "patient", *quantile_columns(frame).values()}
    return [str(name) for name in frame.columns if name not in fixed]


def write_predictions(frame: pd.DataFrame, path: str | os.PathLike[str], *, visit_name: str | None = None) -> Path:
    """
    Write `predictions.csv` under a temporary name, then rename it.

    Parameters
    ----------
    frame : DataFrame
    path : path
    visit_name : str, optional
        Header of the visit column, such as "week"; "visit" if None.

    Returns
    -------
    Path

    Raises
    ------
    ValueError
        See `check_predictions`; or if `visit_name` is the name of another column.
    """
    frame = check_predictions(frame)
    name = visit_name or "visit"
    if name != "visit" and name in frame.columns:
        raise ValueError(
            f"visit_name {name!r} is the name of another column of the predictions; choose a different one"
        )
    # Floats as the shortest text that reads back to the same number; an empty field is a missing value.
    return write_text_atomically(path, frame.rename(columns={"visit": name}).to_csv(index=False, lineterminator="\n"))


def read_predictions(path: str | os.PathLike[str]) -> pd.DataFrame:
    """
    Read `predictions.csv`; the third column is the visit whatever its name.

    Subjects and patients stay text ("007", "NA"), and numbers are bit for bit those that were written.

    Raises
    ------
    FileNotFoundError
    ValueError
        If the file does not begin with ``split,subject,<visit>`` or see `check_predictions`.
    """
    table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    if list(table.columns[:2]) != _KEYS[:2] or len(table.columns) < 3:
        raise ValueError(f"{Path(path).name}: expected columns split,subject,<visit>,q…; found {list(table.columns)}")
    table = table.rename(columns={table.columns[2]: "visit"})
    for name in ["visit", *quantile_columns(table).values(), *_TAIL]:
        if name in table.columns:
            try:
                table[name] = [float(text) if text else np.nan for text in table[name]]
            except ValueError as error:
                raise ValueError(
                    f"{Path(path).name}: column {name!r} holds something that is no number: {error}"
                ) from error
    return check_predictions(table)


def write_baselines(
    frames: Mapping[str, pd.DataFrame], path: str | os.PathLike[str], *, visit_name: str | None = None
) -> None:
    """
    Write `baselines.csv`, so that baselines can be pooled over folds and compared patient by patient.

    Parameters
    ----------
    frames : mapping of name to DataFrame
        Predictions of the same rows; strata are left out. Without any, a file of an earlier evaluation is removed.
    path : path
    visit_name : str, optional
        See `write_predictions`.
    """
    if not frames:
        Path(path).unlink(missing_ok=True)
        return
    bare = {name: frame.drop(columns=strata_columns(frame)) for name, frame in frames.items()}
    table = pd.concat([frame.assign(**{_BASELINE: name}) for name, frame in bare.items()], ignore_index=True)
    write_predictions(table, path, visit_name=visit_name)


def read_baselines(path: str | os.PathLike[str]) -> dict[str, pd.DataFrame]:
    """
    Read `baselines.csv`: name to predictions, in the order of the file; empty where there is no such file.

    Raises
    ------
    ValueError
        See `read_predictions`.
    """
    if not Path(path).is_file():
        return {}
    table = read_predictions(path)
    parts = table.groupby(_BASELINE, sort=False)
    return {str(name): part.drop(columns=_BASELINE).reset_index(drop=True) for name, part in parts}
