from __future__ import annotations

import getpass
import hashlib
import json
import platform
import sys
from pathlib import Path

import numpy as np
import pytest
from monai.bundle import ConfigParser

from cpic_monai.report import collect_provenance, config_digest, data_checksum, data_record, run_settings
from cpic_monai.report.masking import without_secrets
from cpic_monai.report.provenance import without_paths


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/anna/data", "data"),
        ("/home/anna smith/scans/", "scans"),
        ("~/scans", "scans"),
        (r"C:\Users\anna\scan.nii", "scan.nii"),
        (r"\\server\share\scan.nii", "scan.nii"),
        ("sqlite:////home/anna/mlruns.db", "mlruns.db"),
        ("$import_module('/home/anna/my code/x.py').f(2) / 3", "$import_module('x.py').f(2) / 3"),
        ("['/a/b/c.json', '/d/e.json']", "['c.json', 'e.json']"),
        ("https://anna:secret@tracking.example.org/a/b", "https://tracking.example.org/a/b"),
        ("$@width // 2 / 3", "$@width // 2 / 3"),
        ("CT/PET, mL/week", "CT/PET, mL/week"),
        ("models/model.pt", "models/model.pt"),
    ],
)
def test_absolute_paths_are_cut(text: str, expected: str) -> None:
    assert without_paths(text) == expected


def test_nested_values_and_objects() -> None:
    value = {"a": [Path("/home/anna/x.pt"), {"b": ("/home/anna/y", 1, None, True)}], "/home/anna/key": object()}
    assert without_paths(value) == {"a": ["x.pt", {"b": ["y", 1, None, True]}], "key": "object"}


def test_digest_ignores_order_and_place_but_not_values() -> None:
    one = {"lr": 1e-3, "root": "/home/anna/data"}
    assert config_digest(one) == config_digest({"root": "/mnt/disk/data", "lr": 1e-3})
    assert config_digest(one) != config_digest(one | {"lr": 2e-3})
    text = '{"lr":0.001,"root":"data"}'
    assert config_digest(one) == hashlib.sha256(text.encode()).hexdigest()


def test_checksum_of_names_and_sizes(tmp_path: Path) -> None:
    for place in ("here", "there"):
        series = tmp_path / place / "train" / "ID1"
        series.mkdir(parents=True)
        (series / "1.dcm").write_bytes(b"abc")
        (series / "2.dcm").write_bytes(b"abcd")
        (tmp_path / place / "b.nii").write_bytes(b"12345")
    here, there = tmp_path / "here", tmp_path / "there"
    expected = hashlib.sha256(b"b.nii\x005\ntrain/ID1/1.dcm\x003\ntrain/ID1/2.dcm\x004\n").hexdigest()
    assert data_checksum([here / "train" / "ID1", here / "b.nii"], here) == expected
    assert data_checksum([there / "b.nii", there / "train" / "ID1", there / "b.nii"], there) == expected
    assert data_checksum([here / "train" / "ID1"]) == data_checksum([there / "train" / "ID1"])
    (there / "b.nii").write_bytes(b"1234")
    assert data_checksum([there / "train" / "ID1", there / "b.nii"], there) != expected
    with pytest.raises(FileNotFoundError, match=r"c\.nii does not exist"):
        data_checksum([here / "c.nii"])


def test_provenance_holds_what_is_needed_and_nobodys_name(tmp_path: Path) -> None:
    (tmp_path / "scan.nii").write_bytes(b"1")
    config = {"dataset_dir": str(tmp_path), "network": {"rank": 10}}
    result = collect_provenance(
        config=config, seed=7, paths=[tmp_path / "scan.nii"], root=tmp_path, extra={"checkpoint": tmp_path / "model.pt"}
    )
    assert result["seed"] == 7
    assert result["checkpoint"] == "model.pt"
    assert result["config"]["network"] == {"rank": 10}
    assert result["packages"]["torch"][0].isdigit()
    assert len(result["data_sha256"]) == len(result["config_sha256"]) == 64
    text = json.dumps(result)
    assert str(tmp_path) not in text
    assert platform.node() not in text
    assert f"/{getpass.getuser()}" not in text


STORAGE = {"headers": ["Authorization: Bearer tell-nobody"], "endpoint": "https://x.org", "retries": None}


@pytest.mark.parametrize(
    "words",
    [
        ["--volume_options", f"{{'resample_gaps': True, 'storage': {STORAGE}}}"],
        [f"--volume_options={{storage: {STORAGE}}}"],
        ["--overrides", json.dumps({"volume_options": {"storage": STORAGE}})],
        ["--overrides#volume_options#storage#headers#0", STORAGE["headers"][0], "--rank", "3"],
        [f"--volume_options::storage={STORAGE}"],
    ],
)
def test_credentials_of_a_store_are_not_recorded(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "monai.bundle", "run", *words])
    config = {"rank": 3, "volume_options": {"resample_gaps": True, "storage": STORAGE}, "text": f"$dict({words[-1]})"}
    result = collect_provenance(config=config)
    assert "tell-nobody" not in json.dumps(result)
    assert "volume_options" in result["command"]
    hidden = {"headers": ["***"], "endpoint": "***", "retries": None}
    assert result["config"]["volume_options"] == {"resample_gaps": True, "storage": hidden}
    assert without_secrets(result["config"]) == result["config"], "of a resumed run the same"
    others = {"a": "/mnt/storage/scan.nii", "b": (1, None)}
    assert without_secrets(others) == others


def test_settings_are_the_plain_values_that_a_run_has_used() -> None:
    config = {
        "imports": ["$import collections", "$import cpic_monai.report as report"],
        "rank": 4, "twice": "$2 * @rank", "shape": [1, "@rank"], "head": {"steps": 30, "jitter": None}, "late": "x",
        "patience": None, "unused": 7, "output_dir": "/home/anna/out", "initialize": [True],
        "part": {"_target_": "torch.nn.Identity"}, "parts": ["@part"], "off": {"_target_": "dict", "_disabled_": True},
        "returned": "$collections.namedtuple('Keys', 'missing')([])",
        "settings": "$lambda: report.run_settings(__local_refs)",
        "run": [
            "$(@settings, @twice, @shape, @head, @patience, @output_dir, @initialize, @parts, @off, @returned)",
            "$(@late, @settings())",
        ],
    }  # fmt: skip
    settings = ConfigParser(config).get_parsed_content("run")[1][1]
    assert settings == {"head": {"steps": 30, "jitter": None}, "late": "x", "rank": 4, "shape": [1, 4], "twice": 8}
    assert list(settings) == sorted(settings), "in one order, whichever was resolved first"


def test_settings_of_a_nested_id_or_an_array_are_none() -> None:
    assert run_settings({"head::steps": 3, "weights": np.zeros(2), "names": {"a": object()}, "scale": (1, 2.5)}) == {
        "scale": (1, 2.5)
    }


def test_record_reads_tables_and_lists_scans(tmp_path: Path) -> None:
    (tmp_path / "train" / "ID1").mkdir(parents=True)
    (tmp_path / "train" / "ID1" / "1.dcm").write_bytes(b"abc")
    (tmp_path / "b.nii").write_bytes(b"12345")
    (tmp_path / "train.csv").write_bytes(b"Patient,FVC\nID1,2000\n")
    scans = [tmp_path / "train" / "ID1", [str(tmp_path / "b.nii")], "https://store.example.org/c.zarr"]
    record = data_record(scans, tmp_path)
    listed = b"b.nii\x005\nhttps://store.example.org/c.zarr\x000\ntrain/ID1/1.dcm\x003\n"
    assert record["data"]["scans_sha256"] == hashlib.sha256(listed).hexdigest()
    assert record["data"]["tables"] == {"train.csv": hashlib.sha256(b"Patient,FVC\nID1,2000\n").hexdigest()}
    assert (record["data"]["files"], record["data"]["bytes"]) == (3, 8)
    assert "not their content" in record["data"]["hashed"]
    # a value in the table changes it, although no size does
    (tmp_path / "train.csv").write_bytes(b"Patient,FVC\nID1,2001\n")
    assert data_record(scans, tmp_path)["data_sha256"] != record["data_sha256"]
    assert data_record(scans, tmp_path)["data"]["scans_sha256"] == record["data"]["scans_sha256"]
    assert data_record(scans, tmp_path, tables=[])["data"]["tables"] == {}
    (tmp_path / "study.tsv").write_bytes(b"image\ty\n")
    tables = data_record(scans, tmp_path)["data"]["tables"]
    assert tables["study.tsv"] == hashlib.sha256(b"image\ty\n").hexdigest()
    assert set(tables) == {"train.csv", "study.tsv"}
    assert collect_provenance(paths=scans, root=tmp_path)["data"] == data_record(scans, tmp_path)["data"]


def test_the_command_is_kept_without_folders() -> None:
    command = collect_provenance()["command"]
    assert "pytest" in command
    assert "/bin/" not in command
