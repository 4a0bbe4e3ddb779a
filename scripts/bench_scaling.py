"""Prediction against the size of a scan: from 64 to 8192 voxels along each side, and one real store of 2048 on disk.

Views of one scan (a phantom, or ``--scan``) are upsampled virtually; the store is written once, slab by slab, and holds
a synthetic texture. Predicting is all that happens between a path and quantiles: header, patches at the model's voxels,
encoder, tensor train, head. The voxels are chosen beforehand on the scan itself (``select_seconds``). Each row is
measured in a process of its own. ``cold`` predictions start without any cached block or header (the operating system's
page cache is left as it is), ``warm`` ones with what the last left.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_table import markdown
from monai.transforms import Resized
from tqdm import tqdm

from cpic_monai.atomic import write_text_atomically
from cpic_monai.cohorts import OsicCohort, write_phantom_cohort
from cpic_monai.handlers.select import select_index_sets
from cpic_monai.networks import CPICNet
from cpic_monai.transforms import LazyCompose, LoadVolumed, PercentileScaled, SamplePatchesd, VirtualScand
from cpic_monai.volumes import ChunkedVolume, write_store
from cpic_monai.volumes.protocol import VolumeBase
from cpic_monai.volumes.store_access import context

SIDES = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
RANK, CHANNELS = 10, 16
#: Predictions of this many shifted views make the basis: its cost does not depend on the scan's size.
BASIS_SCANS = 4
COLUMNS = (
    "source", "shape", "select_seconds", "cold_seconds", "warm_seconds", "evaluations", "mb_read", "peak_mb",
    "mb_above_imports",
)  # fmt: skip


class Texture(VolumeBase):
    """A made-up body of any size, uint8, computed where it is read: smooth organs, fine noise, air."""

    def __init__(self, side: int) -> None:
        super().__init__((side,) * 3, np.diag([0.1, 0.1, 0.1, 1.0]), np.uint8, None, f"texture 2: {side}")
        self._noise = np.random.default_rng(0).integers(0, 12, (256, 256), dtype=np.uint8)

    def read(self, start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
        """See :meth:`Volume.read`."""
        first, last = self.check_box(start, stop)
        lines = [(np.arange(a, b) + 0.5) / n * 2 - 1 for a, b, n in zip(first, last, self.shape, strict=True)]
        x, y, z = (line.astype(np.float32) for line in lines)
        box = np.empty([len(line) for line in lines], np.uint8, order="F")
        rows = [np.arange(a, b) % 256 for a, b in zip(first, last, strict=True)]
        for k, depth in enumerate(z):
            organs = 130 + 50 * np.outer(np.sin(9 * x + depth), np.cos(7 * y)) * np.cos(5 * depth)
            organs += 20 * np.outer(np.cos(40 * x), np.sin(31 * y + 20 * depth))
            shift = 37 * (first[2] + k)
            organs += self._noise[np.ix_((rows[0] + shift) % 256, (rows[1] + 3 * shift) % 256)]
            organs *= np.add.outer(x**2, y**2 / 0.7) < 0.9 - 0.4 * depth**2
            box[:, :, k] = organs
        return box


def textured_store(folder: Path, side: int) -> Path:
    """The store of a :class:`Texture` in ``folder``; written unless a finished one is there."""
    volume, place = Texture(side), folder / f"texture_{side}.ome.zarr"
    try:
        if ChunkedVolume(place).attributes.get("source") == volume.identity:
            return place
    except FileNotFoundError:
        pass  # not written yet, or not to its end
    folder.mkdir(parents=True, exist_ok=True)
    write_store(volume, place, record={"source": volume.identity}, progress=True)
    return place


def chain(network: CPICNet, *, sampled: bool, shift: int = 0) -> LazyCompose:
    """From a path to the view (or the patches) of a scan resized to the network's grid, moved by ``shift`` voxels."""
    steps: list[Any] = [LoadVolumed("image"), Resized("image", network.grid.shape)]
    steps.append(VirtualScand("image", PercentileScaled(1, 99)))
    if sampled:
        steps.append(SamplePatchesd("image", Shifted(network, shift), network.patch_size))
    return LazyCompose(steps)


class Shifted:
    """The model's voxels, moved."""

    def __init__(self, network: CPICNet, shift: int) -> None:
        self._network, self._shift = network, shift

    def voxels(self, subject: str) -> torch.Tensor:
        """int64 (N, 3)."""
        return self._network.voxels(subject) + self._shift


def predict(network: CPICNet, transform: LazyCompose, source: str) -> None:
    """One prediction, from the path on."""
    with torch.no_grad():
        network(transform({"image": source, "subject": "scan"})["image"][None])


def measure(source: str, side: int, repeats: int) -> dict[str, object]:
    """One row, in this process."""
    imported = peak_mb()
    torch.manual_seed(0)
    network = CPICNet((side,) * 3, rank=RANK, channels=CHANNELS, draws=1).eval()
    view = chain(network, sampled=False)({"image": source, "subject": "scan"})
    view["image"].sample(1)  # the first DICOM slice that is read imports its decoders, which takes seconds
    start = time.perf_counter()
    select_index_sets(network, [view], scans=1, draws=1)
    select_seconds = time.perf_counter() - start
    shifts = [max(1, side // 32) * n for n in range(BASIS_SCANS)]
    images = [chain(network, sampled=True, shift=s)({"image": source, "subject": "scan"})["image"] for s in shifts]
    with torch.no_grad():
        network.basis.fit(network.decompose(torch.stack(images)))
    predict(network, chain(network, sampled=True), source)  # warms the encoder up
    cold, warm = [], []
    for _ in range(repeats):
        context.cache_clear()
        start = time.perf_counter()
        transform = chain(network, sampled=True)
        predict(network, transform, source)
        cold.append(time.perf_counter() - start)
        start = time.perf_counter()
        predict(network, transform, source)
        warm.append(time.perf_counter() - start)
    transform = chain(network, sampled=False)
    scan = transform({"image": source, "subject": "scan"})["image"]
    scan.patches(network.voxels(), network.patch_size)
    return {
        "source": "x".join(map(str, scan.volumes[0].shape)) + f" {scan.volumes[0].dtype}",
        "shape": "x".join([str(side)] * 3),
        "select_seconds": select_seconds,
        "cold_seconds": statistics.median(cold),
        "warm_seconds": statistics.median(warm),
        "evaluations": len(network.voxels()),
        "mb_read": scan.volumes[0].volume.bytes_read / 2**20,
        "peak_mb": peak_mb(),
        "mb_above_imports": peak_mb() - imported,
    }


def peak_mb() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_own_process(source: str, side: int, given: argparse.Namespace) -> dict[str, object]:
    """One row from a fresh process."""
    command = [sys.executable, __file__, "--row", source, str(side)]
    command += ["--repeats", str(given.repeats), "--threads", str(given.threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{source} at {side} voxels a side failed ({done.returncode}):\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def phantom_scan(folder: Path) -> str:
    """The first patient of a phantom cohort, a folder of DICOM files of 32 x 128 x 128 voxels."""
    write_phantom_cohort(folder, subjects=1, workers=1, progress=False)
    return str(OsicCohort(folder).items[0]["image"])


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="*", default=SIDES, help="voxels along each side of the views")
    parser.add_argument("--scan", type=Path, help="the scan that is upsampled; default: a phantom")
    parser.add_argument("--store_side", type=int, default=2048, help="side of the store on disk; 0: none")
    parser.add_argument("--store", type=Path, help="folder of the store, which is reused and kept there")
    parser.add_argument("--keep", action="store_true", help="keep the store also where --store is not given")
    parser.add_argument("--repeats", type=int, default=3, help="timed predictions, cold and warm ones each")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch threads")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--row", nargs=2, metavar=("SOURCE", "SIDE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.row:
        print(json.dumps(measure(given.row[0], int(given.row[1]), given.repeats)))
        return
    with tempfile.TemporaryDirectory(prefix="cpic_scaling_") as made:
        source = str(given.scan.resolve()) if given.scan else phantom_scan(Path(made) / "phantom")
        jobs = [(source, side) for side in given.sides]
        if given.store_side:
            folder = given.store or Path(tempfile.mkdtemp(prefix="cpic_store_") if given.keep else made)
            jobs.append((str(textured_store(folder.resolve(), given.store_side)), given.store_side))
        rows = []
        for path, side in tqdm(jobs, desc="measure", unit="row"):
            rows.append(in_own_process(path, side, given))
    print(markdown(rows, COLUMNS))
    if given.store_side and (given.store or given.keep):
        print(f"store: {jobs[-1][0]}")
    machine = {"processor": platform.machine(), "threads": given.threads, "torch": torch.__version__}
    if given.json:
        write_text_atomically(given.json, json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
