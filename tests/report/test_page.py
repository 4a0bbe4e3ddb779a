"""The page as a browser takes it: what it shows, that it needs nothing outside itself, and that it is well formed."""

from __future__ import annotations

import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cpic_monai.report import (
    PickedScan,
    collect_provenance,
    constant_baseline,
    predictions_frame,
    summarise_splits,
    write_report,
)

VOID = {"meta", "img", "br", "link", "input", "hr", "col"}


class Page(HTMLParser):
    """Tags with their attributes, the text of the headings, and whether every tag is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.headings: dict[str, list[str]] = {"h1": [], "h2": [], "h3": []}
        self.feed(self.source)
        self.close()
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag in self.headings:
            self.headings[tag].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)
        for tag in self.open:
            if tag in self.headings:
                self.headings[tag][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return re.sub(r"[\s\u00a0\u202f]+", " ", " ".join(self.words))

    def titles(self) -> list[str]:
        return [" ".join(title.split()) for title in self.headings["h3"]]


def picked_scan(subject: str = "IDtest00000") -> PickedScan:
    return PickedScan(
        subject=subject,
        slices={"axial": np.full((20, 16), 0.2), "coronal": np.full((20, 8), 0.3), "sagittal": np.full((16, 8), 0.4)},
        planes={"axial": 3, "coronal": 4, "sagittal": 5},
        voxels=np.array([[1, 2, 3], [5, 4, 3], [5, 4, 7]]),
        shape=(20, 16, 8),
        spacing=(1.0, 1.0, 2.0),
    )


def report(folder: Path, frame: pd.DataFrame, **given: Any) -> Page:
    arguments: dict[str, Any] = {
        "metrics": {}, "cohort": {}, "target_name": "FVC", "unit": "mL", "visit_name": "week", **given,
    }  # fmt: skip
    path = write_report(folder, frame, **arguments)
    assert path == folder / "report.html"
    assert set(os.listdir(folder)) == {"report.html", "report.md", "report.json", "report_figures"}
    page = Page(path)
    assert_self_contained(page)
    return page


def assert_self_contained(page: Page) -> None:
    """Nothing is fetched: no script, no link, and every reference is into the page or carries its own data."""
    names = {name for name, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "video", "audio", "a"}
    for name, attributes in page.tags:
        for key, value in attributes.items():
            if key in ("src", "href", "xlink:href", "srcset", "action", "data", "poster", "background"):
                assert value is not None
                assert value.startswith(("#", "data:image/png;base64,")), f"<{name} {key}={value[:60]}>"
    assert "http://" not in page.source.replace("http://www.w3.org/", "")
    assert "https://" not in page.source
    assert "@import" not in page.source
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page.source))
    # references resolve, and no two figures share an id
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = {str(a.get("href") or a.get("xlink:href"))[1:] for a in page.all("use")}
    assert (used | set(re.findall(r"url\(#([^)]*)\)", page.source))) <= set(ids)
    # everybody is told what a figure shows
    for attributes in page.all("svg"):
        assert attributes["role"] == "img"
        assert len(str(attributes["aria-label"])) > 30
    for attributes in page.all("img"):
        assert len(str(attributes["alt"])) > 30
    # no stand-in colour is left, so figures follow light and dark
    assert "#0a0b" not in page.source
    assert page.all("html")[0]["lang"] == "en"
    assert any(a.get("name") == "viewport" and "width=device-width" in str(a.get("content")) for a in page.all("meta"))


def test_full_report(osic: pd.DataFrame, tmp_path: Path) -> None:
    metrics = summarise_splits(osic, baselines={"constant": constant_baseline(osic)})
    page = report(
        tmp_path, osic, metrics=metrics,
        cohort={"name": "phantom", "root": "/home/anna/data/osic", "test": {"female": 5}},
        picked=[picked_scan(), picked_scan("IDtest00007202177411956430")],
        curves={"train_loss": [3.0, 2.0, 1.5], "val_loss": [3.2, 2.4, 2.1], "val_mlll": [(1, -7.1), (3, -6.8)]},
        provenance=collect_provenance(config={"dir": "/home/anna/data", "rank": 10}, seed=5),
    )  # fmt: skip
    assert page.headings["h2"] == [
        "Metrics", "Cohort", "Courses", "Accuracy and calibration", "Worst cases", "Subgroups",
        "Where voxels were picked", "Training", "Provenance",
    ]  # fmt: skip
    titles = page.titles()
    assert sum(title.endswith("best") for title in titles) == 4
    assert sum(title.endswith("median") for title in titles) == 4
    assert sum(title.endswith("worst") for title in titles) == 4
    assert titles[12:] == [
        "Predicted against true", "Calibration", "Residuals",
        "IDtest00007202177411956430: 3 of 2 560 voxels (0.12 %), off by 141 mL on average",
        "Axial", "Coronal", "Sagittal", "Course", "Error by subgroup",
        "IDtest00000: 3 of 2 560 voxels (0.12 %)", "Axial", "Coronal", "Sagittal", "loss", "mlll",
    ]  # fmt: skip
    assert len(page.all("svg")) == 12 + 3 + 1 + 1 + 2
    assert len(page.all("img")) == 6
    # the headline says what metrics.json holds, about the test split
    entry = metrics["test"]
    assert (
        f"On 15 subjects (75 visits) held out for testing, the predicted FVC is {entry['mae']:.1f} mL off" in page.text
    )
    gain = entry["mlll"] - entry["baselines"]["constant"]["mlll"]
    assert f"{gain:.2f} above a constant prediction" in page.text
    low, high = (f"{value:.1f}" if value < 100 else f"{value:.0f}" for value in entry["intervals"]["mae"])
    assert f"{low} to {high}" in page.text
    assert f"{entry['mlll']:.2f}".replace("-", "−") in page.text
    # one row a split and one a baseline, in the metrics table
    assert sum(a.get("class") == "model" for a in page.all("tr")) == 3
    assert sum(a.get("class") == "base" for a in page.all("tr")) == 3
    assert "female" in page.text
    assert "anna" not in page.source
    assert "osic" in page.text


def test_courses_alt_text_tells_the_numbers(osic: pd.DataFrame, tmp_path: Path) -> None:
    one = osic[(osic["split"] == "test") & (osic["subject"].str.startswith("IDtest00002"))]
    page = report(tmp_path, one, metrics=summarise_splits(one))
    alt = str(page.all("svg")[0]["aria-label"])
    first, last = (f"{value:,.0f}".replace(",", "\u202f") for value in (one["truth"].iloc[0], one["truth"].iloc[-1]))
    assert f"of subject {one['subject'].iloc[0]} over week {one['visit'].iloc[0]:g} to {one['visit'].iloc[-1]:g}" in alt
    assert f"true from {first} to {last} mL" in alt
    inside = int(((one["truth"] >= one["q0.2"]) & (one["truth"] <= one["q0.8"])).sum())
    assert f"{inside} of 5 inside the band" in alt


def test_no_visits_gives_sorted_predictions(ages: pd.DataFrame, tmp_path: Path) -> None:
    metrics = summarise_splits(ages, sigma_min=2.0, error_max=40.0)
    page = report(tmp_path, ages, metrics=metrics, target_name="Age", unit="years", visit_name=None)
    assert "Courses" not in page.headings["h2"]
    assert page.titles() == ["Predictions in order", "Predicted against true", "Calibration", "Residuals"]
    inside = int(((ages["truth"] >= ages["q0.2"]) & (ages["truth"] <= ages["q0.8"])).sum())
    assert f"{inside} of 40 true values lie inside" in str(page.all("svg")[0]["aria-label"])
    assert "On 40 subjects, the predicted Age is" in page.text


def test_visit_name_without_any_course_gives_sorted_predictions(ages: pd.DataFrame, tmp_path: Path) -> None:
    page = report(tmp_path, ages.assign(visit=3.0), metrics=summarise_splits(ages))
    assert page.titles()[0] == "Predictions in order"


def test_inference_without_truth(osic: pd.DataFrame, tmp_path: Path) -> None:
    frame = osic[osic["split"] == "test"].assign(truth=np.nan, split="inference")
    page = report(tmp_path, frame, metrics={})
    assert page.headings["h2"] == ["Cohort", "Courses"]
    assert len(page.all("svg")) == 12
    assert "FVC was predicted for 15 subjects (75 visits). Their true values are not known" in page.text.replace(
        "  ", " "
    )
    assert "nan" not in page.text.lower()
    with_empty_metrics = report(tmp_path, frame, metrics=summarise_splits(frame))
    assert "nan" not in with_empty_metrics.text.lower()


def test_partly_missing_truth(osic: pd.DataFrame, tmp_path: Path) -> None:
    frame = osic[osic["split"] == "test"].reset_index(drop=True)
    frame.loc[:9, "truth"] = np.nan
    page = report(tmp_path, frame, metrics=summarise_splits(frame))
    assert "10 of 75 rows have no true value and are not scored" in page.text
    assert "Histogram of 65 residuals" in page.source


@pytest.mark.parametrize("rows", [1, 2])
def test_a_single_subject(tmp_path: Path, rows: int) -> None:
    frame = predictions_frame(
        split="test", subject=["A"] * rows, visit=[0, 10][:rows], pred=[[90, 100, 120]] * rows,
        truth=[105.0, 80.0][:rows], offset=[100] * rows,
    )  # fmt: skip
    page = report(tmp_path, frame, metrics=summarise_splits(frame))
    assert ("Courses" in page.headings["h2"]) == (rows == 2)
    assert "1 subject" in page.text
    assert "nan" not in page.text.lower()


def test_crossed_quantiles_and_two_measurements_of_one_week(tmp_path: Path) -> None:
    frame = predictions_frame(
        split="test",
        subject=["A"] * 3 + ["B"] * 2,
        visit=[0, 0, 5, 7, 7],
        pred=[[3.0, 2.0, 1.0]] * 5,
        truth=[1.0, 2, 3, 4, 5],
    )
    assert len(report(tmp_path, frame, metrics=summarise_splits(frame)).all("svg")) == 2 + 3


def test_names_are_text_not_markup(tmp_path: Path) -> None:
    evil = "<script>alert('$x_1$')</script>&\""
    frame = predictions_frame(
        split=evil, subject=[evil] * 3, visit=[0, 1, 2], pred=[[1, 2, 3]] * 3, truth=[1.5, 2, 2.5],
        strata={evil: ["<b>", "&", "&"]},
    )  # fmt: skip
    page = report(
        tmp_path, frame, metrics=summarise_splits(frame, baselines={evil: frame}), target_name=evil, unit="<i>",
        visit_name=evil, cohort={evil: evil}, curves={f"{evil}_loss": [1, 2]},
        provenance={evil: {evil: evil}}, title=evil,
    )  # fmt: skip
    assert page.headings["h1"] == [evil]
    assert "<b>" in page.text


def test_many_rows_stay_light(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    median = rng.normal(0, 1, 6000)
    frame = predictions_frame(
        split="test", subject=[f"S{k // 2}" for k in range(6000)],
        pred=np.column_stack([median - 1, median, median + 1]), truth=median + rng.normal(0, 1, 6000),
    )  # fmt: skip
    frame.loc[0, ["q0.2", "q0.5", "q0.8"]] = 1e9  # one diverged prediction
    page = report(tmp_path, frame, metrics=summarise_splits(frame), visit_name=None)
    assert len(page.source) < 1_500_000


def test_the_same_input_gives_the_same_page(osic: pd.DataFrame, tmp_path: Path) -> None:
    metrics = summarise_splits(osic)
    pages = [report(tmp_path / name, osic, metrics=metrics, picked=[picked_scan()]).source for name in "ab"]
    assert pages[0] == pages[1]
