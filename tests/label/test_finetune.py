"""Fine-tuning replaces the checkpoint, starts from the same weights each time, and is picked up."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from cpic_monai.cohorts.trained_on import TrainedOn
from cpic_monai.label import FineTuning, LabelBundle, RequestError, fine_tune
from cpic_monai.label.finetune import last_fine_tuning
from tests.label.conftest import outcome

ASKED = {"tabular": {"Age": 63, "Sex": "Male", "FVC": 2800}, "visits": [52]}


def submitted(bundle, scans, count=6):
    return [bundle.expected.submitted(p.name, str(p), outcome(n)) for n, p in enumerate(scans[:count])]


def median(bundle, scan) -> float:
    return bundle.predict(str(scan), ASKED)[0]["predictions"][0]["q0.5"]


def test_basis_is_fitted_anew_and_learns(bundle, scans):
    server = LabelBundle(bundle.root)
    before = median(server, scans[0])
    stats = fine_tune(bundle, submitted(bundle, scans))
    assert stats["refit"] == "basis"
    assert stats["loss_after"] < 0.6 * stats["loss_before"]
    assert median(server, scans[0]) == median(LabelBundle(bundle.root), scans[0]) != before
    assert last_fine_tuning(server) == json.loads(json.dumps(stats))
    # The planted decline: none in the darkest scan, 4 mL a week for each step of brightness.
    assert median(server, scans[0]) > median(server, scans[5])


def test_head_alone_learns_from_one_outcome_and_keeps_the_basis(bundle, scans):
    kept = {k: v.clone() for k, v in bundle.network.state_dict().items() if not k.startswith("head.")}
    stats = fine_tune(bundle, submitted(bundle, scans, 1))
    assert stats["refit"] == "head"
    assert stats["loss_after"] < stats["loss_before"]
    state = bundle.network.state_dict()
    assert all(torch.equal(state[key], value) for key, value in kept.items())


def test_it_starts_from_the_first_weights_each_time(bundle, scans):
    once = fine_tune(bundle, submitted(bundle, scans), FineTuning(refit="head"))
    first = median(bundle, scans[0])
    fine_tune(bundle, submitted(bundle, scans, 2), FineTuning(refit="head"))
    twice = fine_tune(bundle, submitted(bundle, scans), FineTuning(refit="head"))
    assert (twice["loss_before"], twice["loss_after"]) == (once["loss_before"], once["loss_after"])
    assert median(bundle, scans[0]) == first


def test_whom_the_network_knows_is_kept_and_grows(bundle, scans):
    state = torch.load(bundle.checkpoint, weights_only=True)
    state = state if "model" in state else {"model": state, "encoder": bundle.encoder.state_dict()}
    splits = [[{"group": "before"}], [{"group": "chose"}]]
    torch.save(state | {"trained_on": TrainedOn(*splits).state_dict()}, bundle.checkpoint)
    items = submitted(bundle, scans)
    fine_tune(bundle, items)
    kept = torch.load(bundle.checkpoint, weights_only=True)["trained_on"]
    assert kept == TrainedOn([*splits[0], *items], splits[1]).state_dict()


def test_new_weights_from_elsewhere_become_the_start(bundle, scans):
    fine_tune(bundle, submitted(bundle, scans), FineTuning(refit="head"))
    state = torch.load(bundle.root / "models" / "pretrained.pt", weights_only=True)
    state["model"] = {k: v + 0.01 if k.startswith("head.") else v for k, v in state["model"].items()}
    torch.save(state, bundle.checkpoint)
    fine_tune(bundle, submitted(bundle, scans), FineTuning(refit="head"))
    kept = torch.load(bundle.root / "models" / "pretrained.pt", weights_only=True)["model"]
    assert all(torch.equal(kept[key], value) for key, value in state["model"].items())


def test_epochs_train_the_encoder(bundle, scans):
    before = bundle.network.encoder.state_dict()["layers.0.weight"].clone()
    stats = fine_tune(bundle, submitted(bundle, scans), FineTuning(epochs=2))
    assert stats["epoch"] == 2
    after = bundle.network.encoder.state_dict()["layers.0.weight"]
    assert not torch.equal(before, after)
    assert np.isfinite(median(bundle, scans[0]))


@pytest.mark.parametrize(
    ("count", "how", "words"),
    [
        (0, {}, "no outcome was submitted"),
        (2, {"refit": "basis"}, "at least 3 scans with outcomes, found 2"),
        (6, {"refit": "head", "epochs": 1}, "epochs of the encoder change the features"),
    ],
)
def test_too_few_outcomes_are_refused_and_nothing_changes(bundle, scans, count, how, words):
    stamp = bundle.checkpoint.stat().st_mtime_ns
    with pytest.raises(RequestError, match=words):
        fine_tune(bundle, submitted(bundle, scans, count), FineTuning(**how))
    assert bundle.checkpoint.stat().st_mtime_ns == stamp
    assert sorted(p.name for p in bundle.checkpoint.parent.iterdir()) == ["model.pt"]


def test_unknown_settings_are_refused():
    with pytest.raises(RequestError, match="'all' is none of auto, head, basis"):
        FineTuning(refit="all")
    with pytest.raises(RequestError, match="max_epochs"):
        FineTuning(epochs=-1)
