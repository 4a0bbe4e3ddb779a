from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cpic_monai.metrics import summarise
from cpic_monai.report import (
    constant_baseline,
    describe_cohort,
    predictions_frame,
    read_metrics,
    summarise_splits,
    write_metrics,
)

KEYS = {"mlll", "rmse", "mae", "r2", "pinball", "coverage", "n", "subjects"}


def test_constant_baseline_by_hand() -> None:
    frame = predictions_frame(
        split=["train"] * 5 + ["test"], subject=list("abcdef"), pred=np.zeros((6, 3)),
        truth=[100, 210, 320, 430, 540, 7], offset=[100, 200, 300, 400, 500, 1000],
    )  # fmt: skip
    result = constant_baseline(frame)  # changes 0, 10, 20, 30, 40: quantiles 8, 20, 32
    assert result.loc[5, ["q0.2", "q0.5", "q0.8"]].tolist() == [1008.0, 1020.0, 1032.0]
    assert result.loc[0, ["q0.2", "q0.5", "q0.8"]].tolist() == [108.0, 120.0, 132.0]
    assert (frame["q0.5"] == 0).all()  # the given frame is left alone
    both = constant_baseline(frame, ["train", "test"])  # a sixth change, -993: the median is 15
    assert both.loc[0, "q0.5"] == 115.0
    with pytest.raises(ValueError, match=r"splits \['fit'\]; found the splits \['test', 'train'\]"):
        constant_baseline(frame, ["fit"])


def test_splits_are_scored_apart_and_beside_baselines(osic: pd.DataFrame) -> None:
    metrics = summarise_splits(osic, baselines={"constant": constant_baseline(osic)})
    assert list(metrics) == ["train", "val", "test"]
    for split, entry in metrics.items():
        part = osic[osic["split"] == split]
        assert set(entry) == KEYS | {"baselines", "intervals"}
        assert {key: entry[key] for key in KEYS - {"subjects"}} == summarise(part)
        assert entry["subjects"] == part["subject"].nunique()
        assert set(entry["baselines"]["constant"]) == KEYS - {"subjects"} | {"intervals", "gains"}
        gain = entry["baselines"]["constant"]["gains"]["mlll"]
        assert gain["difference"] == entry["mlll"] - entry["baselines"]["constant"]["mlll"]
        assert 0 < gain["low"] < gain["difference"] < gain["high"]
        assert entry["mlll"] > entry["baselines"]["constant"]["mlll"]


def test_a_baseline_of_other_rows_is_refused(osic: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="baseline 'tabular' has 200 rows that are not the 205 rows"):
        summarise_splits(osic, baselines={"tabular": osic.iloc[5:]})
    other = osic.assign(truth=osic["truth"] + 1)
    with pytest.raises(ValueError, match="baseline 'tabular'"):
        summarise_splits(osic, baselines={"tabular": other})
    # another order, and truths that went through float32, are the same rows
    narrow = osic.iloc[::-1].assign(truth=osic["truth"].astype(np.float32))
    assert summarise_splits(osic, baselines={"tabular": narrow})["val"]["baselines"]["tabular"]["n"] == 30


def test_intervals_and_gains_are_over_patients(osic: pd.DataFrame) -> None:
    """Three subjects a patient; a baseline that knows of no patients is drawn like the model."""
    patients = osic["subject"].map(lambda name: f"{name[:-20]}{int(name[-20:-15]) // 3:02d}")
    entry = summarise_splits(osic.assign(patient=patients), baselines={"constant": constant_baseline(osic)})["test"]
    whole = osic.assign(subject=patients, patient=patients)
    expected = summarise_splits(whole, baselines={"constant": constant_baseline(whole)})["test"]
    assert (entry["subjects"], expected["subjects"]) == (15, 5)
    for name, ends in expected["intervals"].items():
        assert entry["intervals"][name] == pytest.approx(ends, rel=1e-9), name
    base, other = (found["baselines"]["constant"] for found in (entry, expected))
    assert base["intervals"]["mae"] == pytest.approx(other["intervals"]["mae"], rel=1e-9)
    assert base["gains"]["mae"] == pytest.approx(other["gains"]["mae"], rel=1e-9)


def test_missing_truths_are_counted(osic: pd.DataFrame, tmp_path: Path) -> None:
    frame = osic.copy()
    frame.loc[frame["split"] == "test", "truth"] = np.nan
    frame.loc[:2, "truth"] = np.nan
    metrics = summarise_splits(frame)
    assert (metrics["train"]["n"], metrics["train"]["n_without_truth"]) == (97, 3)
    assert (metrics["test"]["n"], metrics["test"]["n_without_truth"], metrics["test"]["subjects"]) == (0, 75, 15)
    assert "n_without_truth" not in metrics["val"]
    path = write_metrics(metrics, tmp_path / "metrics.json")
    strict = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert strict == read_metrics(path)
    assert strict["test"]["mlll"] is None
    assert strict["val"]["mlll"] == metrics["val"]["mlll"]


def test_numpy_numbers_are_written_as_numbers(tmp_path: Path) -> None:
    path = write_metrics(
        {"test": {"n": np.int64(3), "r2": np.float32("nan"), "list": (np.float64(0.5),)}}, tmp_path / "m"
    )
    assert read_metrics(path) == {"test": {"n": 3, "r2": None, "list": [0.5]}}


def test_cohort_by_hand() -> None:
    frame = predictions_frame(
        split=["train"] * 3 + ["infer"], subject=["a", "a", "b", "c"], pred=np.zeros((4, 3)), truth=[1, 2, 6, np.nan]
    )
    cohort = describe_cohort(frame)
    assert cohort["train"] == {"subjects": 2, "visits": 3, "target_mean": 3.0, "target_sd": pytest.approx(math.sqrt(7))}
    assert math.isnan(cohort["infer"]["target_mean"])
    assert cohort["infer"]["subjects"] == 1
