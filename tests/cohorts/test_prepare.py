from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from cohort_items import raw_item

from cpic_monai.cohorts import (
    Cohort,
    Column,
    ItemEncoder,
    TabularEncoder,
    TargetScaler,
    TrainedOn,
    load_splits,
    prepare,
    split,
)

COLUMNS = (Column("age"), Column("site", "categorical"), Column("week", "scaled", 52))


def items() -> list[dict]:
    nan = float("nan")
    return [
        raw_item("a", "a", [10.0, 20.0], age=[30, 30], site=["x", "x"], week=[0, 26]),
        raw_item("b", "b", [30.0], age=[60], site=[None], week=[52]),
        raw_item("c", "c", [1000.0], age=[nan], site=["never seen"], week=[104]),
    ]


def test_values_are_fitted_on_training_items_only() -> None:
    cohort = Cohort(items(), COLUMNS, "value", "mL")
    splits = prepare(cohort, {"train": cohort.items[:2], "validation": [], "test": cohort.items[2:]})
    target = splits.state_dict()["target"]
    assert (target["mean"], target["sd"]) == (20.0, pytest.approx(np.sqrt(200 / 3)))
    assert splits.feature_names == ("age", "site=(missing)", "site=x", "week")
    # Age 30, 30, 60: mean 40, sd sqrt(200). Missing: the mean; a category not seen: zeros.
    np.testing.assert_allclose(splits.train[0]["tabular"].numpy()[:, 0], -10 / np.sqrt(200), rtol=1e-6)
    np.testing.assert_array_equal(splits.test[0]["tabular"].numpy(), [[0, 0, 0, 2]])
    np.testing.assert_allclose(splits.test[0]["label"].numpy(), [[980 / np.sqrt(200 / 3)]], rtol=1e-6)

    other = items()
    other[2]["target"][:] = -5
    other[2]["covariates"] |= {"age": [99], "site": ["y"]}
    changed = Cohort(other, COLUMNS, "value", "mL")
    again = prepare(changed, {"train": changed.items[:2], "validation": [], "test": changed.items[2:]})
    assert again.state_dict() == splits.state_dict()


def test_missing_in_training_gives_an_indicator() -> None:
    encoder = TabularEncoder([Column("age")]).fit(items())
    assert encoder.feature_names == ("age", "age missing")
    np.testing.assert_array_equal(encoder.transform(items()[2]).numpy(), [[0, 1]])


def test_state_travels_in_a_checkpoint() -> None:
    cohort = Cohort(items(), COLUMNS, "value", "mL")
    splits = prepare(cohort, {"train": cohort.items[:2], "validation": [], "test": cohort.items[2:]})
    buffer = io.BytesIO()
    torch.save(splits.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    json.dumps(state)  # plain containers
    encoder = ItemEncoder(state)
    assert encoder.feature_names == splits.feature_names
    assert encoder.state_dict() == splits.state_dict()
    for restored, known in zip(encoder.apply(cohort.items[2:]), splits.test, strict=True):
        for key in ("tabular", "label", "offset", "scale"):
            torch.testing.assert_close(restored[key], known[key], rtol=0, atol=0)
    evaluated = prepare(cohort, {"train": [], "validation": [], "test": cohort.items}, state)
    torch.testing.assert_close(evaluated.test[2]["label"], splits.test[0]["label"], rtol=0, atol=0)


def test_items_follow_the_contract() -> None:
    cohort = Cohort(items(), COLUMNS, "value", "mL")
    item = prepare(cohort, {"train": cohort.items, "validation": [], "test": []}).train[0]
    assert set(item) == {"subject", "group", "image", "tabular", "label", "offset", "scale", "visit", "strata"}
    assert item["tabular"].shape == (2, 5 + 1)
    for key in ("label", "offset", "scale", "visit"):
        assert item[key].shape == (2, 1)
        assert item[key].dtype == torch.float32
    np.testing.assert_allclose((item["label"] * item["scale"] + item["offset"]).numpy().ravel(), [10, 20], rtol=1e-5)


def test_load_splits_agrees_with_split(grouped: Cohort) -> None:
    splits, parts = load_splits(grouped, 1, 4, 0.2, seed=5), split(grouped, 1, 4, 0.2, seed=5)
    for name in ("train", "validation", "test"):
        assert [i["subject"] for i in getattr(splits, name)] == [i["subject"] for i in parts[name]]
    ages = torch.cat([item["tabular"] for item in splits.train])
    assert float(ages.mean()) == pytest.approx(0, abs=1e-6)
    assert float(ages.std(correction=0)) == pytest.approx(1, abs=1e-6)


def test_describe_is_json_safe(grouped: Cohort) -> None:
    summary = json.loads(json.dumps(grouped.describe()))
    assert (summary["scans"], summary["groups"], summary["rows"]) == (24, 12, 24)
    assert summary["target_mean"] == 5.5
    assert summary["tabular"]["age"]["mean"] == 11.5


@pytest.mark.parametrize(
    ("covariates", "columns", "message"),
    [
        ({"age": ["old"]}, [Column("age")], "subject s: 'age' is 'old', not a number"),
        ({"age": [float("inf")]}, [Column("age")], "subject s: 'age' is infinite"),
        ({"age": [None]}, [Column("age")], "'age' has no value in any training item"),
        ({"weight": [1]}, [Column("age")], r"subject s has no tabular column 'age'; it has \['weight'\]"),
    ],
)
def test_tabular_faults_are_named(covariates: dict, columns: list[Column], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TabularEncoder(columns).fit([raw_item("s", "s", [1.0], **covariates)])


def test_target_faults_are_named() -> None:
    with pytest.raises(ValueError, match=r"all 2 training targets are 3.0"):
        TargetScaler().fit([raw_item("s", "s", [3.0, 3.0])])
    with pytest.raises(ValueError, match="no training item has a target"):
        TargetScaler().fit([raw_item("s", "s", [float("nan")])])
    with pytest.raises(ValueError, match="subject s: the first value must be positive, found 0"):
        TargetScaler("relative_to_first").transform(raw_item("s", "s", [0.0]))
    with pytest.raises(ValueError, match="target mode must be one of"):
        TargetScaler("zscore")
    for unfitted in (TargetScaler(), TabularEncoder([Column("age")])):
        with pytest.raises(RuntimeError, match="not fitted"):
            unfitted.transform(raw_item("s", "s", [1.0], age=[1]))
    with pytest.raises(ValueError, match="subject s: 'week' is missing at row 1"):
        TabularEncoder([COLUMNS[2]]).fit([]).transform(raw_item("s", "s", [1.0, 2.0], week=[0, None]))


def test_an_empty_cohort_says_why() -> None:
    with pytest.raises(ValueError, match="no scan is left"):
        Cohort([], (), "value", "mL")


def test_a_checkpoint_says_what_its_outputs_are() -> None:
    cohort = Cohort(items(), COLUMNS, "value", "mL")
    parts = {"train": cohort.items[:2], "validation": [], "test": cohort.items[2:]}
    state = prepare(cohort, parts, outputs=["p(healthy)", "p(diseased)"]).state_dict()
    json.dumps(state)
    assert ItemEncoder(state).state_dict() == state, "without a word of its own it keeps the checkpoint's"
    assert prepare(cohort, parts, state, ["p(healthy)", "p(diseased)"]).state_dict() == state
    with pytest.raises(
        ValueError, match=r"predicts p\(healthy\), p\(diseased\), this configuration p\(diseased\), p\(h"
    ):
        prepare(cohort, parts, state, ["p(diseased)", "p(healthy)"])
    del state["outputs"]
    assert ItemEncoder(state, ["q0.5"]).outputs == ["q0.5"], "one of before outputs were kept loads as it did"


def test_nobody_that_was_learned_from_counts_as_held_out() -> None:
    cohort = Cohort(items(), COLUMNS, "value", "mL")
    parts = {"train": cohort.items[:1], "validation": cohort.items[1:2], "test": cohort.items[2:]}
    splits = prepare(cohort, parts)
    kept = splits.trained_on(fit_on_validation=True).state_dict()
    assert kept["fit_on_validation"]
    assert not any(name in json.dumps(kept) for name in ('"a"', '"b"'))
    assert (len(kept["train"]), len(kept["validation"])) == (1, 1)
    prepare(cohort, parts, splits.state_dict(), trained_on=kept)
    for learned, held in (("train", "test"), ("validation", "test"), ("train", "validation")):
        other = {**parts, held: parts[learned], learned: parts[held]}
        name = parts[learned][0]["group"]
        with pytest.raises(
            ValueError, match=f"1 of the 1 groups of the {held} split, .* is {name}: set `seed`, `fold`"
        ):
            prepare(cohort, other, splits.state_dict(), trained_on=kept)


def test_a_run_goes_on_with_its_own_splits_only() -> None:
    a, b, c = ([item] for item in items())
    ours, same = TrainedOn(a, b), TrainedOn(a, b)
    ours.load_state_dict(same.state_dict())
    for other in (TrainedOn(a, c), TrainedOn(a + b, c), TrainedOn(a + b)):
        with pytest.raises(ValueError, match=r"not the 1 and 1 of this run: set `seed`, .* another `output_dir`"):
            ours.load_state_dict(other.state_dict())
    fitted = TrainedOn(a, b, fit_on_validation=True)
    with pytest.raises(ValueError, match="were fitted to the validation scans"):
        ours.load_state_dict(fitted.state_dict())
    fitted.load_state_dict(ours.state_dict())


def test_another_column_of_groups_and_a_pretrained_encoder_are_said(caplog) -> None:
    a, b, c = ([item] for item in items())
    known = TrainedOn(a, b)
    elsewhere = [{"group": "/scans/a.nii"}]
    known.check_held_out({"train": elsewhere, "validation": [], "test": elsewhere}, "study")
    assert "none of its groups trained this checkpoint" in caplog.text
    tuned = TrainedOn(b, [])
    assert tuned.include(known.state_dict(), a + c) == 1
    assert TrainedOn.of(tuned.state_dict()).pretrained == tuned.pretrained == sorted(known.train + known.validation)
    tuned.check_held_out({"train": b, "validation": [], "test": a + c}, "study")
    assert "1 test groups trained the encoder" in caplog.text
