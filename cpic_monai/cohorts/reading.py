"""Reading of outcome tables with errors that say what to mend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cpic_monai.cohorts.tabular import is_missing

__all__ = ["first_non_number", "read_table", "to_numbers"]


def read_table(path: Path, required: Sequence[str], text: Sequence[str] = (), hint: str = "") -> pd.DataFrame:
    """Read a CSV (or, by its suffix, TSV) whose index is the row of the file, the header being line 1.

    Parameters
    ----------
    path
        The table.
    required
        Columns that must be there.
    text
        Columns kept as text, so that an identifier ``007`` stays one.
    hint
        What to do where columns are missing, for the message.

    Raises
    ------
    FileNotFoundError
        If the table is missing.
    ValueError
        If it is empty, or columns are missing.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: it should be a table with the columns {', '.join(required)}")
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        frame = pd.read_csv(
            path, sep=separator, dtype=dict.fromkeys(text, str), skipinitialspace=True, encoding="utf-8-sig"
        )
    except pd.errors.EmptyDataError:
        raise ValueError(f"{path} is empty: it should be a table with the columns {', '.join(required)}") from None
    frame.columns = [str(name).strip() for name in frame.columns]
    missing = [name for name in required if name not in frame.columns]
    if missing:
        raise ValueError(f"{path}: columns {missing} are missing; found {list(frame.columns)}{hint}")
    frame.index = pd.RangeIndex(2, len(frame) + 2, name="line")
    return frame


def to_numbers(values: pd.Series) -> pd.Series:
    """Floats, NaN where a value is missing, no number or infinite."""
    return pd.to_numeric(values, errors="coerce").astype(float).replace([np.inf, -np.inf], np.nan)


def first_non_number(values: pd.Series) -> int | None:
    """Line of the first value that is neither a finite number nor missing, or None."""
    wrong = to_numbers(values).isna() & ~values.map(is_missing).astype(bool)
    return int(values.index[wrong][0]) if wrong.any() else None
