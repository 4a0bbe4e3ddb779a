"""The benchmark beside other networks: what its methods compute, how rows are kept, what failures become."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import bench_peers
import bench_peers_scalar
from bench_peers_job import BRIGHTEST, METHODS, Job, default_batch, write_scan
from bench_peers_methods import load, reader
from bench_peers_row import measure
from bench_peers_scalar import binary_modes, encode_as_published

from cpic_monai.grid import IndexGrid
from cpic_monai.networks import CPICNet
from cpic_monai.networks.patch_source import DenseSource

SMALL = Job("cpic", "predict", "4x8x8", batch=4, threads=2, seconds=0.0)


def test_binary_modes_name_every_channel_of_every_voxel_once() -> None:
    grid = IndexGrid((2, 4, 8))
    domain, place = binary_modes(grid.padded_shape, grid.strides)
    assert len(domain) == 1 + 2 + 3 + 4
    digits = torch.cartesian_prod(*domain)
    codes, channels = place(digits)
    assert len(torch.unique(codes * 16 + channels)) == 2 * 4 * 8 * 16
    # Finest bit first, one axis after the other, as NumPy's column-major order has it.
    digit = [1, 0, 1, 1, 1, 0, 0, 1, 0, 0]
    voxel = grid.decode(place(torch.tensor([digit]))[0])[0].tolist()
    assert voxel == [1, 2, 3]
    assert int(place(torch.tensor([digit]))[1]) == 2


def test_the_published_way_of_encoding_gives_the_encoders_values() -> None:
    network, image = CPICNet((4, 8, 8)), torch.rand(1, 1, 4, 8, 8)
    voxels = torch.tensor([[0, 0, 0], [3, 7, 7], [1, 4, 2]])
    expected = network.encoder(DenseSource(image, network.patch_size).patches(voxels)[0])
    torch.testing.assert_close(encode_as_published(network, image, voxels), expected)


def test_written_scans_are_nifti(tmp_path: Path) -> None:
    first, second = (write_scan(tmp_path, "4x8x6", n) for n in range(2))
    values = np.asarray(nibabel.load(first).dataobj)
    assert values.shape == (4, 8, 6)
    assert values.dtype == np.int16
    assert 0 <= values.min() < values.max() <= BRIGHTEST
    assert not np.array_equal(values, np.asarray(nibabel.load(second).dataobj))


@pytest.mark.parametrize("source", ["dense", "file"])
@pytest.mark.parametrize("phase", ["predict", "train"])
@pytest.mark.parametrize("method", ["cpic", "cpic_paper", "tt_mlp"])
def test_rows_of_our_networks(method: str, phase: str, source: str, tmp_path: Path) -> None:
    job = replace(SMALL, method=method, phase=phase, source=source)
    if source == "file":
        job = job.reading([write_scan(tmp_path, job.shape, n) for n in range(job.batch)])
    row = measure(job)
    assert 0 < row["seconds_per_scan"] < 60
    assert 0 < row["evaluations"] <= 4 * 8 * 8
    assert row["peak_mb"] > row["own_mb"]


def test_leave_one_out_refuses_a_small_batch() -> None:
    with pytest.raises(ValueError, match="cpic_paper"):
        load(replace(SMALL, phase="train", batch=3))


def test_files_and_arrays_give_one_prediction(tmp_path: Path) -> None:
    files = [write_scan(tmp_path, SMALL.shape, n) for n in range(4)]
    job = replace(SMALL, source="file").reading(files)
    dense = torch.stack(
        [torch.from_numpy(np.asarray(nibabel.load(f).dataobj) / BRIGHTEST).float()[None] for f in files]
    )
    outputs = []
    for scans in (reader(job)(), dense):
        torch.manual_seed(0)
        outputs.append(load(job)(scans).run())
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-4)


def test_rows_of_the_scalar_cross_approximation(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tntorch", reason="needs the extra [bench]")
    monkeypatch.setattr(bench_peers_scalar, "SWEEPS", 1)
    job = replace(SMALL, method="scalar_ca", phase="train", shape="2x4x4", batch=1)
    work = load(job)(reader(job)())
    work.run()
    # 1000 validation points, a sweep there and back, and the interpolation.
    assert 1000 < work.evaluations() < 1000 + 4 * 9 * 2 * 10 * 10


def test_a_limit_on_memory_and_time_is_a_result() -> None:
    large = replace(SMALL, shape="1024x512x512", memory_gb=2.0)
    assert bench_peers.in_own_process(large, 300.0) == {"seconds_per_scan": bench_peers.OUT_OF_MEMORY}
    assert bench_peers.in_own_process(SMALL, 0.05) == {"seconds_per_scan": "over 0.05 s"}
    with pytest.raises(bench_peers.RowError, match="cpic_paper"):
        bench_peers.in_own_process(replace(SMALL, phase="train", batch=1), 300.0)


def test_methods_take_turns_and_a_resumed_run_keeps_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answer(job: Job, time_limit: float) -> dict[str, Any]:
        asked.append(job.method)
        if job.method == "resnet34":
            return {"seconds_per_scan": bench_peers.OUT_OF_MEMORY}
        if len(asked) == 4:
            raise KeyboardInterrupt
        return {"seconds_per_scan": float(len(asked)), "peak_mb": 10.0, "own_mb": 1.0, "evaluations": 7}

    monkeypatch.setattr(bench_peers, "in_own_process", answer)
    file = tmp_path / "rows.json"
    arguments = ["--methods", "cpic,resnet34,tt_mlp", "--phases", "predict", "--shapes", "4x8x8", "--json", str(file)]
    with pytest.raises(KeyboardInterrupt):
        bench_peers.measure_all(bench_peers.parse(arguments))
    assert asked == ["cpic", "resnet34", "tt_mlp", "cpic"]
    rows = {row["method"]: row for row in json.loads(file.read_text())["rows"]}
    assert rows["cpic"]["rounds"] == [1.0]
    asked[:] = [""] * 9
    done = bench_peers.measure_all(bench_peers.parse([*arguments, "--resume"]))
    assert asked[9:] == ["cpic", "tt_mlp", "cpic", "tt_mlp"]
    assert done[0]["rounds"] == [1.0, 10.0, 12.0]
    assert done[0]["seconds_per_scan"] == 10.0
    assert done[1]["seconds_per_scan"] == bench_peers.OUT_OF_MEMORY
    assert json.loads(file.read_text())["rows"] == done
    assert "| cpic | predict | 4x8x8 | dense | 4 | 10 |" in bench_peers.table(done)


@pytest.mark.parametrize(
    "wrong", [["--methods", "cpic,vgg"], ["--phases", "rest"], ["--shapes", "32x32"], ["--resume"]]
)
def test_the_command_line_is_checked(wrong: list[str]) -> None:
    with pytest.raises(SystemExit):
        bench_peers.parse(wrong)


def test_only_slow_methods_get_one_scan_a_batch() -> None:
    assert {m for m in METHODS if default_batch(m) == 1} == {m for m in METHODS if m.startswith(("resnet34", "scalar"))}
