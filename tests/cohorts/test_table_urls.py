"""Scans that a table names by URL are opened where they are, and read patch by patch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cpic_monai.cohorts import TableCohort
from cpic_monai.transforms import LazyCompose, LoadVolumed, SamplePatchesd, VirtualScand
from cpic_monai.volumes import ArrayVolume, write_store
from tests.volumes.stores import served


class Corner:
    """Two voxels near the scan's first one."""

    def voxels(self, subject: str) -> torch.Tensor:
        return torch.tensor([[3, 3, 3], [4, 3, 5]])


def patches(source: str) -> torch.Tensor:
    """What a pipeline makes of one scan."""
    chain = LazyCompose([LoadVolumed("image"), VirtualScand("image"), SamplePatchesd("image", Corner(), 5)])
    return chain({"image": source, "subject": "a"})["image"]


def test_a_store_on_a_web_server_is_read_chunk_by_chunk(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 60_000, (64, 64, 64)).astype(np.uint16)
    write_store(ArrayVolume(array), tmp_path / "a.ome.zarr", patch_size=5, levels=1)
    with served(tmp_path) as (url, sent):
        (tmp_path / "cohort.csv").write_text(f"image,y\n{url}/a.ome.zarr,1\n  {url}/a.ome.zarr,2\nb.nii,3\n")
        cohort = TableCohort(tmp_path / "cohort.csv", target_column="y")
        assert [(item["image"], item["subject"]) for item in cohort.items] == [(f"{url}/a.ome.zarr",) * 2]
        assert len(cohort.items[0]["target"]) == 2  # rows of one URL are visits of one scan
        assert [left.reason for left in cohort.left_out] == [f"{tmp_path / 'b.nii'} does not exist"]
        assert sent["bytes"] == 0, "reading the table fetches nothing"
        found = patches(cohort.items[0]["image"])
        np.testing.assert_array_equal(found[0, 0], array[1:6, 1:6, 1:6])
        np.testing.assert_array_equal(found[1, 0], array[2:7, 1:6, 3:8])
        # One chunk of 16**3 voxels (which do not compress), the index of its shard, and headers.
        assert 16**3 * 2 * 0.9 < sent["bytes"] < 16**3 * 2 * 1.2 + 64 * 16 + 5000
    assert sent["bytes"] < array.nbytes / 20


def test_errors_name_the_url(tmp_path: Path) -> None:
    with served(tmp_path) as (url, _):
        (tmp_path / "cohort.csv").write_text(f"image,y\n{url}/none.zarr,1\ns3://bucket/b.zarr,2\n")
        cohort = TableCohort(tmp_path / "cohort.csv", target_column="y")
        assert [item["image"] for item in cohort.items] == [f"{url}/none.zarr", "s3://bucket/b.zarr"]
        with pytest.raises(FileNotFoundError, match=f"{url}/none.zarr/zarr.json: not found; check the URL"):
            patches(f"{url}/none.zarr")


def test_file_urls_are_local_scans_of_any_format(tmp_path: Path) -> None:
    array = np.arange(8 * 9 * 10, dtype=np.int16).reshape(8, 9, 10)
    write_store(ArrayVolume(array), tmp_path / "with space.zarr")
    url = (tmp_path / "with space.zarr").as_uri()
    (tmp_path / "cohort.csv").write_text(f"image,y\n{url},1\nfile:///nowhere/x.nii,2\n")
    cohort = TableCohort(tmp_path / "cohort.csv", target_column="y")
    assert [item["image"] for item in cohort.items] == [url, "file:///nowhere/x.nii"]
    np.testing.assert_array_equal(patches(url)[0, 0], array[1:6, 1:6, 1:6])
    with pytest.raises(FileNotFoundError, match=r"/nowhere/x\.nii: no such file"):
        patches("file:///nowhere/x.nii")
    with pytest.raises(ValueError, match=r"file://pc/x\.nii: names the computer 'pc'"):
        patches("file://pc/x.nii")
