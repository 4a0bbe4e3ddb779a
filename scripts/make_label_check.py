"""What scripts/check_monai_label.py serves: a small packed bundle, and a datastore of NIfTI scans, of a phantom cohort.

Runs in the project's own environment: training and packing are no business of MONAI Label's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from monai.bundle import run
from scipy.spatial.transform import Rotation

from cpic_monai.cohorts import write_phantom_cohort
from cpic_monai.volumes import open_volume

ROOT = Path(__file__).resolve().parents[1]
SUBJECTS, SHAPE = 16, (16, 48, 48)
SETTINGS: dict[str, Any] = {
    "spatial_shape": [16, 32, 40], "rank": 4, "channels": 6, "batch_size": 6, "passes": 1, "max_epochs": 1,
    "head": {"steps": 100}, "folds": 4, "tabular_columns": ["Weeks", "Age", "Sex"],
}  # fmt: skip


def train(cohort: Path, output: Path) -> None:
    """One epoch, with the checkout's configs."""
    before = Path.cwd()
    os.chdir(ROOT)  # the configs name each other relative to the checkout
    try:
        run("training", config_file="configs/train.json", dataset_dir=str(cohort), output_dir=str(output), **SETTINGS)
    finally:
        os.chdir(before)


def write_scans(cohort: Path, studies: Path) -> None:
    """Each series as NIfTI; the first patient lay askew, so that its axes are nobody's."""
    studies.mkdir()
    for number, folder in enumerate(sorted((cohort / "train").iterdir())):
        volume = open_volume(str(folder))
        turn = np.eye(4)
        if not number:
            turn[:3, :3] = Rotation.from_euler("zx", [12, 7], degrees=True).as_matrix()
        image = volume.read((0, 0, 0), volume.shape).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(image, turn @ volume.affine), studies / f"{folder.name}.nii.gz")


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder to write to")
    work = parser.parse_args().work.resolve()
    cohort = write_phantom_cohort(work / "phantom", SUBJECTS, SHAPE, seed=3, workers=1, progress=False)
    train(cohort, work / "trained")
    command = [sys.executable, str(ROOT / "scripts" / "pack_bundle.py"), "--run", str(work / "trained")]
    command += ["--settings", json.dumps(SETTINGS), "--output", str(work / "dist")]
    subprocess.run(command, check=True, cwd=ROOT)
    write_scans(cohort, work / "studies")
    return 0


if __name__ == "__main__":
    sys.exit(main())
