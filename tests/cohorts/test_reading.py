from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from cpic_monai.cohorts.reading import read_table


def test_cells_are_read_without_blanks_and_lines_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "study.csv"
    path.write_text("\nid , grade,weight\n007, None,1\np1 ,N/A,None\n\nNA,Mild,3e1\n")
    frame = read_table(path, ["id"], ["id"])
    assert list(frame.columns) == ["id", "grade", "weight"]
    assert list(frame.index) == [3, 4, 6]
    assert frame["id"].fillna("-").tolist() == ["007", "p1", "-"], "text stays text, NA is missing"
    assert frame["grade"].fillna("-").tolist() == ["None", "-", "Mild"], "None is how much there is"
    assert frame["weight"].fillna(-1).tolist() == [1, -1, 30], "but among numbers it is missing"


def test_columns_are_numbers_truth_values_or_text(tmp_path: Path) -> None:
    path = tmp_path / "study.tsv"
    path.write_text("a\tb\tc\td\te\n1\ttrue\tx\t\t2\n2\tFALSE\t3\t\t2.5\n")
    kinds = read_table(path, ["a"]).dtypes
    assert pd.api.types.is_integer_dtype(kinds["a"])
    assert pd.api.types.is_bool_dtype(kinds["b"])
    assert pd.api.types.is_string_dtype(kinds["c"])
    assert all(pd.api.types.is_float_dtype(kinds[name]) for name in "de")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,2,\n3,4,\n", r"study\.csv: rows are not as long as the header .*comma at the end"),
        (b"a,b\n1,2\n3,4,5\n", r"study\.csv: rows are not as long as the header .*line 3"),
        ("a,b\nsit\u00e9,2\n".encode("latin-1"), r"study\.csv is not UTF-8 .*save it again as CSV in UTF-8"),
        (b"\n\n", r"study\.csv is empty: it should be a table with the columns a"),
        (b"b\n1\n", r"columns \['a'\] are missing; found \['b'\]; or not"),
    ],
)
def test_what_is_no_table_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "study.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / "study.csv", ["a"], hint="; or not")
