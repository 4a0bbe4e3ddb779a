"""What clients send, and what they are told when it cannot be used."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cpic_monai.label import RequestError

GOOD = {"Age": 63, "Sex": "Male", "FVC": 2500}


def test_flat_texts_are_what_nested_numbers_are(bundle, scans):
    nested = bundle.predict(str(scans[0]), {"tabular": GOOD, "visits": [0, 26]})[0]
    flat = bundle.predict(str(scans[0]), {"Age": "63", "Sex": "Male", "FVC": "2500", "visits": "0, 26"})[0]
    assert nested == flat
    assert [row["visit"] for row in nested["predictions"]] == [0, 26]
    assert nested["unit"] == "mL"
    json.dumps(nested)


def test_a_scan_replaced_under_its_name_is_read_anew(bundle, scans):
    before = bundle.predict(str(scans[0]), {"tabular": GOOD})[0]["predictions"]
    other = bundle.predict(str(scans[5]), {"tabular": GOOD})[0]["predictions"]
    scans[0].write_bytes(scans[5].read_bytes())
    assert bundle.predict(str(scans[0]), {"tabular": GOOD})[0]["predictions"] == other != before


def test_default_visits_are_the_configs(bundle, scans):
    rows = bundle.predict(str(scans[0]), {"tabular": GOOD})[0]["predictions"]
    assert [row["visit"] for row in rows] == [0, 13, 26, 39, 52]
    assert all(row["q0.2"] <= row["q0.5"] <= row["q0.8"] for row in rows)


def test_unknown_first_value_gives_fractions_of_it(bundle, scans):
    known = bundle.predict(str(scans[0]), {"tabular": GOOD})[0]
    unknown = bundle.predict(str(scans[0]), {"tabular": {"Age": 63, "Sex": "Male"}})[0]
    assert unknown["unit"] == "fraction of the first FVC"
    assert any("FVC" in note for note in unknown["notes"])
    ratio = [a["q0.5"] / b["q0.5"] for a, b in zip(known["predictions"], unknown["predictions"], strict=True)]
    np.testing.assert_allclose(ratio, 2500, rtol=1e-5)


def test_missing_values_are_the_mean_and_unseen_categories_are_noted(bundle, scans):
    mean = float(np.mean([60 + n for n in range(6)]))
    blank = bundle.predict(str(scans[0]), {"Age": "", "Sex": "Male", "FVC": 2500})[0]
    given = bundle.predict(str(scans[0]), {"Age": mean, "Sex": "Male", "FVC": 2500})[0]
    np.testing.assert_allclose(blank["predictions"][-1]["q0.5"], given["predictions"][-1]["q0.5"], rtol=1e-6)
    notes = bundle.predict(str(scans[0]), {"tabular": {**GOOD, "Sex": "x"}})[0]["notes"]
    assert any("'x'" in note and "Female, Male" in note for note in notes)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"tabular": {"Age": 63}}, ["Sex is missing", "Age (a number)", "Sex (one of Female, Male)"]),
        ({}, ["Age, Sex is missing"]),
        ({"tabular": {**GOOD, "Age": "old"}}, ["Age must be a number, found 'old'"]),
        ({"tabular": {**GOOD, "Weight": 80}}, ["unknown tabular column Weight"]),
        ({"tabular": {**GOOD, "FVC": -1}}, ["FVC must be positive"]),
        ({"tabular": GOOD, "visits": "0, soon"}, ["visits must be a number, found ' soon'"]),
        ({"tabular": [1]}, ["tabular must be an object"]),
        ({"tabular": {**GOOD, "Age": [63]}}, ["Age must be one value"]),
    ],
)
def test_refusals_say_what_is_expected(bundle, scans, request_, words):
    with pytest.raises(RequestError) as caught:
        bundle.predict(str(scans[0]), request_)
    assert all(word in str(caught.value) for word in ["scan scan0", *words])


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ([1], "expected an object"),
        ({"visits": [0], "tabular": GOOD}, "no target"),
        ({"target": 2000, "tabular": GOOD}, "no visits"),
        ({"target": [2000, 1900], "visits": [0], "tabular": GOOD}, "2 targets for 1 visits"),
        ({"target": [2000, "?"], "visits": [0, 1], "tabular": GOOD}, "target must be a number"),
        ({"target": 2000, "visits": [0], "tabular": {"Age": 1}}, "Sex is missing"),
        ({"target": 0, "visits": [0], "tabular": {"Age": 1, "Sex": "Male"}}, "must be positive"),
    ],
)
def test_bad_outcomes_are_refused(bundle, outcome, words):
    with pytest.raises(RequestError, match="outcome of scan s"):
        bundle.expected.submitted("s", "s.nii.gz", outcome)
    with pytest.raises(RequestError) as caught:
        bundle.expected.submitted("s", "s.nii.gz", outcome)
    assert words in str(caught.value)


def test_baseline_of_an_outcome_is_given_or_its_earliest_target(bundle):
    outcome = {"target": [2400, 2600], "visits": [26, 0], "tabular": {"Age": 1, "Sex": "Male"}}
    assert bundle.expected.submitted("s", "s.nii", outcome)["baseline"] == 2600
    assert bundle.expected.submitted("s", "s.nii", {**outcome, "tabular": GOOD})["baseline"] == 2500
    item = bundle.expected.submitted("s", "s.nii", outcome)
    assert item["covariates"]["Weeks"] == [26, 0]
    assert item["covariates"]["Sex"] == ["Male", "Male"]
