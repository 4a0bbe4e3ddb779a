"""Scans found in folders, by name and content, and what is passed over."""

from __future__ import annotations

import builtins
import logging

import nibabel
import numpy as np
import pytest

from cpic_monai.cohorts import find_scans

DICOM = bytes(128) + b"DICM"


def _save(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4)), path)


def test_files_and_dicom_folders_are_found_by_name(tmp_path):
    _save(tmp_path / "a.nii.gz")
    _save(tmp_path / "deep" / "b.v2.nii")
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "1.dcm").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no scan")
    found = find_scans(tmp_path)
    assert set(found) == {"a", "b.v2", "series"}
    assert found["series"] == (tmp_path / "series").resolve()
    assert set(find_scans([tmp_path / "a.nii.gz", tmp_path / "series"])) == {"a", "series"}


def test_two_scans_of_one_name_are_refused(tmp_path):
    _save(tmp_path / "a.nii.gz")
    _save(tmp_path / "deep" / "a.nii.gz")
    with pytest.raises(ValueError, match="two scans are named 'a'"):
        find_scans(tmp_path)


def test_an_empty_folder_or_a_wrong_path_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no scan found"):
        find_scans(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.nii"):
        find_scans([tmp_path / "nowhere.nii"])


def test_a_store_is_one_scan_and_not_searched_inside(tmp_path):
    _save(tmp_path / "a.nii.gz")
    for store in ("b.ome.zarr", "deep/c.v2.zarr", ".d.ome.zarr.part", ".e.zarr.0123.part"):
        _save(tmp_path / store / "0" / "inside.nii")
    found = find_scans(tmp_path)
    assert set(found) == {"a", "b", "c.v2"}
    assert found["c.v2"] == (tmp_path / "deep" / "c.v2.zarr").resolve()
    assert find_scans(tmp_path / "b.ome.zarr") == {"b": (tmp_path / "b.ome.zarr").resolve()}


def test_linked_folders_are_searched_once_and_loops_are_not_followed(tmp_path):
    cohort, archive = tmp_path / "cohort", tmp_path / "archive"
    _save(archive / "0001" / "a.nii.gz")
    (archive / "0002").mkdir()
    (archive / "0002" / "1.dcm").write_bytes(b"")
    (archive / "0002" / "round").symlink_to(archive / "0002")
    cohort.mkdir()
    (cohort / "p1").symlink_to(archive / "0001")
    (cohort / "p2").symlink_to(archive / "0002")
    (cohort / "p3").symlink_to(archive / "0002")
    _save(cohort / "q" / "b.nii")
    (cohort / "loop").symlink_to(cohort)
    (cohort / "q" / "up").symlink_to(tmp_path)
    (cohort / "again").symlink_to(cohort / "q")
    _save(cohort / ".kept" / "c.nii")
    (cohort / "r").symlink_to(cohort / ".kept")
    found = find_scans(cohort)
    assert set(found) - {"p2", "p3"} == {"a", "b", "c"}
    assert len(found) == 4
    assert found["b"] == cohort / "q" / "b.nii"


@pytest.mark.parametrize("slices", ["IM0001", "1.2.840.113619.2.55", "a.ima", "a.dicom", "a.IMA", "MR.1"])
def test_dicom_is_found_without_its_suffix(tmp_path, slices):
    series = tmp_path / "p1"
    series.mkdir()
    (series / slices).write_bytes(DICOM)
    assert find_scans(tmp_path) == {"p1": series}


def test_what_is_no_scan_is_counted_and_files_of_known_kinds_are_not_opened(tmp_path, caplog, monkeypatch):
    _save(tmp_path / "a.nii")
    for name in ("notes.txt", "b.csv", "c.csv", "DICOMDIR", "README"):
        (tmp_path / name).write_bytes(DICOM if name == "DICOMDIR" else b"no scan")
    opened = []
    plain = builtins.open
    monkeypatch.setattr(builtins, "open", lambda file, *args: opened.append(str(file)) or plain(file, *args))
    with caplog.at_level(logging.INFO):
        assert set(find_scans(tmp_path)) == {"a"}
    assert opened == [str(tmp_path / "README")]
    assert "1 scans, 5 other files passed over (2 no suffix, 2 .csv, 1 .txt)" in caplog.text


def test_stores_of_an_earlier_conversion_are_passed_over(tmp_path):
    _save(tmp_path / "a.nii.gz")
    _save(tmp_path / "stores" / "a.ome.zarr" / "0" / "inside.nii")
    with pytest.raises(ValueError, match="two scans are named 'a'"):
        find_scans(tmp_path)
    assert find_scans(tmp_path, stores_of=tmp_path / "stores") == {"a": tmp_path / "a.nii.gz"}
    assert find_scans(tmp_path, stores_of=tmp_path) == {"a": tmp_path / "a.nii.gz"}


def test_a_link_keeps_its_own_name_and_suffix(tmp_path):
    _save(tmp_path / "blobs" / "real.nii.gz")
    (tmp_path / "blobs" / "real.nii.gz").rename(tmp_path / "blobs" / "a0f3")
    (tmp_path / "scan.nii.gz").symlink_to(tmp_path / "blobs" / "a0f3")
    assert find_scans(tmp_path / "scan.nii.gz") == find_scans(tmp_path) == {"scan": tmp_path / "scan.nii.gz"}
