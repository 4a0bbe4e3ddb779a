"""Configs as the user interface: every key explained, nothing defined twice, MONAI's own checks pass."""

from __future__ import annotations

import json

import pytest
from monai.bundle import ConfigParser, ConfigWorkflow, ReferenceResolver, verify_net_in_out

from tests.bundle.conftest import ROOT, SMALL

CONFIGS = sorted(p.name for p in (ROOT / "configs").glob("*.json") if p.name != "metadata.json")


@pytest.mark.parametrize("name", CONFIGS)
def test_every_key_is_explained(name):
    config = json.loads((ROOT / "configs" / name).read_text())
    about = config["_about_"]
    train = json.loads((ROOT / "configs" / "train.json").read_text())["_about_"]
    taken = {key for key, value in config.items() if isinstance(value, str) and value.startswith("%configs/train.json")}
    assert taken <= set(train), f"taken from train.json but not explained there: {sorted(taken - set(train))}"
    missing = set(config) - set(about) - taken - {"_about_"}
    assert not missing - set(train), f"{name}: keys without explanation: {sorted(missing - set(train))}"
    stale = set(about) - set(config)
    assert not stale, f"{name}: explained but not there: {sorted(stale)}"


@pytest.mark.parametrize("name", ["evaluate.json", "inference.json"])
def test_preprocessing_is_defined_once(name):
    config = json.loads((ROOT / "configs" / name).read_text())
    for key in ("loading", "finishing", "sampling", "preprocessing", "intensity", "spatial_shape"):
        assert config[key] == f"%configs/train.json::{key}"


@pytest.mark.parametrize("name", ["evaluate.json", "inference.json"])
def test_macros_find_their_source(name, bundle_folder):
    train = ConfigParser(ConfigParser.load_config_file("configs/train.json"))
    config = json.loads((ROOT / "configs" / name).read_text())

    def walk(value):
        if isinstance(value, dict):
            for part in value.values():
                walk(part)
        elif isinstance(value, str) and value.startswith("%configs/train.json::"):
            assert train.get(value.split("::", 1)[1], default="nothing") != "nothing", value

    walk(config)


@pytest.mark.parametrize("name", CONFIGS)
def test_expressions_are_python_once_monai_has_put_its_references_in(name):
    """MONAI puts ``__local_refs['key']`` in for ``@key``, which closes a text in single quotes that holds it."""

    def walk(value):
        if isinstance(value, dict | list):
            for part in value.values() if isinstance(value, dict) else value:
                walk(part)
        elif isinstance(value, str) and value.startswith("$"):
            names = dict.fromkeys(ReferenceResolver.match_refs_pattern(value), 0)
            code = ReferenceResolver.update_refs_pattern(value, names)[1:]
            compile(code, f"{name}: {value}", "exec" if code.startswith("import ") else "eval")

    walk({key: value for key, value in json.loads((ROOT / "configs" / name).read_text()).items() if key != "_about_"})


def test_training_workflow_has_monais_properties(bundle_folder, phantom, tmp_path):
    workflow = ConfigWorkflow(
        config_file="configs/train.json",
        meta_file="configs/metadata.json",
        logging_file="configs/logging.conf",
        workflow_type="train",
        dataset_dir=str(phantom),
        output_dir=str(tmp_path),
        **SMALL,
    )
    workflow.initialize()
    assert not workflow.check_properties()


def test_inference_workflow_has_monais_properties(bundle_folder, trained, phantom):
    workflow = ConfigWorkflow(
        config_file="configs/inference.json",
        meta_file="configs/metadata.json",
        logging_file="configs/logging.conf",
        workflow_type="infer",
        dataset_dir=str(phantom),
        output_dir=str(trained),
        **{key: SMALL[key] for key in ("spatial_shape", "rank", "channels")},
    )
    workflow.initialize()
    assert not workflow.check_properties()


def test_network_matches_metadata(bundle_folder, phantom, tmp_path):
    """``verify_net_in_out`` with the metadata's own shape and the default network."""
    verify_net_in_out(
        net_id="network_def",
        meta_file="configs/metadata.json",
        config_file="configs/train.json",
        device="cpu",
        dataset_dir=str(phantom),
        output_dir=str(tmp_path),
    )
