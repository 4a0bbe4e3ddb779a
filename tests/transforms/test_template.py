"""Templates: when they are made, when they stay, and what they show."""

from __future__ import annotations

import os
import shutil

import nibabel as nib
import numpy as np
import pytest
from bodies import PLACES, aligner, coarse

from cpic_monai.transforms import HUWindow, LoadVolumed, fit_transforms
from cpic_monai.transforms.template import load_template, made_from, save_template


def test_a_template_that_is_there_stays(scans, template):
    """Made of these scans in this way: no voxel of them is read."""
    before, load = (template.read_bytes(), template.stat().st_mtime_ns), LoadVolumed("image")
    fit_transforms([load, aligner(template)], scans)
    volumes = [load.volumes(item["image"])[0] for item in scans]
    assert not any(volume.bytes_read + volume.volume.bytes_read for volume in volumes)
    assert (template.read_bytes(), template.stat().st_mtime_ns) == before
    assert [p.name for p in template.parent.iterdir()] == [template.name], "no temporary file is left"


def test_a_template_of_other_scans_or_settings_is_made_anew(scans, template, tmp_path, caplog):
    """A second run in the same folder, of another fold: its template may show none of the scans held out now."""
    path, alone = tmp_path / "template.nii.gz", tmp_path / "alone.nii.gz"
    shutil.copy(template, path)
    fit_transforms([LoadVolumed("image"), aligner(path)], scans[:1])
    assert "made of other scans or with other settings" in caplog.text
    fit_transforms([LoadVolumed("image"), aligner(alone)], scans[:1])
    np.testing.assert_array_equal(load_template(path).values, load_template(alone).values)
    fit_transforms([LoadVolumed("image"), aligner(path, kind="translation")], scans[:1])
    assert made_from(path) != made_from(alone)


def test_a_template_of_other_intensities_or_changed_scans_is_made_anew(scans, tmp_path, caplog):
    """The names of the scans are the same each time."""
    item = {"image": str(shutil.copy(scans[0]["image"], tmp_path / "scan.nii")), "subject": "still"}
    path, seen = tmp_path / "template.nii.gz", []
    for high in (2.0, 2.0, 4.0, 4.0):
        align = aligner(path, kind="translation", intensity=[HUWindow(0.0, high)])
        fit_transforms([LoadVolumed("image"), align], [item])
        seen.append((made_from(path), path.stat().st_mtime_ns))
    assert seen[0] == seen[1] != seen[2] == seen[3]
    image = nib.load(item["image"])
    nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32)[::-1] * 3, image.affine), item["image"])
    os.utime(item["image"], ns=(1, 1))  # whatever the clock's resolution
    caplog.clear()
    fit_transforms([LoadVolumed("image"), align], [item])
    assert made_from(path) != seen[3][0]
    assert "made of other scans or with other settings" in caplog.text


def test_another_runs_template_and_an_atlas_stay(scans, template, tmp_path):
    before = template.read_bytes()
    fit_transforms([LoadVolumed("image"), aligner(template, made_here=False)], scans[:1])
    assert template.read_bytes() == before
    with pytest.raises(FileNotFoundError, match="no template there"):
        fit_transforms([LoadVolumed("image"), aligner(tmp_path / "none.nii.gz", made_here=False)], scans[:1])
    atlas = tmp_path / "atlas.nii.gz"
    save_template(load_template(template), atlas)  # which says nothing of how it was made
    plain = atlas.read_bytes()
    fit_transforms([LoadVolumed("image"), aligner(atlas)], scans[:1])
    assert atlas.read_bytes() == plain


def test_a_template_has_the_mean_size_of_its_scans(template):
    """Rounds of averaging neither shrink nor blow it up: spread of intensity along each axis."""
    image = load_template(template)
    spreads = []
    for place in PLACES.values():
        linear = place.copy()
        linear[:3, 3] = 0
        spreads.append(spread(coarse(linear)))
    np.testing.assert_allclose(spread(image), np.mean(spreads, axis=0), rtol=0.06)


def spread(image):
    """Standard deviation (3,) of position, weighted by squared intensity."""
    places = np.argwhere(image.values > -1) * image.spacing
    weights = image.values.astype(float).ravel() ** 2
    mean = weights @ places / weights.sum()
    return np.sqrt(weights @ (places - mean) ** 2 / weights.sum())


def test_a_template_of_other_voxels_is_refused(tmp_path):
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.diag([2.0, 2, 3, 1])), tmp_path / "other.nii")
    with pytest.raises(ValueError, match=r"other\.nii: a template has cubic voxels"):
        load_template(tmp_path / "other.nii")
    image = coarse(np.eye(4), (5, 6, 7))
    again = load_template(save_template(image, tmp_path / "new" / "own.nii.gz"))
    np.testing.assert_allclose(again.affine, image.affine, atol=1e-4)
    np.testing.assert_array_equal(again.values, image.values)
