"""A cohort of lung phantoms in OSIC's layout: real DICOM, a real table, and the truth behind both.

``python -m cpic_monai.cohorts.phantom FOLDER`` writes::

    FOLDER/train.csv                                Patient, Weeks, FVC, Percent, Age, Sex, SmokingStatus
    FOLDER/train/<Patient>/<n>.dcm                  one CT series a patient
    FOLDER/ground_truth/<Patient>_fibrosis.nii.gz   mask of the fibrosis on the grid of the series
    FOLDER/phantom.json                             parameters and the truth (extent, honeycomb, slope), written last
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from joblib import Parallel, delayed
from tqdm import tqdm

from cpic_monai.cohorts.phantom_dicom import Geometry, write_mask, write_series
from cpic_monai.cohorts.phantom_outcome import PhantomPatient, draw_patient, fvc_table
from cpic_monai.cohorts.phantom_scan import PhantomScan

__all__ = ["main", "write_phantom_cohort"]

logger = logging.getLogger(__name__)

VERSION = 2  # raise it whenever the same parameters would draw other voxels or values
FIELD_OF_VIEW, HEIGHT = 350.0, 300.0  # mm


def write_phantom_cohort(
    folder: str | Path,
    subjects: int = 100,
    shape: Sequence[int] = (32, 128, 128),
    spacing: Sequence[float] | None = None,
    seed: int = 0,
    workers: int = 2,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Write a phantom cohort, or find that `folder` holds it already.

    The cohort is written beside `folder` under a temporary name and then renamed, so `folder` is whole or not there.
    A patient depends on `seed` and its own number alone: more subjects add to the former ones, and another `shape`
    shows the same patients at another resolution.

    Parameters
    ----------
    folder
        Where to write.
    subjects
        Number of patients.
    shape
        (slices, rows, columns) of a scan.
    spacing
        mm between slices, rows and columns; by default 300 mm over the slices and 350 mm over rows and columns.
    seed
        The same seed gives the same bytes.
    workers
        Processes.
    overwrite
        Replace another phantom cohort in `folder`.
    progress
        Show a progress bar.

    Returns
    -------
    pathlib.Path
        `folder`, absolute.

    Raises
    ------
    ValueError
        If the parameters make no scan.
    FileExistsError
        If `folder` holds something else, or a phantom of other parameters and `overwrite` is off.
    """
    folder = Path(folder).expanduser().resolve()
    geometry = _geometry(shape, spacing)
    if subjects < 1:
        raise ValueError(f"subjects must be at least 1, found {subjects}")
    parameters = {
        "version": VERSION,
        "subjects": int(subjects),
        "shape": list(geometry.shape),
        "spacing": list(geometry.spacing),
        "seed": int(seed),
    }
    if _holds(folder, parameters, overwrite):
        logger.info("phantom cohort of %d subjects found in %s", subjects, folder)
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _write(partial, parameters, geometry, workers, progress)
        if _holds(folder, parameters, overwrite):  # another process was quicker
            return folder
        if folder.exists():
            shutil.rmtree(folder)
        partial.chmod(0o755)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    logger.info("wrote a phantom cohort of %d subjects to %s", subjects, folder)
    return folder


def _geometry(shape: Sequence[int], spacing: Sequence[float] | None) -> Geometry:
    if len(shape) != 3 or min(shape) < 2:
        raise ValueError(f"shape must be (slices, rows, columns), each at least 2, found {tuple(shape)}")
    slices, rows, columns = (int(n) for n in shape)
    steps = (HEIGHT / slices, FIELD_OF_VIEW / rows, FIELD_OF_VIEW / columns) if spacing is None else tuple(spacing)
    if len(steps) != 3 or min(steps) <= 0:
        raise ValueError(f"spacing must be three positive numbers in mm (slices, rows, columns), found {steps}")
    return Geometry((slices, rows, columns), (float(steps[0]), float(steps[1]), float(steps[2])))


def _holds(folder: Path, parameters: dict[str, Any], overwrite: bool) -> bool:
    """Whether `folder` holds this very cohort; raise where writing there would destroy something else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    record = folder / "phantom.json"
    if not record.is_file():
        raise FileExistsError(f"{folder} exists and is no phantom cohort (no phantom.json): choose another folder")
    found = json.loads(record.read_text())["parameters"]
    if found == parameters:
        return True
    if not overwrite:
        differing = {k: (found.get(k), v) for k, v in parameters.items() if found.get(k) != v}
        raise FileExistsError(
            f"{folder} holds a phantom cohort of other parameters, (there, asked for): {differing}; "
            "choose another folder, delete it, or pass overwrite=True"
        )
    return False


def _write(folder: Path, parameters: dict[str, Any], geometry: Geometry, workers: int, progress: bool) -> None:
    seed, subjects = parameters["seed"], parameters["subjects"]
    patients = [draw_patient(seed, number) for number in range(subjects)]
    jobs = (delayed(_write_patient)(folder, patient, geometry, seed) for patient in patients)
    pool = Parallel(n_jobs=min(max(workers, 1), subjects), return_as="generator")
    for _ in tqdm(pool(jobs), total=subjects, desc="phantom cohort", unit="scan", disable=not progress):
        pass
    pd.DataFrame(fvc_table(patients)).to_csv(folder / "train.csv", index=False)
    record = {"parameters": parameters, "subjects": {p.name: p.truth() for p in patients}}
    (folder / "phantom.json").write_text(json.dumps(record, indent=1))


def _write_patient(folder: Path, patient: PhantomPatient, geometry: Geometry, seed: int) -> None:
    scan = PhantomScan(seed, patient.number, patient.extent, patient.honeycomb, patient.stature)
    z, y, x = geometry.axes()
    hu, mask = scan.render(z, y, x)
    key = f"{VERSION}/{seed}/{geometry.shape}/{geometry.spacing}"
    write_series(folder / "train" / patient.name, hu, geometry, patient.name, patient.sex, patient.age, key)
    write_mask(folder / "ground_truth" / f"{patient.name}_fibrosis.nii.gz", mask, geometry)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: ``python -m cpic_monai.cohorts.phantom --help``."""
    parser = argparse.ArgumentParser(prog="python -m cpic_monai.cohorts.phantom", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument("--subjects", type=int, default=100)
    parser.add_argument("--shape", type=int, nargs=3, default=(32, 128, 128), metavar=("SLICES", "ROWS", "COLUMNS"))
    parser.add_argument(
        "--spacing", type=float, nargs=3, default=None, metavar=("SLICES", "ROWS", "COLUMNS"), help="mm"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--overwrite", action="store_true", help="replace a phantom cohort of other parameters")
    options = vars(parser.parse_args(arguments))
    print(write_phantom_cohort(**options))


if __name__ == "__main__":
    main()
