"""What one row of ``bench_peers`` is about, and the scans it reads. Imports nothing heavy: every process loads this."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

METHODS = ("cpic", "cpic_paper", "resnet34", "resnet34_strided", "tt_mlp", "scalar_ca", "scalar_ca_paper")
PHASES = ("predict", "train")
SOURCES = ("dense", "file")
#: Intensities of the files run from 0 to this.
BRIGHTEST = 1000


@dataclasses.dataclass(frozen=True)
class Job:
    """One measurement.

    Attributes
    ----------
    method, phase, source
        One of METHODS, PHASES and SOURCES.
    shape
        Voxels, e.g. ``32x512x512``.
    batch
        Scans a batch.
    threads
        Of torch.
    memory_gb
        Limit of the process's data segment (RLIMIT_DATA), in GiB.
    files
        Scans to read (``source`` file).
    seconds
        The work is repeated until this much time has passed.
    """

    method: str
    phase: str
    shape: str
    batch: int
    source: str = "dense"
    threads: int = 1
    memory_gb: float = 20.0
    files: tuple[str, ...] = ()
    seconds: float = 1.0

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        """What tells its row from others."""
        return self.method, self.phase, self.shape, self.source, self.batch

    @property
    def size(self) -> tuple[int, ...]:
        """Voxels along each axis."""
        return tuple(int(n) for n in self.shape.split("x"))

    @property
    def from_files(self) -> bool:
        """Whether scans are read from files."""
        return self.source == "file"

    def reading(self, files: list[Path]) -> Job:
        """The same job on these files."""
        return dataclasses.replace(self, files=tuple(str(f) for f in files))


def default_batch(method: str) -> int:
    """Scans a batch where none is asked for: as many as leave-one-out needs, one for slow methods."""
    return 1 if method.startswith(("resnet34", "scalar_ca")) else 4


def write_scan(folder: Path, shape: str, number: int) -> Path:
    """Scan ``number`` of a shape as uncompressed NIfTI, int16 noise in [0, BRIGHTEST]; written once, plane by plane."""
    import nibabel
    import numpy as np

    path = folder / f"{shape}_{number}.nii"
    if path.exists():
        return path
    size = tuple(int(n) for n in shape.split("x"))
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(size)
    header.set_sform(np.eye(4), 1)
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    random = np.random.default_rng(number)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(header.binaryblock)
        file.write(b"\0" * 4)  # no extensions
        for _ in range(size[2]):
            random.integers(0, BRIGHTEST + 1, size[0] * size[1], np.int16).tofile(file)
    os.replace(temporary, path)
    return path
