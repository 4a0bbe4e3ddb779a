"""Series that are no regular grid: each fault refused by name, and the options that accept it."""

import pickle

import numpy as np
import pytest
from dicom_slices import write_slice

from cpic_monai.volumes import IrregularSeriesError, open_volume


def refused(folder, kind, **options):
    with pytest.raises(IrregularSeriesError) as caught:
        open_volume(folder, **options)
    assert str(folder) in str(caught.value)
    kinds = [fault.kind for fault in caught.value.faults]
    assert kind in kinds
    fault = caught.value.faults[kinds.index(kind)]
    assert (folder / fault.file).exists()
    assert fault.remedy
    return fault


def missing_slice(k):
    return 2.0 * k if k < 3 else 2.0 * (k + 1)


def test_gap_is_refused_with_its_size(write_series):
    folder, _ = write_series(z=missing_slice)
    fault = refused(folder, "gaps")
    assert "from 2 to 4 mm" in fault.values
    assert "resample_gaps=True" in fault.remedy


def test_a_missing_slice_of_micro_ct_is_seen(write_series):
    folder, _ = write_series(z=lambda k: 0.0045 * missing_slice(k))
    assert "from 0.009 to 0.018 mm" in refused(folder, "gaps").values
    volume = open_volume(folder, resample_gaps=True)
    assert volume.shape[2] == 6
    assert volume.spacing[2] == pytest.approx(0.009)


def test_gap_is_resampled_linearly(write_series):
    folder, stored = write_series(z=missing_slice)
    volume = open_volume(folder, resample_gaps=True)
    assert volume.shape == (8, 6, 6)
    assert volume.spacing[2] == pytest.approx(2.0)
    values = stored.transpose(2, 1, 0).astype(np.float32)
    middle = (values[..., 2] + values[..., 3]) / 2
    expected = np.stack([*(values[..., k] for k in range(3)), middle, values[..., 3], values[..., 4]], axis=-1)
    np.testing.assert_allclose(volume.read((0, 0, 0), volume.shape), expected, rtol=1e-6)
    assert volume.bytes_read == 5 * 6 * 8 * 2
    np.testing.assert_allclose(volume.read((1, 2, 3), (4, 5, 4)), expected[1:4, 2:5, 3:4], rtol=1e-6)


def test_resampling_leaves_a_regular_series_as_it_is(write_series):
    folder, stored = write_series()
    volume = open_volume(folder, resample_gaps=True)
    assert volume.identity == open_volume(folder).identity
    assert np.array_equal(volume.read((0, 0, 0), volume.shape), stored.transpose(2, 1, 0))


def test_rounded_positions_are_no_gap(write_series):
    folder, _ = write_series(z=lambda k: round(0.703125 * k, 2))
    assert open_volume(folder).spacing[2] == pytest.approx(0.7025)


def tilted(k):
    return {"ImagePositionPatient": [0.0, 1.0 * k, 2.0 * k], "GantryDetectorTilt": 26.6}


def test_tilt_is_refused_and_accepted_as_shear(write_series):
    folder, stored = write_series(each=tilted)
    fault = refused(folder, "tilt")
    assert "26.57 degrees" in fault.values
    volume = open_volume(folder, allow_tilt=True)
    np.testing.assert_allclose(volume.affine[:3, 2], [0, -1, 2])
    assert np.array_equal(volume.read((0, 0, 0), volume.shape), stored.transpose(2, 1, 0))


def test_slice_beside_the_line_is_refused(write_series):
    folder, _ = write_series(each=lambda k: {"ImagePositionPatient": [3.0 * (k == 2), 0.0, 2.0 * k]})
    refused(folder, "drift", allow_tilt=True, resample_gaps=True)


def test_duplicates_are_refused(write_series):
    folder, _ = write_series(z=lambda k: 2.0 * min(k, 3))
    assert "where another does" in refused(folder, "duplicate", resample_gaps=True).values


def test_two_series_are_refused_and_one_can_be_chosen(write_series):
    folder, stored = write_series(each=lambda k: {"SeriesInstanceUID": "1.2.7" if k == 4 else "1.2.8"})
    assert "1.2.7" in refused(folder, "series").values
    volume = open_volume(folder, series_uid="1.2.8")
    assert np.array_equal(volume.read((0, 0, 0), volume.shape), stored[:4].transpose(2, 1, 0))
    with pytest.raises(ValueError, match=r"1\.2\.9.*1\.2\.7"):
        open_volume(folder, series_uid="1.2.9")


def test_mixed_sizes_are_refused(write_series):
    folder, _ = write_series()
    write_slice(folder / "odd.dcm", np.zeros((4, 4), "u2"), ImagePositionPatient=[-10, 20, 100])
    fault = refused(folder, "size")
    assert fault.file == "odd.dcm"
    assert "(4, 4) in 1 slices" in fault.values


@pytest.mark.parametrize(
    ("kind", "tags"),
    [
        ("orientation", {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}),
        ("pixel spacing", {"PixelSpacing": [0.5, 0.5]}),
    ],
)
def test_mixed_geometry_is_refused(write_series, kind, tags):
    folder, _ = write_series(each=lambda k: tags if k == 2 else {})
    refused(folder, kind)


def test_error_pickles(write_series):
    folder, _ = write_series(z=missing_slice)
    with pytest.raises(IrregularSeriesError) as caught:
        open_volume(folder)
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.faults == caught.value.faults
    assert str(again) == str(caught.value)


def test_real_tilted_series_is_refused_for_tilt_and_gaps(real):
    folder = real / "dicom_tilted_ct"
    assert "18.50 degrees" in refused(folder, "tilt").values
    assert "from 1.081 to 6.999 mm" in refused(folder, "gaps").values
    volume = open_volume(folder, allow_tilt=True, resample_gaps=True)
    assert volume.shape == (512, 512, 37)
    # Neither end moves, and the corner of the last slice lies where the last file says.
    np.testing.assert_allclose((volume.affine @ [0, 0, 36, 1])[:3], [125.0, 123.5404569, 157.7760586], atol=1e-4)
