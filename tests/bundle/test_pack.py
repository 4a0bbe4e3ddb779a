"""The packed bundle: complete, true to the run it came from, and running where nothing of the checkout is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import tomllib
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import torch

from scripts import pack_bundle, verify_bundle
from scripts.verify_bundle import Bundle
from tests.bundle.conftest import ROOT, SMALL

MODEL = {key: SMALL[key] for key in ("spatial_shape", "rank", "channels")}
SETTINGS = {**MODEL, "folds": SMALL["folds"], "batch_size": SMALL["batch_size"], "head": SMALL["head"]}


@pytest.fixture(scope="module")
def packed(trained, tmp_path_factory) -> Path:
    """The packed bundle of the small run, in a folder of its own."""
    output = tmp_path_factory.mktemp("dist")
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        arguments = ["--run", str(trained), "--settings", json.dumps(SETTINGS), "--output", str(output)]
        assert pack_bundle.main(arguments) == 0
    finally:
        os.chdir(before)
    return output / "cpic_fvc_regression"


@pytest.fixture
def elsewhere(packed, tmp_path) -> Path:
    """A copy of the packed bundle, to be spoilt."""
    return Path(shutil.copytree(packed, tmp_path / packed.name))


def run_elsewhere(bundle: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in an empty folder, with the bundle's package before any other, and nothing of MLflow's settings."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    environment["PYTHONPATH"] = str(bundle)
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


def test_configs_are_written_out(packed) -> None:
    for path in (packed / "configs").glob("*.json"):
        assert '"%configs/' not in path.read_text(), f"{path.name} depends on the folder it is run from"
    checkout = {p.name for p in (ROOT / "configs").iterdir()}
    assert {p.name for p in (packed / "configs").iterdir()} == checkout
    train, evaluate, inference = (
        json.loads((packed / "configs" / f"{name}.json").read_text()) for name in ("train", "evaluate", "inference")
    )
    for key, value in MODEL.items():
        assert train[key] == evaluate[key] == inference[key] == value
    assert inference["preprocessing"] == train["preprocessing"]
    assert inference["_about_"]["rank"] == train["_about_"]["rank"]


def test_a_setting_that_does_not_exist_is_refused() -> None:
    with pytest.raises(KeyError, match="rnak: no key of configs/train"):
        pack_bundle.packed_configs(ROOT / "configs", {"rnak": 3})


def test_metadata_are_those_of_the_run(packed, trained) -> None:
    metadata = json.loads((packed / "configs" / "metadata.json").read_text())
    assert metadata["network_data_format"]["inputs"]["image"]["spatial_shape"] == MODEL["spatial_shape"]
    assert metadata["network_data_format"]["inputs"]["tabular"]["channel_def"] == {"0": "Weeks"}
    test = json.loads((trained / "eval" / "metrics.json").read_text())["test"]
    assert metadata["eval_metrics"]["mlll"] == test["mlll"]
    readme = (packed / "docs" / "README.md").read_text()
    assert f"| test | {test['mlll']:.3g} |" in readme
    assert pack_bundle.TABLE not in readme


def test_metadata_of_the_checkout_fit_its_configs_and_versions() -> None:
    metadata = json.loads((ROOT / "configs" / "metadata.json").read_text())
    train = json.loads((ROOT / "configs" / "train.json").read_text())
    assert pack_bundle.packed_metadata(metadata, train, train["tabular_columns"], {}) == metadata
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    needed = {
        "monai": metadata["monai_version"], "torch": metadata["pytorch_version"], "numpy": metadata["numpy_version"],
        **metadata["required_packages_version"],
    }  # fmt: skip
    assert needed == {name: pins[name] for name in needed}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {line.split(">")[0] for line in project["dependencies"]}
    assert set(needed) == named | {"jsonschema"}, "what the package needs, and what checks its metadata"
    assert metadata["version"] == project["version"]
    assert f"## [{metadata['version']}]" in (ROOT / "CHANGELOG.md").read_text()


def test_nothing_tells_whose_machine_it_was(packed, trained) -> None:
    for path in packed.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert str(ROOT).encode() not in content, path
            assert str(trained).encode() not in content, path


def test_the_zip_holds_the_same(packed) -> None:
    with zipfile.ZipFile(packed.with_suffix(".zip")) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    assert names == {str(path.relative_to(packed.parent)) for path in packed.rglob("*") if path.is_file()}
    assert not [name for name in names if "__pycache__" in name]
    assert {p.name for p in packed.parent.iterdir()} == {packed.name, f"{packed.name}.zip"}, "nothing is left behind"


@pytest.mark.slow
def test_verification_passes_and_names_what_is_wrong(packed, elsewhere, tmp_path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    done = run_elsewhere(packed, empty, str(packed / "scripts" / "verify_bundle.py"))
    assert done.returncode == 0, done.stderr
    assert "6 of 6 checks passed" in done.stdout
    assert not any(empty.iterdir())
    weights = torch.load(elsewhere / "models" / "model.pt", weights_only=True)
    weights["head.joint.0.bias"] += 1
    torch.save(weights, elsewhere / "models" / "model.pt")
    metadata = json.loads((elsewhere / "configs" / "metadata.json").read_text())
    metadata["network_data_format"]["outputs"]["pred"]["num_channels"] = 2
    (elsewhere / "configs" / "metadata.json").write_text(json.dumps(metadata))
    train = json.loads((elsewhere / "configs" / "train.json").read_text())
    del train["train"]["inferer"]
    (elsewhere / "configs" / "train.json").write_text(json.dumps(train))
    done = run_elsewhere(elsewhere, empty, str(elsewhere / "scripts" / "verify_bundle.py"))
    assert done.returncode == 1
    assert "checkpoint: FAILED: ValueError: model.ts predicts something else than model.pt" in done.stderr
    assert "network: FAILED: ValueError: output channel number" in done.stderr
    assert (
        "properties: FAILED: ValueError: properties missing or under a wrong name: train: train_inferer" in done.stderr
    )
    assert "3 of 6 checks passed" in done.stdout


def test_wrong_directories_versions_and_metadata_are_named(elsewhere, tmp_path) -> None:
    bundle = Bundle(elsewhere, tmp_path)
    verify_bundle.check_directory(bundle)
    verify_bundle.check_versions(bundle)
    verify_bundle.check_metadata(bundle)
    known = tmp_path / "model_info.json"
    known.write_text(json.dumps({f"{elsewhere.name}_v{bundle.metadata['version']}": {}}))
    with pytest.raises(ValueError, match="was released before: raise `version`"):
        verify_bundle.check_versions(bundle, known)
    (elsewhere / "LICENSE").unlink()
    with pytest.raises(FileNotFoundError, match="the bundle lacks LICENSE"):
        verify_bundle.check_directory(bundle)
    metadata = {**bundle.metadata, "changelog": {"0.0.0": ""}}
    del metadata["network_data_format"]["inputs"]["image"]["dtype"]
    (elsewhere / "configs" / "metadata.json").write_text(json.dumps(metadata))
    changed = Bundle(elsewhere, tmp_path)
    with pytest.raises(ValueError, match="is missing in `changelog`"):
        verify_bundle.check_versions(changed)
    with pytest.raises(ValueError, match="Failed validating"):
        verify_bundle.check_metadata(changed)


PREDICT = """
import sys; sys.path.insert(0, {bundle!r})
from monai.bundle import create_workflow
create_workflow(config_file="{bundle}/configs/inference.json", workflow_type="inference",
                dataset_dir={data!r}, eval_dir="predictions").run()

import cpic_monai, torch
from monai.bundle import load, run
assert cpic_monai.__file__.startswith({bundle!r})
image = torch.rand(2, 1, *{shape})
network = load("cpic_fvc_regression", bundle_dir={parent!r}, workflow_type="inference", device="cpu")
assert network.basis.scans > 0
script, metadata, _ = load("cpic_fvc_regression", bundle_dir={parent!r}, load_ts_module=True, device="cpu")
assert metadata["name"] == "C-PIC FVC regression"
torch.testing.assert_close(script(image), network.eval()(image), rtol=0, atol=1e-5)
run("evaluating", config_file="{bundle}/configs/evaluate.json", dataset_dir={data!r}, eval_dir="evaluated")
"""


@pytest.mark.slow
def test_it_predicts_and_evaluates_from_another_folder(packed, trained, phantom, tmp_path) -> None:
    """The README's three lines, ``load``, and evaluation: the run's own numbers come out again."""
    code = textwrap.dedent(PREDICT).format(
        bundle=str(packed), parent=str(packed.parent), data=str(phantom), shape=MODEL["spatial_shape"]
    )
    done = run_elsewhere(packed, tmp_path, "-W", "ignore", "-c", code)
    assert done.returncode == 0, done.stderr[-3000:]
    table = pd.read_csv(tmp_path / "predictions" / "predictions.csv")
    assert len(table) == 16 * 5
    again = json.loads((tmp_path / "evaluated" / "metrics.json").read_text())
    first = json.loads((trained / "eval" / "metrics.json").read_text())
    for split, entry in first.items():
        for name in ("mlll", "rmse", "coverage", "n"):
            assert again[split][name] == pytest.approx(entry[name], rel=1e-6), (split, name)
    assert not (packed / "eval").exists(), "the bundle's own folder stays as it was"


def test_a_checkpoint_of_another_cohort_is_refused(tmp_path) -> None:
    """The packed configs read OSIC's layout: another target would be predicted in mL, from other intensities."""
    target = {"mode": "standardise", "factor": 0.1, "mean": 60.0, "sd": 9.0, "fitted": True}
    torch.save({"model": {}, "encoder": {"tabular": {}, "target": target}}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model.pt: its target is 'standardise', .*configs.inference_table.json"):
        pack_bundle.pack(tmp_path / "model.pt", None, {}, tmp_path / "dist")
    target["mode"] = "relative_to_first"
    torch.save({"model": {}, "encoder": {"tabular": {}, "target": target}}, tmp_path / "model.pt")
    (tmp_path / "template.nii.gz").touch()
    with pytest.raises(ValueError, match=r"template.nii.gz: the checkpoint was trained with configs/align.json"):
        pack_bundle.pack(tmp_path / "model.pt", None, {}, tmp_path / "dist")
    assert not (tmp_path / "dist").exists()


@pytest.mark.parametrize("alignment", [[], ["a transform"]])
def test_the_runs_report_says_whether_scans_were_aligned(tmp_path, alignment) -> None:
    """A template may lie elsewhere, and one that a former run left says nothing of this one."""
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"provenance": {"config": {"alignment": alignment}}}))
    (tmp_path / "template.nii.gz").touch()
    found = pack_bundle.aligned(tmp_path / "model.pt", tmp_path / "metrics.json")
    assert found == (report if alignment else None)
    assert pack_bundle.aligned(tmp_path / "model.pt", None) == tmp_path / "template.nii.gz"


def test_what_weights_were_fitted_to_is_written_out() -> None:
    configs = pack_bundle.packed_configs(ROOT / "configs", {"fit_on_validation": True})
    assert configs["evaluate.json"]["fit_on_validation"] is True
