"""The results page: experiments as files, folds to numbers, targets, and a page that is what its data say."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cpic_monai.cross_validation import FoldRun
from cpic_monai.report import predictions_frame, summarise_splits, write_metrics, write_predictions

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import results
import results_experiment
import results_run
from results_collect import collect
from results_experiment import FOLDER, TARGETS, Experiment, expanded, experiments
from results_page import found_and_asked, page

ROOT = Path(__file__).resolve().parents[1]
TESTS = [["p0", "p3", "p6"], ["p1", "p4", "p7"], ["p2", "p5"]]
TINY = Experiment(
    "tiny", "Tiny", "Does it run?", "phantom", ["configs/train.json"], {"near": {}, "far": {"overrides": {"rank": 7}}},
    phantom={"subjects": 2, "shape": [4, 8, 8]}, folds=3, key_metric="mae", note="A remark.",
)  # fmt: skip


def leave_fold(place: Path, held: list[str], error: float, **trained: Any) -> None:
    """What a fold leaves whose predictions are `error` too high; subjects p0 to p7 have the truths 0, 100, ..."""
    names = [f"p{n}" for n in range(8)]
    truth = np.arange(8.0) * 100
    middle = truth + error
    frame = predictions_frame(
        split=["test" if name in held else "train" for name in names],
        subject=names,
        pred=np.stack([middle - 50, middle, middle + 50], 1),
        truth=truth,
        offset=np.zeros(8),
    )
    train, test = frame[frame["split"] == "train"], frame[frame["split"] == "test"]
    write_predictions(frame, place / "eval" / "predictions.csv")
    constant = frame.assign(**{f"q{q}": train["truth"].median() for q in (0.2, 0.5, 0.8)})
    write_metrics(summarise_splits(frame, baselines={"constant": constant}), place / "eval" / "metrics.json")
    facts = {
        "target": {"name": "age", "unit": "years", "visit": None},
        "scoring": {},
        "curves": {"train_loss": [1.0, trained.pop("loss", 0.5)]},
        "provenance": {"date": "2026-01-02T03:04:05Z", "python": "3.11", "packages": {"torch": "2.13.0", "itk": "5"}},
    }
    (place / "eval" / "report.json").write_text(json.dumps(facts))
    (place / "fold.json").write_text(json.dumps({"seconds": 10.0 + len(test)}))
    record = {"machine": "2 cores, no GPU", "steps": 4, "skipped": 0, "finite": True} | trained
    (place / "trained.json").write_text(json.dumps(record))


def leave_method(folder: Path, folds: list[int], error: float, rank: int = 10) -> None:
    for k in folds:
        place = folder / f"fold_{k}"
        leave_fold(place, TESTS[k], error + k)
        overrides = {"rank": rank, "cohort_csv": "/home/someone/study.csv", "fold": k}
        (place / "settings.json").write_text(json.dumps({**overrides, "key_metric": {"name": "rmse"}}))
        files = ["configs/train.json", "/home/someone/mine.json"]
        (place / "arguments.json").write_text(json.dumps({"run_id": "training", "config_file": files, **overrides}))


def test_every_experiment_is_a_cross_validation(monkeypatch, tmp_path):
    """Configs, methods and keys of all experiments are there: the settings of every method can be made."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("CPIC_DATA", str(tmp_path))
    known = experiments()
    assert {"ixi_age", "hippocampus", "phantom", "rank_seeds"} <= set(known)
    for experiment in known.values():
        monkeypatch.setattr(Experiment, "_data", lambda self, output_dir: {})
        plan = experiment.cross_validation(tmp_path, seed=(experiment.seeds or [None])[0])
        for name, runs in plan.runs.items():
            settings = runs[0].settings()
            base = json.loads((ROOT / "configs" / "train.json").read_text())
            overlays = [json.loads((ROOT / file).read_text()) for file in runs[0].config_files]
            keys = {key.lstrip("+").split("#")[0] for config in (base, *overlays) for key in config}
            given = {**experiment.overrides, **experiment.methods[name].get("overrides", {})}
            assert {key.split("#")[0] for key in given} <= keys, f"{experiment.name}, {name}"
            assert settings["seed"] == (experiment.seeds or [experiment.seed])[0]


def test_targets_name_experiments_and_methods_that_exist():
    known = experiments()
    for target in json.loads((FOLDER / TARGETS).read_text()):
        experiment = known[target["experiment"]]
        for place in [target["value"], *target.get("less", [])]:
            kind, method, *_ = place.split(".")
            assert kind == ("stability" if experiment.seeds else "methods")
            assert method == "*" or method in experiment.methods, place
        assert found_and_asked(target, {})["verdict"] == "not measured"


def test_the_page_is_what_its_data_say():
    assert (results.DOCS / results.PAGE).read_text(encoding="utf-8") == results.rendered(results.DOCS)


def test_an_experiment_that_is_not_as_it_should_be_is_named(tmp_path):
    path = tmp_path / "odd.json"
    path.write_text(json.dumps({"title": "x", "question": "x", "data": "phantom", "methods": {"a": {}}, "fold": 3}))
    with pytest.raises(ValueError, match=r"odd.json: lacks \['config_files'\]; unknown: \['fold'\]"):
        Experiment.read(path)
    path.write_text((FOLDER / "phantom.json").read_text().replace('"subjects"', '"patients"'))
    with pytest.raises(ValueError, match=r"phantom has \['patients'\]"):
        Experiment.read(path)


def test_a_method_like_another_has_its_files_and_overrides(tmp_path):
    place = tmp_path / "x.json"
    first = {"config_files": ["a.json"], "overrides": {"rank": 5, "draws": 2}}
    second = {"like": "first", "config_files": ["b.json"], "overrides": {"rank": 7}}
    keys = {"title": "X", "question": "?", "data": "phantom", "config_files": ["configs/train.json"]}
    place.write_text(json.dumps(keys | {"methods": {"first": first, "second": second, "plain": {}}}))
    assert Experiment.read(place).methods == {
        "first": first,
        "second": {"config_files": ["a.json", "b.json"], "overrides": {"rank": 7, "draws": 2}},
        "plain": {},
    }
    place.write_text(json.dumps(keys | {"methods": {"second": second, "first": first}}))
    with pytest.raises(ValueError, match=r"x\.json: method 'second' is like 'first', which is none of \[\] before it"):
        Experiment.read(place)


def test_variables_are_expanded_and_missing_ones_named(monkeypatch):
    monkeypatch.setenv("CPIC_DATA", "/data")
    given = {"a": ["$CPIC_DATA/x.csv"], "b": "$@rank + 1", "c": "costs $CPIC_DATA"}
    assert expanded(given, "e") == {"a": ["/data/x.csv"], "b": "$@rank + 1", "c": "costs $CPIC_DATA"}
    monkeypatch.delenv("CPIC_DATA")
    with pytest.raises(ValueError, match=r"e: .* needs the environment variable CPIC_DATA"):
        expanded(given, "e")


def test_experiments_on_one_phantom_share_its_folder(monkeypatch, tmp_path):
    made: list[tuple[Path, dict[str, Any]]] = []

    def write(folder: Path, **parameters: Any) -> Path:
        made.append((folder, parameters))
        return folder

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(results_experiment, "write_phantom_cohort", write)
    one, other = (replace(TINY, name=name).cross_validation(tmp_path) for name in ("one", "other"))
    folder = tmp_path / "data" / "phantom_4x8x8_2_seed0"
    assert made == [(folder, {"subjects": 2, "shape": [4, 8, 8], "seed": 0})] * 2
    for plan in (one, other):
        assert plan.runs["near"][0].overrides["dataset_dir"] == str(folder)
    below = replace(TINY).cross_validation(ROOT / "out").runs["near"][0].overrides["dataset_dir"]
    assert below == "out/data/phantom_4x8x8_2_seed0", "relative below the checkout: a copy of it goes on"


def test_folds_become_numbers_without_paths(tmp_path):
    leave_method(tmp_path / "tiny" / "near", [0, 1, 2], 5.0)
    leave_method(tmp_path / "tiny" / "far", [0, 2], 30.0, rank=7)
    entry = collect(TINY, tmp_path)
    assert entry is not None
    near, far = entry["methods"]["near"], entry["methods"]["far"]
    assert [fold["mae"] for fold in near["folds"]] == pytest.approx([5, 6, 7])
    assert (near["mean"]["mae"], near["sd"]["mae"]) == pytest.approx((6, 1))
    assert near["pooled"]["mae"] == pytest.approx((3 * 5 + 3 * 6 + 2 * 7) / 8, rel=1e-5)
    assert near["seconds"] == [13.0, 13.0, 12.0]
    assert (far["fold_numbers"], far["settings"], far["packages"]) == (
        [0, 2],
        {"rank": 7},
        {"torch": "2.13.0", "itk": "5"},
    )
    # Of two folds alone, and on the patients that both methods have: 25 years more on each.
    assert far["differences"]["mae"]["difference"] == pytest.approx(25)
    assert "/home" not in json.dumps(entry)
    text = page({"tiny": entry}, [], "# Title of the notes\n\n## More\n\nText.\n")
    assert "| far | 30.0 |  | 32.0 |" in text
    assert "| near | 5.00 | 6.00 | 7.00 |" in text
    assert "`near`: `rank` `10`" in text
    assert "A remark." in text
    assert text.endswith("## More\n\nText.\n")
    assert "Title of the notes" not in text


def test_folds_of_other_settings_are_no_one_method(tmp_path):
    leave_method(tmp_path / "tiny" / "near", [0, 1], 5.0)
    leave_method(tmp_path / "tiny" / "near", [2], 5.0, rank=3)
    with pytest.raises(ValueError, match=r"rank is 3, in .*fold_0 it is 10"):
        collect(TINY, tmp_path)


def test_nothing_done_is_no_entry(tmp_path):
    assert collect(TINY, tmp_path) is None
    assert collect(replace(TINY, seeds=[0, 1]), tmp_path) is None


def test_what_broke_over_seeds_is_counted(tmp_path):
    """Seven seeds: two good ones, one of each fault, one with two faults at once, which is one broken training."""
    faults: list[dict[str, Any]] = [
        {}, {}, {"skipped": 1}, {"finite": False}, {"loss": math.nan}, {"error": 900.0, "skipped": 2},
    ]  # fmt: skip
    for seed, fault in enumerate(faults):
        fault = dict(fault)
        place = tmp_path / "tiny" / f"seed_{seed}" / "near"
        leave_method(place, [0], 5.0 + seed)
        leave_fold(place / "fold_0", TESTS[0], fault.pop("error", 5.0 + seed), **fault)
    failed = tmp_path / "tiny" / "seed_6" / "near" / "fold_0"
    failed.mkdir(parents=True)
    (failed / "failed.json").write_text("{}")
    entry = collect(replace(TINY, seeds=list(range(8))), tmp_path)
    assert entry is not None
    found = entry["stability"]["near"]
    counts = {key: found[key] for key in ("runs", "failed", "nan", "skipped", "diverged", "broken")}
    assert counts == {"runs": 7, "failed": 1, "nan": 2, "skipped": 2, "diverged": 1, "broken": 5}
    assert (found["min"], found["max"]) == (5, 900)
    assert "| near | 7 | 1 | 2 | 2 | 1 |" in page({"tiny": entry}, [], "")


ENTRY = {
    "splits": {"folds": 3},
    "methods": {
        "a": {"fold_numbers": [0, 1, 2], "mean": {"r2": 0.7}, "sd": {"r2": 0.1}},
        "b": {"fold_numbers": [0], "mean": {"r2": 0.65}, "sd": {"r2": None}},
    },
    "stability": {"x": {"broken": 0}, "y": {"broken": 2}},
}


@pytest.mark.parametrize(
    ("target", "found", "verdict"),
    [
        ({"value": "methods.a.mean.r2", "direction": "at least", "threshold": 0.7}, "0.7", "met"),
        ({"value": "methods.a.mean.r2", "direction": "at most", "threshold": 0.6}, "0.7", "not met"),
        ({"value": "methods.a.mean.r2", "direction": "below", "threshold": 0.7}, "0.7", "not met"),
        ({"value": "methods.a.mean.r2", "direction": "between", "threshold": [0.65, 0.75]}, "0.7", "met"),
        ({"value": "methods.b.sd.r2", "direction": "at most", "threshold": 1}, "–", "not measured"),
        ({"value": "methods.c.sd.r2", "direction": "at most", "threshold": 1}, "–", "not measured"),
        ({"value": "stability.*.broken", "direction": "at most", "threshold": 0}, "2", "not met"),
        (
            {"value": "methods.b.mean.r2", "less": ["methods.a.mean.r2"], "direction": "at least",
             "threshold": "-methods.a.sd.r2"},
            "−0.05 (b: 1 of 3 folds)",
            "met",
        ),
    ],
)  # fmt: skip
def test_targets_are_met_or_not(target, found, verdict):
    row = found_and_asked({"what": "it", "experiment": "e", **target}, {"e": ENTRY})
    assert (row["found"], row["verdict"]) == (found, verdict)


def test_a_direction_that_is_none_is_refused():
    with pytest.raises(ValueError, match="direction 'over' is none of"):
        found_and_asked({"what": "it", "experiment": "e", "value": "a", "direction": "over", "threshold": 0}, {})


def test_the_record_of_a_training_counts_steps_left_out(tmp_path):
    """Three steps of the trainer, of which the optimizer took two; then a weight that is no number."""
    network = torch.nn.Linear(2, 1)
    optimizer = torch.optim.RAdam(network.parameters())
    for _ in range(2):
        network(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    state = {"model": network.state_dict(), "optimizer": optimizer.state_dict(), "iteration": 3}
    torch.save(state, tmp_path / "last.pt")
    assert results_run.training_record(tmp_path / "last.pt") == {"steps": 3, "skipped": 1, "finite": True}
    state["model"]["bias"][0] = math.nan
    torch.save(state, tmp_path / "last.pt")
    assert results_run.training_record(tmp_path / "last.pt")["finite"] is False


def test_folds_run_once_failures_are_kept_and_the_rest_goes_on(monkeypatch, tmp_path):
    """Training itself is replaced: which folds are begun, in which order, and what a failure leaves."""
    begun: list[str] = []

    def train(run: FoldRun, *_: Any) -> float:
        begun.append(f"{run.method} {run.number}")
        if run.method == "far" and run.number == 1 and len(begun) < 4:
            raise RuntimeError("out of memory")
        leave_fold(run.folder, TESTS[run.number], 5.0)
        (run.folder / "settings.json").write_text(json.dumps(run.settings()))
        return 1.0

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(Experiment, "_data", lambda self, output_dir: {})
    monkeypatch.setattr(FoldRun, "run", train)
    monkeypatch.setattr(results_run, "training_record", lambda path: {"steps": 1, "skipped": 0, "finite": True})
    assert results_run.run_experiment(TINY, tmp_path, folds=[1]) == ["tiny: far, fold 1"]
    assert begun == ["near 1", "far 1"]
    failure = tmp_path / "tiny" / "far" / "fold_1" / "failed.json"
    assert "out of memory" in failure.read_text()
    begun += [""] * 2
    assert results_run.run_experiment(TINY, tmp_path, methods=["near"], folds=[0]) == []
    assert results_run.run_experiment(TINY, tmp_path) == []
    assert begun[4:] == ["near 0", "far 0", "far 1", "near 2", "far 2"]
    assert not failure.exists()
    result = json.loads((tmp_path / "tiny" / "cv_metrics.json").read_text())
    assert list(result["methods"]) == ["near", "far"]
    with pytest.raises(ValueError, match=r"no methods \['other'\]"):
        results_run.run_experiment(TINY, tmp_path, methods=["other"])
    with pytest.raises(ValueError, match="folds 0 to 2, asked for"):
        results_run.run_experiment(TINY, tmp_path, folds=[3])
