"""Folds as training leaves them, for tests of what is made of them."""

from __future__ import annotations

import json

import numpy as np

from cpic_monai.report import predictions_frame, summarise_splits, write_metrics, write_predictions


def results_of(folder, tests, offset=0.0, patients=None):
    """Folds as training leaves them, of subjects with two visits; a list of test subjects a fold."""
    everyone = [f"p{n}" for n in range(8)]
    for k, held in enumerate(tests):
        splits = ["test" if name in held else "train" for name in everyone for _ in range(2)]
        visits = np.tile([0.0, 1.0], 8)
        truth = np.repeat(np.arange(8.0), 2) * 100 + visits
        middle = truth + offset + 10 * k + visits
        frame = predictions_frame(
            split=splits,
            subject=np.repeat(everyone, 2).tolist(),
            patient=np.repeat(patients or everyone, 2).tolist(),
            pred=np.stack([middle - 50, middle, middle + 50], 1),
            visit=visits,
            truth=truth,
            offset=np.zeros(16),
        )
        place = folder / f"fold_{k}" / "eval"
        write_predictions(frame, place / "predictions.csv")
        write_metrics(summarise_splits(frame), place / "metrics.json")
        facts = {"target": {"name": "age", "unit": "years", "visit": None}, "scoring": {}}
        (place / "report.json").write_text(json.dumps(facts))
        (folder / f"fold_{k}" / "fold.json").write_text(json.dumps({"seconds": 30.0}))
    return folder


def add_baseline(folder, name, values):
    """A further baseline of each fold, as an overlay adds it."""
    for k, rmse in enumerate(values):
        path = folder / f"fold_{k}" / "eval" / "metrics.json"
        metrics = json.loads(path.read_text())
        metrics["test"].setdefault("baselines", {})[name] = {"rmse": rmse}
        path.write_text(json.dumps(metrics))


GOOD = [["p0", "p3", "p6"], ["p1", "p4", "p7"], ["p2", "p5"]]
