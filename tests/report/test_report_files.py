"""Markdown and JSON say what the page says, and nothing is left half written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cpic_monai.report import constant_baseline, predictions_frame, summarise_splits, write_report
from cpic_monai.report.export import in_markdown
from cpic_monai.report.page import PickedScan
from cpic_monai.report.subgroups import subgroup_scores
from cpic_monai.report.trajectories import subject_errors


def scan(subject: str) -> PickedScan:
    return PickedScan(
        subject, {"axial": np.full((20, 16), 0.2)}, {"axial": 3}, np.array([[1, 2, 3], [5, 4, 3]]), (20, 16, 8),
        (1.0, 1.0, 2.0),
    )  # fmt: skip


@pytest.fixture(scope="module")
def written(osic: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("report")
    metrics = summarise_splits(osic, baselines={"constant": constant_baseline(osic)})
    write_report(
        folder, osic, metrics=metrics, cohort={"name": "phantom", "root": "/home/anna/osic"}, target_name="FVC",
        unit="mL", visit_name="week", picked=[scan("IDtest00007202177411956430"), scan("other")],
        curves={"train_loss": [3.0, 2.0]}, provenance={"seed": 5, "config": {"rank": 10}}, sigma_min=60.0,
    )  # fmt: skip
    return folder, metrics


def test_json_holds_the_numbers(written: tuple[Path, dict[str, Any]], osic: pd.DataFrame) -> None:
    folder, metrics = written
    text = (folder / "report.json").read_text()
    content = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert content["format"] == 1
    assert content["metrics"] == metrics
    assert content["target"] == {"name": "FVC", "unit": "mL", "visit": "week"}
    assert content["scoring"] == {"sigma_min": 60.0, "error_max": 1000.0}
    assert content["split"] == "test"
    assert content["cohort"]["splits"]["test"]["subjects"] == 15
    shown = osic[osic["split"] == "test"]
    assert content["worst"] == subject_errors(shown).head(10).to_dict("records")
    assert content["subgroups"] == subgroup_scores(osic, "test", sigma_min=60.0)
    assert [row["nominal"] for row in content["calibration"]] == [0.2, 0.5, 0.8]
    assert content["calibration"][0]["observed"] == (shown["truth"] <= shown["q0.2"]).mean()
    assert content["picked"][0] == {"subject": "IDtest00007202177411956430", "shape": [20, 16, 8], "voxels": 2}
    assert content["curves"] == {"train_loss": [3.0, 2.0]}
    assert content["provenance"] == {"seed": 5, "config": {"rank": 10}}
    assert "anna" not in text


def test_markdown_says_what_the_page_says(written: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = written
    text = (folder / "report.md").read_text()
    page = (folder / "report.html").read_text()
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert headings == [heading.strip() for heading in re.findall(r"<h2[^>]*>([^<]*)</h2>", page)]
    content = json.loads((folder / "report.json").read_text())
    for sentence in content["sentences"]:
        assert in_markdown(sentence) in text
    # every table row has as many cells as its heading
    for table in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        lines = table.splitlines()
        assert set(lines[1]) <= set("|-")
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1, table
    assert text.count("\n| test | C-PIC |") == 1
    assert "anna" not in text


def test_figures_of_the_markdown_are_files_that_open(written: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = written
    links = re.findall(r"\]\((report_figures/[^)]*)\)", (folder / "report.md").read_text())
    files = sorted(f"report_figures/{file.name}" for file in (folder / "report_figures").iterdir())
    assert sorted(links) == files
    page = (folder / "report.html").read_text()
    assert len(files) == page.count("<figure>")
    for link in links:
        if link.endswith(".png"):
            assert min(Image.open(folder / link).size) > 10
        else:
            source = (folder / link).read_text()
            assert ElementTree.fromstring(source).tag == "{http://www.w3.org/2000/svg}svg"
            assert "var(--" not in source


@pytest.mark.parametrize(("text", "expected"), [("a|b\nc", r"a\|b c"), ("<b>&", r"\<b\>&amp;"), ("*x_1*", r"\*x\_1\*")])
def test_text_is_no_markup(text: str, expected: str) -> None:
    assert in_markdown(text) == expected


def test_evil_names_stay_text_in_markdown(tmp_path: Path) -> None:
    evil = "<script>alert('$x_1$')</script>|&\""
    frame = predictions_frame(
        split=evil, subject=[evil] * 3, visit=[0, 1, 2], pred=[[1, 2, 3]] * 3, truth=[1.5, 2, 2.5],
        strata={evil: ["<b>", "&", "&"]},
    )  # fmt: skip
    metrics = summarise_splits(frame, baselines={evil: frame})
    write_report(
        tmp_path, frame, metrics=metrics, cohort={evil: evil}, target_name=evil, unit="<i>", visit_name=evil, title=evil
    )
    text = (tmp_path / "report.md").read_text()
    assert not re.search(r"(?<!\\)<(script|i|b)>", text)


def test_inference_has_markdown_and_json_too(osic: pd.DataFrame, tmp_path: Path) -> None:
    frame = osic[osic["split"] == "test"].assign(truth=np.nan, split="inference")
    write_report(tmp_path, frame, metrics={}, cohort={}, target_name="FVC", unit="mL", visit_name="week")
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["calibration"] == content["worst"] == content["subgroups"] == []
    assert content["metrics"] == {}
    assert "nan" not in (tmp_path / "report.md").read_text().lower()
