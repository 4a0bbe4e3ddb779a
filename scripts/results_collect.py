"""From the folds that an experiment has left to its entry in ``results.json``: numbers and settings, no paths."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from results_experiment import Experiment
from results_run import FAILED, TRAINED

from cpic_monai.cross_validation import MethodResult, aggregate, read_method, reader_of
from cpic_monai.metrics.named import NAMES
from cpic_monai.report import read_metrics
from cpic_monai.report.comparison import settings_that_differ
from cpic_monai.report.provenance import without_paths
from cpic_monai.report.summary import plain

DIGITS = 6
#: Packages whose version may change a number.
PACKAGES = ("cpic-monai", "monai", "torch", "numpy", "scipy", "scikit-learn", "itk", "pytorch-ignite")
#: Arguments of a fold that say where, not what.
PLACES = (
    "run_id", "config_file", "output_dir", "dataset_dir", "cohort_csv", "phantom_dir", "tracking_uri",
    "experiment_name", "run_name", "logging_file", "fold", "folds", "seed", "stratify", "validation_fraction",
    "num_workers", "cache_bytes",
)  # fmt: skip
#: An RMSE on training rows beyond this many times a constant prediction's is no mere lack of training.
ASTRAY = 1.5


def collect(experiment: Experiment, output_dir: Path) -> dict[str, Any] | None:
    """
    The entry of an experiment: what it asks, and what its finished folds say.

    A method whose folds are not all there counts with those that are; differences from the first method are on the
    patients of the folds that both have.

    Parameters
    ----------
    experiment : Experiment
    output_dir : path
        Of ``results.py run``.

    Returns
    -------
    dict or None
        None where no fold is done.

    Raises
    ------
    ValueError
        If folds of a method were made with different settings, or methods on different splits.
    """
    folder = output_dir / experiment.name
    entry = _with_seeds(experiment, folder) if experiment.seeds else _cross_validated(experiment, folder)
    return None if entry is None else rounded({**describe(experiment), **entry})


def describe(experiment: Experiment) -> dict[str, Any]:
    """What the page says of an experiment without its results."""
    given = asdict(experiment)
    kept = ("title", "question", "note", "data", "phantom", "config_files", "overrides")
    command = f"python scripts/results.py run {experiment.name} --output_dir DIR"
    return {key: given[key] for key in kept} | {"command": command}


def rounded(value: Any) -> Any:
    """A copy as JSON has it: floats to six significant digits, NaN as null."""
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    value = plain(value)
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _cross_validated(experiment: Experiment, folder: Path) -> dict[str, Any] | None:
    done = {name: _done(folder / name, range(experiment.folds)) for name in experiment.methods}
    done = {name: numbers for name, numbers in done.items() if numbers}
    if not done:
        return None
    first = next(iter(done))
    splits = {key: getattr(experiment, key) for key in ("folds", "seed", "stratify", "validation_fraction")}
    key_metric = experiment.key_metric or _settings(folder / first / f"fold_{done[first][0]}")["key_metric"]["name"]

    def method(name: str, numbers: list[int]) -> MethodResult:
        count = experiment.folds if numbers == list(range(experiment.folds)) else numbers
        return read_method(name, folder / name, count, read=reader_of(key_metric))

    whole = {name: method(name, numbers) for name, numbers in done.items()}
    # Methods that have the first one's folds are compared in one go, others on the folds that both have.
    alike = {name: found for name, found in whole.items() if done[name] == done[first]}
    result = aggregate(alike, splits, key_metric)
    methods = {}
    for name in whole:
        if name in alike:
            found = result["methods"][name]
        else:
            found = aggregate({name: whole[name]}, splits, key_metric)["methods"][name]
            both = [k for k in done[name] if k in done[first]]
            if both:
                pair = {n: method(n, both) for n in (first, name)}
                beside = aggregate(pair, splits, key_metric)["methods"][name]
                if "differences" in beside:
                    found["differences"] = beside["differences"]
        methods[name] = _numbers(found) | {"fold_numbers": done[name]} | _origin(folder / name, done[name])
    return {
        "key_metric": key_metric,
        "target": result["target"],
        "splits": splits,
        "split_sha256": result["split_sha256"],
        "subjects": result["subjects"],
        "n": result["n"],
        "methods": methods,
        "baselines": {name: _numbers(found) for name, found in result["baselines"].items()},
    }


def _numbers(found: Mapping[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "folds": found["folds"],
        "mean": found["mean"],
        "sd": found["sd"],
    }
    if "pooled" in found:
        entry["pooled"] = {key: found["pooled"].get(key, math.nan) for key in found["mean"]}
        if "intervals" in found["pooled"]:
            entry["pooled"]["intervals"] = found["pooled"]["intervals"]
    if "differences" in found:
        entry["differences"] = found["differences"]
    return entry


def _with_seeds(experiment: Experiment, folder: Path) -> dict[str, Any] | None:
    methods: dict[str, Any] = {}
    stability: dict[str, Any] = {}
    key_metric, target = experiment.key_metric, {}
    for name in experiment.methods:
        places = {seed: folder / f"seed_{seed}" / name / "fold_0" for seed in experiment.seeds}
        done = {seed: place for seed, place in places.items() if (place / "fold.json").is_file()}
        failed = [seed for seed, place in places.items() if seed not in done and (place / FAILED).is_file()]
        if not done and not failed:
            continue
        scores = {seed: read_metrics(place / "eval" / "metrics.json")["test"] for seed, place in done.items()}
        for place in done.values():
            key_metric = key_metric or str(_settings(place)["key_metric"]["name"])
            target = json.loads((place / "eval" / "report.json").read_text(encoding="utf-8"))["target"]
        stability[name] = _stability(done, scores, failed, str(key_metric))
        if done:
            methods[name] = _origin_of(list(done.values()))
    if not stability:
        return None
    splits = {key: getattr(experiment, key) for key in ("folds", "stratify", "validation_fraction")}
    return {"key_metric": key_metric, "target": target, "splits": splits, "methods": methods, "stability": stability}


def _stability(
    done: Mapping[int, Path], scores: Mapping[int, Mapping[str, Any]], failed: Sequence[int], key: str
) -> dict[str, Any]:
    """
    Summary over seeds.

    ``failed``: the process ended with an error. ``nan``: a loss, a metric or a weight is no finite number. ``skipped``:
    the optimizer left out a step. ``diverged``: its RMSE on its own training rows is beyond ``ASTRAY`` times
    that of a constant prediction. ``broken``: trainings with any of these, each once.
    """
    nan, skipped, diverged = set(), set(), set()
    for seed, place in done.items():
        trained = _trained(place)
        curves = json.loads((place / "eval" / "report.json").read_text(encoding="utf-8"))["curves"]
        numbers = [*np.ravel([v for values in curves.values() for v in values]), *(scores[seed].get(n) for n in NAMES)]
        if not trained["finite"] or not all(v is not None and math.isfinite(float(v)) for v in numbers):
            nan.add(seed)
        if trained["skipped"]:
            skipped.add(seed)
        train = read_metrics(place / "eval" / "metrics.json")["train"]
        if train["rmse"] is not None and train["rmse"] > train["baselines"]["constant"]["rmse"] * ASTRAY:
            diverged.add(seed)
    values = [float(scores[seed][key]) for seed in done if scores[seed].get(key) is not None]
    return {
        "runs": len(done) + len(failed),
        "failed": len(failed),
        "nan": len(nan),
        "skipped": len(skipped),
        "diverged": len(diverged),
        "broken": len(failed) + len(nan | skipped | diverged),
        "seeds": {str(seed): scores[seed].get(key) for seed in done},
        "mean": float(np.mean(values)) if values else math.nan,
        "sd": float(np.std(values, ddof=1)) if len(values) > 1 else math.nan,
        "min": min(values, default=math.nan),
        "max": max(values, default=math.nan),
    }


def _done(folder: Path, numbers: Sequence[int]) -> list[int]:
    return [k for k in numbers if (folder / f"fold_{k}" / "fold.json").is_file()]


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _trained(place: Path) -> dict[str, Any]:
    if not (place / TRAINED).is_file():
        raise FileNotFoundError(
            f"{place / TRAINED} is missing: run the experiment again, which writes it from the checkpoint"
        )
    return dict(_json(place / TRAINED))


def _settings(place: Path) -> dict[str, Any]:
    return dict(json.loads((place / "settings.json").read_text(encoding="utf-8")))


def _origin(folder: Path, numbers: Sequence[int]) -> dict[str, Any]:
    return _origin_of([folder / f"fold_{k}" for k in numbers])


def _origin_of(places: Sequence[Path]) -> dict[str, Any]:
    """How these folds of one method were made: settings, time, machine, packages."""
    first = {key: value for key, value in _settings(places[0]).items() if key not in PLACES}
    for place in places[1:]:
        other = {key: value for key, value in _settings(place).items() if key not in PLACES}
        if changed := settings_that_differ(first, other):
            row = changed[0]
            raise ValueError(
                f"{place}: {row['name']} is {row['second']!r}, in {places[0]} it is {row['first']!r}: these folds are "
                "not of one method. Remove those of former settings and run the experiment again"
            )
    arguments = _json(places[0] / "arguments.json")
    provenance = json.loads((places[0] / "eval" / "report.json").read_text(encoding="utf-8"))["provenance"] or {}
    machines = [str(_trained(place)["machine"]) for place in places]
    return {
        "seconds": [float(_json(place / "fold.json")["seconds"]) for place in places],
        "config_files": [f"configs/{Path(file).name}" for file in arguments["config_file"]],
        "settings": without_paths({key: value for key, value in arguments.items() if key not in PLACES}),
        "machine": ", then ".join(dict.fromkeys(machines)),
        "date": str(provenance.get("date", ""))[:10],
        "python": provenance.get("python"),
        "packages": {name: v for name, v in (provenance.get("packages") or {}).items() if name in PACKAGES},
    }
