"""Fine-tuning through the bundle: another target, other columns, another grid; what is taken, kept, named, refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cpic_monai.evaluation import Evaluation
from cpic_monai.finetune import FineTuning, MismatchError, take_encoder, take_voxels_and_basis
from cpic_monai.networks import CPICNet
from tests.bundle.conftest import SMALL, run_config

MODEL = {key: SMALL[key] for key in ("spatial_shape", "rank", "channels", "head", "folds", "batch_size")}
CT = {
    "padding_value": -1000.0,
    "intensity": [{"_target_": "cpic_monai.transforms.HUWindow", "low": -1000.0, "high": 400.0}],
}
FILES = ["train", "table", "finetune"]


@pytest.fixture(scope="session")
def table(phantom, tmp_path_factory) -> Path:
    """The phantom's scans with an outcome and columns that the checkpoint has never seen."""
    patients = pd.read_csv(phantom / "train.csv").drop_duplicates("Patient")
    path = tmp_path_factory.mktemp("table") / "cohort.csv"
    frame = pd.DataFrame(
        {
            "image": [str(phantom / "train" / name) for name in patients["Patient"]],
            "name": patients["Patient"],
            "sex": patients["Sex"],
            "years": patients["Age"] + np.linspace(0, 9, len(patients)),
        }
    )
    frame.to_csv(path, index=False)
    return path


def fine_tune(table: Path, trained: Path, output: Path, files: list[str] = FILES, **overrides) -> dict:
    """A run on the table; returns ``transfer.json``."""
    given = {
        "cohort_csv": str(table),
        "target_column": "years",
        "tabular_columns": ["sex"],
        "subject_column": "name",
        "unit": "years",
        "pretrained": str(trained / "models" / "model.pt"),
        "output_dir": str(output),
        **MODEL,
        **CT,
    }
    run_config("training", files, **(given | overrides))
    return json.loads((output / "eval" / "transfer.json").read_text())


def weights(path: Path) -> dict[str, torch.Tensor]:
    state = torch.load(path, weights_only=True)["model"]
    return {key: value for key, value in state.items() if key.startswith("encoder.")}


def actions(facts: dict) -> dict[str, str]:
    return {part["name"]: part["action"] for part in facts["parts"]}


def why(facts: dict) -> dict[str, str]:
    return {part["name"]: part["why"] for part in facts["parts"]}


def test_frozen_encoder_on_another_target_grid_rank_and_columns(bundle_folder, table, trained, tmp_path):
    other = {"spatial_shape": [12, 32, 24], "rank": 3, "quantiles": [0.1, 0.3, 0.5, 0.7, 0.9]}
    facts = fine_tune(table, trained, tmp_path, **other)
    before, after = weights(trained / "models" / "model.pt"), weights(tmp_path / "models" / "model.pt")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before), "a frozen encoder stays bit for bit"
    encoder = {name: action for name, action in actions(facts).items() if name.startswith("encoder.")}
    assert len(encoder) == 4
    assert set(encoder.values()) == {"taken"}
    assert actions(facts)["index sets"] == "re-selected"
    assert "rank: checkpoint 4, network 3" in why(facts)["basis"]
    for named in ("checkpoint Weeks", "sex=Male", "quantiles: checkpoint 3, network 5"):
        assert named in why(facts)["head"]
    assert 0 < facts["closed_form_seconds"] < 60
    predictions = pd.read_csv(tmp_path / "eval" / "predictions.csv")
    truth = pd.read_csv(table).set_index("name")["years"]
    np.testing.assert_allclose(predictions["truth"], truth[predictions["subject"]], rtol=1e-5)
    assert predictions["q0.5"].std() > 0
    comparison = json.loads((tmp_path / "eval" / "comparison.json").read_text())
    assert comparison["names"] == ["without the scans", "frozen encoder, re-fitted"]
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    rmse = next(entry for entry in comparison["metrics"] if entry["name"] == "rmse")
    assert rmse["second"] == pytest.approx(metrics["test"]["rmse"], rel=1e-6)
    assert rmse["first"] == pytest.approx(metrics["test"]["baselines"]["tabular"]["rmse"], rel=1e-6)


def test_encoder_goes_on_learning_and_is_compared_with_the_closed_form(bundle_folder, table, trained, tmp_path):
    overrides = {"freeze": "none", "max_epochs": 1, "passes": 1}
    fine_tune(table, trained, tmp_path, **overrides)
    last = torch.load(tmp_path / "models" / "last.pt", weights_only=True)
    start = weights(trained / "models" / "model.pt")
    assert any(not torch.equal(start[key], last["model"][key]) for key in start), "epochs move the encoder"
    folders = [tmp_path / "eval" / "before", tmp_path / "eval"]
    before, after = (json.loads((folder / "metrics.json").read_text()) for folder in folders)
    comparison = json.loads((tmp_path / "eval" / "comparison.json").read_text())
    assert comparison["names"] == ["re-fitted only", "fine-tuned"]
    rmse = next(entry for entry in comparison["metrics"] if entry["name"] == "rmse")
    assert (rmse["first"], rmse["second"]) == pytest.approx((before["test"]["rmse"], after["test"]["rmse"]))
    # The closed-form fit is the first candidate for the best checkpoint: validation can only get better.
    assert after["validation"]["rmse"] <= before["validation"]["rmse"] * (1 + 1e-6)
    assert last["best"]["metric"] == pytest.approx(after["validation"]["rmse"], rel=1e-5)
    # Resuming takes the epoch after the last one, and starts nothing anew.
    stamp = (tmp_path / "eval" / "transfer.json").stat().st_mtime_ns
    fine_tune(table, trained, tmp_path, **{**overrides, "max_epochs": 2, "resume": True})
    assert torch.load(tmp_path / "models" / "last.pt", weights_only=True)["epoch"] == 2
    assert (tmp_path / "eval" / "transfer.json").stat().st_mtime_ns == stamp


def test_a_start_that_no_epoch_could_beat_is_refused(bundle_folder, table, trained, tmp_path, monkeypatch):
    """NaN, as of a survival split without an event: every epoch would be compared with it, and thrown away."""
    run = Evaluation.run

    def without(self):
        metrics = run(self)
        metrics["validation"]["rmse"] = float("nan")
        return metrics

    monkeypatch.setattr(Evaluation, "run", without)
    with pytest.raises((RuntimeError, ValueError)) as raised:
        fine_tune(table, trained, tmp_path, freeze="none", max_epochs=1, passes=1)
    assert "the key metric rmse is NaN on the validation split" in f"{raised.value} {raised.value.__cause__}"
    assert not (tmp_path / "models" / "last.pt").exists(), "no epoch was run"


def test_a_start_that_does_not_say_whom_it_knows_is_not_taken_for_one_that_knows_nobody(
    bundle_folder, table, trained, tmp_path
):
    state = torch.load(trained / "models" / "model.pt", weights_only=True)
    del state["trained_on"]
    torch.save(state, tmp_path / "former.pt")
    facts = fine_tune(table, trained, tmp_path / "out", pretrained=str(tmp_path / "former.pt"))
    assert facts["test_groups_known_to_the_encoder"] is None
    facts = fine_tune(table, trained, tmp_path / "other", pretrained=str(tmp_path / "former.pt"), same_cohort=False)
    assert facts["test_groups_known_to_the_encoder"] == 0


def test_a_frozen_encoder_learns_from_the_validation_scans_too(bundle_folder, table, trained, tmp_path):
    facts = fine_tune(table, trained, tmp_path, fit_on_validation=True)
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    state = torch.load(tmp_path / "models" / "model.pt", weights_only=True)["model"]
    assert metrics["train"]["subjects"] == facts["training_scans"]
    assert len(state["basis.vectors"]) == facts["training_scans"] + metrics["validation"]["subjects"]
    assert metrics["validation"]["subjects"] > 0


def test_head_alone_keeps_voxels_and_basis(bundle_folder, table, trained, tmp_path):
    facts = fine_tune(table, trained, tmp_path, refit="head")
    old, new = (
        torch.load(folder / "models" / "model.pt", weights_only=True)["model"] for folder in (trained, tmp_path)
    )
    same = [key for key, value in old.items() if key.startswith(("encoder.", "indices.", "basis."))]
    assert all(torch.equal(old[key], new[key]) for key in same)
    assert not torch.equal(old["head.joint.0.weight"], new["head.joint.0.weight"])
    assert actions(facts)["basis"] == "taken"


@pytest.mark.parametrize(
    ("overrides", "fault", "words"),
    [
        ({"pretrained": "nowhere/model.pt"}, FileNotFoundError, "`pretrained`: no checkpoint at nowhere/model.pt"),
        ({"scales": [1, 2]}, MismatchError, r"encoder.layers.0: checkpoint 1 channel, network 2 .*--freeze none"),
    ],
)
def test_a_run_that_cannot_start_leaves_no_checkpoint(overrides, fault, words, bundle_folder, table, trained, tmp_path):
    with pytest.raises((fault, RuntimeError)) as raised:
        fine_tune(table, trained, tmp_path, **overrides)
    error: BaseException | None = raised.value
    while error is not None and not isinstance(error, fault):  # MONAI wraps what a config's object raises
        error = error.__cause__ or error.__context__
    assert re.search(words, str(error)), error
    assert not (tmp_path / "models" / "model.pt").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"freeze": "half"}, "`freeze` is 'half', none of encoder, none"),
        ({"refit": "all"}, "`refit` is 'all', none of basis, head"),
        ({"freeze": "none", "refit": "head"}, "set `freeze: encoder`"),
        ({"refit": "head", "calibrates_left_out": True}, "set `calibration_source` to validation"),
        ({"refit": "head", "fits_on_validation": True}, "`fit_on_validation` fits another"),
        ({}, "would be overwritten by the result: give another `output_dir`"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, words, tmp_path):
    checkpoint = tmp_path / "model.pt"
    torch.save({}, checkpoint)
    others = dict.fromkeys(("fit", "scans", "splits", "evaluation", "validator", "trainer", "objects"))
    given = {"freeze": "encoder", "refit": "basis", "checkpoint": tmp_path / "." / "model.pt", **others, **settings}
    with pytest.raises(ValueError, match=words):
        FineTuning(
            checkpoint, CPICNet((8, 8, 8)), select_scans=1, draws=1, tolerance=1e-9, seed=0, key_metric="rmse", **given
        )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rank": 3}, "rank: donor.pt 2, network 3"),
        ({"channels": 6}, "channels: donor.pt 5, network 6"),
        ({"spatial_shape": (8, 8, 16)}, "spatial_shape"),
        ({"unfolding": "fused"}, "unfolding"),
        ({"unfolding": "grouped"}, "unfolding: donor.pt interleaved, network grouped"),
        ({"spatial_shape": (7, 8, 8)}, r"spatial_shape: donor.pt \[8, 8, 8\], network \[7, 8, 8\]"),
        ({"grid_step": 2}, "grid_step: donor.pt 1, network 2"),
        ({"index_sets": "random_voxels"}, "index_sets"),
        ({"projection": "trl"}, "projection: donor.pt basis, network trl"),
    ],
)
def test_voxels_and_basis_of_another_form_are_not_kept(settings, words):
    common = {"spatial_shape": (8, 8, 8), "rank": 2, "channels": 5}
    donor = CPICNet(**common)
    donor.basis.fit(donor.decompose(torch.rand(3, 1, 8, 8, 8)))
    same = CPICNet(**common, seed=1)
    assert [str(part) for part in take_voxels_and_basis(same, donor.state_dict())] == [
        "index sets: taken",
        "basis: taken",
    ]
    assert torch.equal(same.voxels(), donor.voxels())
    assert torch.equal(same.basis.vectors, donor.basis.vectors)
    with pytest.raises(MismatchError, match=words):
        take_voxels_and_basis(CPICNet(**(common | settings)), donor.state_dict(), "donor.pt")


def test_index_sets_of_another_kind_are_not_kept():
    donor = CPICNet((8, 8, 8), rank=2, index_sets="tangent")
    donor.basis.fit(donor.decompose(torch.rand(3, 1, 8, 8, 8)))
    with pytest.raises(MismatchError, match=r"index_sets: donor\.pt has indices\.left_gram"):
        take_voxels_and_basis(CPICNet((8, 8, 8), rank=2, index_sets="picked_values"), donor.state_dict(), "donor.pt")


def test_layers_that_do_not_fit_are_left_as_they_are():
    donor, network = CPICNet((8, 8, 8), in_channels=1, rank=2), CPICNet((16, 8, 8), in_channels=4, rank=3, channels=6)
    own = {key: value.clone() for key, value in network.state_dict().items() if key.startswith("encoder.")}
    parts = {part.name: part for part in take_encoder(network, donor.state_dict())}
    assert [str(parts[f"encoder.layers.{n}"]) for n in (0, 2, 4, 6)] == [
        "encoder.layers.0: checkpoint 1 channel, network 4 (`image_channels` times the number of `scales`): "
        "re-initialised",
        "encoder.layers.2: taken",
        "encoder.layers.4: taken",
        "encoder.layers.6: checkpoint 16 channels of the encoding, network 6 (`channels`): re-initialised",
    ]
    for key, value in network.state_dict().items():
        if key.startswith("encoder."):
            wanted = donor.state_dict()[key] if ".2." in key or ".4." in key else own[key]
            assert torch.equal(value, wanted), f"{key}: weight and bias of a layer go together"


def test_an_encoder_taken_into_other_pooling_says_so():
    donor = CPICNet((16, 16, 16), rank=2, features=(4,), pooling=3)
    donor.basis.fit(donor.decompose(torch.rand(3, 1, 16, 16, 16)))
    network = CPICNet((16, 16, 16), rank=2, features=(4,))
    assert [str(part) for part in take_encoder(network, donor.state_dict())] == [
        "encoder.layers.0: taken",
        "encoder.layers.2: taken",
        "pooling: checkpoint 3, network 1 (`pooling`): set anew",
    ]
    with pytest.raises(MismatchError, match=r"pooling: donor\.pt 3, network 1"):
        take_voxels_and_basis(network, donor.state_dict(), "donor.pt")


def test_layers_that_the_network_lacks_are_told():
    donor = CPICNet((8, 8, 8), rank=2, features=(4, 5), channel_norm=True)
    network = CPICNet((8, 8, 8), rank=2, features=(4, 5))
    assert [str(part) for part in take_encoder(network, donor.state_dict())] == [
        "encoder.layers.0: taken",
        "encoder.layers.2: taken",
        "encoder.layers.4: taken",
        "encoder.layers.1.0: not in this network (`features`, `channel_norm`): left out",
        "encoder.layers.3.0: not in this network (`features`, `channel_norm`): left out",
    ]


def test_an_encoder_of_other_widths_is_refused():
    donor = CPICNet((8, 8, 8), features=(4, 7, 9), channels=5, rank=2)
    with pytest.raises(MismatchError, match=r"donor.pt: nothing of its encoder fits \(encoder.layers.0: checkpoint"):
        take_encoder(CPICNet((8, 8, 8), rank=2), donor.state_dict(), "donor.pt")


def test_voxel_values_have_nothing_to_take():
    with pytest.raises(MismatchError, match=r"this network has none \(`encoder: false`\)"):
        take_encoder(CPICNet((8, 8, 8), encoder=False, rank=2), CPICNet((8, 8, 8), rank=2).state_dict())
