from __future__ import annotations

import os
from pathlib import Path

import pytest

from cpic_monai.atomic import replace_folder, replacing_folder, write_text_atomically


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.json"
    write_text_atomically(path, "old")

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_text_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["metrics.json"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = replace_folder(tmp_path / "figures", {"a": b"1", "b": b"2"})
    replace_folder(folder, {"b": b"3"})
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {"b": b"3"}
    with pytest.raises(OSError, match="missing"):
        replace_folder(folder, {"missing/x": b""})
    assert [file.name for file in tmp_path.iterdir()] == ["figures"], "nothing temporary is left"
    assert (folder / "b").read_bytes() == b"3", "the older folder stays"
    replace_folder(folder, {})
    assert list(tmp_path.iterdir()) == []


def test_of_two_writers_the_last_stays_even_if_they_meet_while_renaming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = replace_folder(tmp_path / "store", {"a": b"old"})
    replace, met = os.replace, []

    def quicker(source: Path, target: Path) -> None:
        replace(source, target)
        if Path(source) == folder and not met:  # the place is free: another writer takes it
            met.append(True)
            replace_folder(folder, {"b": b"other"})

    monkeypatch.setattr(os, "replace", quicker)
    with replacing_folder(folder) as fresh:
        fresh.mkdir()
        (fresh / "c").write_bytes(b"mine")
    assert met
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {"c": b"mine"}
    assert [file.name for file in tmp_path.iterdir()] == ["store"], "nothing temporary is left"
