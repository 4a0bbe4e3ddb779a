from __future__ import annotations

import hashlib
import json
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
import pytest

from cpic_monai.cohorts import OsicCohort, write_phantom_cohort
from cpic_monai.cohorts.phantom import main
from cpic_monai.cohorts.phantom_outcome import draw_patient
from cpic_monai.cohorts.phantom_scan import PhantomScan


def digest(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.suffix != ".gz"  # gzip stores the time; masks are compared by value
    }


def axes(shape: tuple[int, int, int]) -> tuple[np.ndarray, ...]:
    return tuple((np.arange(n) - (n - 1) / 2) * s / n for n, s in zip(shape, (300, 350, 350), strict=True))


def test_same_seed_gives_the_same_bytes_with_other_workers(phantom: Path, tmp_path: Path) -> None:
    again = write_phantom_cohort(tmp_path / "again", 3, (8, 48, 48), seed=3, workers=2, progress=False)
    assert digest(again) == digest(phantom)
    assert len(digest(again)) == 3 * 8 + 2
    for name in (p.name for p in (phantom / "ground_truth").iterdir()):
        masks = [np.asarray(nib.load(f / "ground_truth" / name).dataobj) for f in (phantom, again)]
        np.testing.assert_array_equal(*masks)


def test_a_patient_depends_on_the_seed_and_its_number_alone(phantom: Path, tmp_path: Path) -> None:
    fewer = write_phantom_cohort(tmp_path / "fewer", 1, (8, 48, 48), seed=3, workers=1, progress=False)
    one, three = digest(fewer), digest(phantom)
    scans = [name for name in one if name.endswith(".dcm")]
    assert len(scans) == 8
    assert all(one[name] == three[name] for name in scans)
    assert draw_patient(3, 0) != draw_patient(4, 0)


def test_reuse_refusal_and_overwrite(tmp_path: Path) -> None:
    folder = tmp_path / "cohort"
    options = {"shape": (2, 16, 16), "workers": 1, "progress": False}
    write_phantom_cohort(folder, 1, **options)
    stamp = (folder / "phantom.json").stat().st_mtime_ns
    write_phantom_cohort(folder, 1, **options)
    assert (folder / "phantom.json").stat().st_mtime_ns == stamp
    with pytest.raises(FileExistsError, match=r"'subjects': \(1, 2\)"):
        write_phantom_cohort(folder, 2, **options)
    write_phantom_cohort(folder, 2, overwrite=True, **options)
    assert len(list((folder / "train").iterdir())) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["cohort"]  # no temporary folder is left

    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="no phantom cohort"):
        write_phantom_cohort(tmp_path / "other", 1, overwrite=True, **options)
    assert (tmp_path / "other" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("wrong", [{"shape": (1, 16, 16)}, {"shape": (4, 16)}, {"spacing": (1, 0, 1)}, {"subjects": 0}])
def test_impossible_parameters(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        write_phantom_cohort(tmp_path / "x", **wrong)
    assert not (tmp_path / "x").exists()


def test_itk_reads_the_series_on_the_masks_grid(phantom: Path) -> None:
    folder = phantom / "train" / "PHANTOM00001"
    names = itk.GDCMSeriesFileNames.New(Directory=str(folder))
    (uid,) = names.GetSeriesUIDs()
    image = itk.imread(list(names.GetFileNames(uid)), itk.SS)
    np.testing.assert_allclose(image.GetSpacing(), [350 / 48, 350 / 48, 300 / 8], rtol=1e-6)
    np.testing.assert_allclose(image.GetOrigin(), [-350 / 2 * 47 / 48, -350 / 2 * 47 / 48, -300 / 2 * 7 / 8], rtol=1e-6)
    np.testing.assert_array_equal(itk.array_from_matrix(image.GetDirection()), np.eye(3))

    mask = nib.load(phantom / "ground_truth" / "PHANTOM00001_fibrosis.nii.gz")
    lps = np.diag([-1.0, -1, 1, 1])
    affine = np.eye(4)
    affine[:3, :3] = np.diag(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    np.testing.assert_allclose(mask.affine, lps @ affine, atol=1e-4)
    assert mask.get_data_dtype() == np.uint8

    # Voxel for voxel: the file's HU are those drawn, in the mask's order.
    truth = json.loads((phantom / "phantom.json").read_text())["subjects"]["PHANTOM00001"]
    scan = PhantomScan(3, 1, truth["extent"], truth["honeycomb"], truth["stature"])
    hu, fibrosis = scan.render(*axes((8, 48, 48)))
    np.testing.assert_array_equal(itk.array_from_image(image), hu)
    np.testing.assert_array_equal(np.asarray(mask.dataobj).transpose(2, 1, 0), fibrosis)
    assert 0 < fibrosis.sum() < fibrosis.size


def test_dicom_header(phantom: Path) -> None:
    slices = [pydicom.dcmread(phantom / "train" / "PHANTOM00000" / f"{n}.dcm") for n in range(1, 9)]
    heights = [float(ds.ImagePositionPatient[2]) for ds in slices]
    np.testing.assert_allclose(np.diff(heights), -37.5)  # 1.dcm is the highest
    assert len({ds.SOPInstanceUID for ds in slices}) == 8
    assert {ds.SeriesInstanceUID for ds in slices} == {slices[0].SeriesInstanceUID}
    assert (slices[0].Modality, slices[0].PatientPosition, slices[0].PatientID) == ("CT", "HFS", "PHANTOM00000")
    assert slices[0].pixel_array.dtype == np.int16
    assert all(len(uid) <= 64 for uid in (slices[0].SOPInstanceUID, slices[0].FrameOfReferenceUID))


def test_osic_reads_the_phantom_and_the_truth_holds(phantom: Path) -> None:
    cohort = OsicCohort(phantom, tabular_columns=("Weeks", "Percent", "Age", "Sex", "SmokingStatus"))
    truth = json.loads((phantom / "phantom.json").read_text())["subjects"]
    table = pd.read_csv(phantom / "train.csv")
    assert [item["subject"] for item in cohort.items] == sorted(truth)
    for item in cohort.items:
        assert list(item["target"]) == truth[item["subject"]]["fvc"]
        assert list(item["visit"]) == truth[item["subject"]]["weeks"]
    assert len(table) == sum(len(t["weeks"]) for t in truth.values())
    assert cohort.left_out == []


@pytest.mark.parametrize("extent", [0.1, 0.4])
def test_extent_is_the_fibrotic_share_of_the_lung_at_any_resolution(extent: float) -> None:
    shares = []
    for shape in ((16, 48, 48), (24, 80, 80)):
        scan = PhantomScan(0, 5, extent, 0.5)
        whole = PhantomScan(0, 5, 0.999, 0.5)
        shares.append(scan.render(*axes(shape))[1].sum() / whole.render(*axes(shape))[1].sum())
    np.testing.assert_allclose(shares, extent, atol=0.015)


def test_kinds_of_fibrosis_have_one_mean_and_two_textures() -> None:
    healthy, glass, comb = (PhantomScan(0, 7, e, h) for e, h in ((0.0, 0.0), (0.4, 0.0), (0.4, 1.0)))
    where = axes((20, 96, 96))
    lung = healthy.render(*where)[0]
    (smooth, mask), (rough, same) = glass.render(*where), comb.render(*where)
    np.testing.assert_array_equal(mask, same)
    inside = mask.astype(bool)
    assert abs(smooth[inside].mean() - rough[inside].mean()) < 20
    assert np.percentile(lung[inside], 50) < -800  # the same places are air without fibrosis
    assert rough[inside].std() > 2 * smooth[inside].std()
    np.testing.assert_array_equal(lung[:, :20], smooth[:, :20])  # in front of the chest nothing differs


def test_fibrosis_is_basal_and_subpleural() -> None:
    z, y, x = axes((24, 80, 80))
    mask = PhantomScan(0, 2, 0.2, 0.5).render(z, y, x)[1].astype(bool)
    lung = PhantomScan(0, 2, 0.999, 0.5).render(z, y, x)[1].astype(bool)
    heights = np.broadcast_to(z[:, None, None], mask.shape)
    assert heights[mask].mean() < heights[lung & ~mask].mean() - 30
    sideways = np.abs(np.broadcast_to(x[None, None], mask.shape))
    middle = np.abs(heights) < 40
    assert sideways[mask & middle].mean() > sideways[lung & ~mask & middle].mean() + 5


def test_slices_do_not_depend_on_the_chunks_they_are_drawn_in() -> None:
    z, y, x = axes((6, 40, 40))
    scan = PhantomScan(1, 1, 0.3, 0.5)
    whole = scan.render(z, y, x)[0]
    np.testing.assert_array_equal(scan.render(z[4:], y, x, first_slice=4)[0], whole[4:])


def test_the_decline_is_in_the_scan_and_not_in_the_table() -> None:
    patients = [draw_patient(0, n) for n in range(400)]
    relative = np.array([p.slope * 52.18 / p.baseline_fvc * 2700 for p in patients])
    severity = np.array([p.extent for p in patients]) / 0.5
    expected = -(20 + 430 * severity + 540 * severity * np.array([p.honeycomb for p in patients]))
    assert np.corrcoef(relative, expected)[0, 1] ** 2 > 0.97
    for name in ("age", "sex", "smoking"):
        values = pd.Series([getattr(p, name) for p in patients])
        values = values if name == "age" else pd.Series(pd.factorize(values)[0])
        assert np.corrcoef(relative, values)[0, 1] ** 2 < 0.02
    errors, oracle = [], []
    common = np.mean([p.slope for p in patients])
    for p in patients:
        since, change = np.array(p.weeks) - p.weeks[0], np.array(p.fvc) - p.fvc[0]
        errors.append(change - common * since)
        oracle.append(change - p.slope * since)
    ratio = np.concatenate(errors).std() / np.concatenate(oracle).std()
    assert 2.3 < ratio < 3.3
    assert 7 < np.mean([len(p.weeks) for p in patients]) < 9.5


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(
        [
            str(tmp_path / "c"),
            "--subjects",
            "1",
            "--shape",
            "2",
            "16",
            "16",
            "--workers",
            "1",
            "--spacing",
            "9",
            "8",
            "7",
        ]
    )
    assert capsys.readouterr().out.strip() == str(tmp_path / "c")
    ds = pydicom.dcmread(tmp_path / "c" / "train" / "PHANTOM00000" / "1.dcm")
    assert [float(v) for v in ds.PixelSpacing] == [8, 7]
    assert float(ds.SliceThickness) == 9
