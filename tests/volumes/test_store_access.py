"""Specifications of key-value stores, made without a network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cpic_monai.volumes import VolumeError
from cpic_monai.volumes.store_access import kvstore

S3 = {"driver": "s3", "bucket": "bucket", "path": "key/"}


@pytest.mark.parametrize(
    ("location", "storage", "wanted"),
    [
        ("s3://bucket/key", None, S3),
        ("s3://bucket/key/", {"aws_region": "eu-central-1"}, S3 | {"aws_region": "eu-central-1"}),
        ("s3://bucket/a%20b", {"endpoint": "http://host:9000"}, S3 | {"path": "a b/", "endpoint": "http://host:9000"}),
        ("gs://bucket/key", {}, {"driver": "gcs", "bucket": "bucket", "path": "key/"}),
        ("https://host/key", None, {"driver": "http", "base_url": "https://host", "path": "/key/"}),
    ],
)
def test_urls(location: str, storage: dict[str, Any] | None, wanted: dict[str, Any]) -> None:
    assert kvstore(location, storage) == wanted


def test_folders(tmp_path: Path) -> None:
    spec = {"driver": "file", "path": f"{tmp_path}/x.zarr/"}
    assert kvstore(os.path.relpath(tmp_path / "x.zarr")) == spec
    assert kvstore(f"{tmp_path}/x.zarr/", {"file_io_sync": False}) == spec | {"file_io_sync": False}


@pytest.mark.parametrize("location", ["gs://bucket/key", "folder"])
def test_settings_of_another_driver_are_named(location: str) -> None:
    with pytest.raises(VolumeError, match=rf"{location}: `storage` with aws_region is none of .* driver '(gcs|file)'"):
        kvstore(location, {"aws_region": "eu-central-1"})


def test_urls_of_another_form() -> None:
    with pytest.raises(VolumeError, match=r"s3://bucket/key\?a=b: not a URL that can be read"):
        kvstore("s3://bucket/key?a=b")
