"""Reading of outcome tables with errors that say what to mend."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cpic_monai.cohorts.tabular import is_missing

__all__ = ["MISSING", "first_non_number", "read_table", "to_numbers"]

#: Cells without a value. Not ``None``, which is a class where it says how much of something there is.
MISSING = ("", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NULL", "null")


def read_table(path: Path, required: Sequence[str], text: Sequence[str] = (), hint: str = "") -> pd.DataFrame:
    """Read a CSV (or, by its suffix, TSV) whose index is the line of the file, the header's being 1.

    Cells are read without blanks around them; those of :data:`MISSING` are missing.

    Parameters
    ----------
    path
        The table, UTF-8.
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
        If it is empty or no table in UTF-8, a row has more cells than the header, or columns are missing.
    """
    wanted = f"it should be a table with the columns {', '.join(required)}"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {wanted}")
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    options: dict[str, Any] = {"sep": separator, "skipinitialspace": True, "encoding": "utf-8-sig"}
    try:
        with path.open(encoding="utf-8-sig") as lines:
            above = sum(1 for _ in itertools.takewhile(lambda line: not line.strip(), lines))
        header = pd.read_csv(path, nrows=0, skiprows=above, **options).columns
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # else cells beyond the header are dropped
            frame = pd.read_csv(
                path, names=[name.strip() for name in header], header=0, index_col=False, skiprows=above,
                skip_blank_lines=False, dtype=str, keep_default_na=False, **options,
            )  # fmt: skip
    except pd.errors.EmptyDataError:
        raise ValueError(f"{path} is empty: {wanted}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); save it again as CSV in UTF-8") from None
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        raise ValueError(
            f"{path}: rows are not as long as the header ({error}); is a comma at the end of lines, or a text with "
            "commas not in quotes?"
        ) from None
    missing = [name for name in required if name not in frame.columns]
    if missing:
        raise ValueError(f"{path}: columns {missing} are missing; found {list(frame.columns)}{hint}")
    frame.index = pd.RangeIndex(above + 2, above + 2 + len(frame), name="line")
    cells = frame.apply(lambda column: column.str.strip())
    cells = cells.mask(cells.isin(MISSING)).dropna(how="all")  # how="all": empty lines
    return cells.apply(lambda column: column if column.name in text else _as_numbers(column))


def _as_numbers(cells: pd.Series) -> pd.Series:
    """Numbers or truth values, if all cells but missing ones are; among numbers ``None`` is missing, too."""
    known = cells.dropna()
    if len(known) and known.str.lower().isin(["true", "false"]).all():
        truth = cells.str.lower().map({"true": True, "false": False})
        return truth.astype(bool) if len(known) == len(cells) else truth.astype(object)
    numbers = pd.to_numeric(cells.mask(cells == "None"), errors="coerce")
    return numbers if numbers.notna().sum() == (known != "None").sum() else cells


def to_numbers(values: pd.Series) -> pd.Series:
    """Floats, NaN where a value is missing, no number or infinite."""
    return pd.to_numeric(values, errors="coerce").astype(float).replace([np.inf, -np.inf], np.nan)


def first_non_number(values: pd.Series) -> int | None:
    """Line of the first value that is neither a finite number nor missing, or None."""
    wrong = to_numbers(values).isna() & ~values.map(is_missing).astype(bool)
    return int(values.index[wrong][0]) if wrong.any() else None
