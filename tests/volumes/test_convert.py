"""Cohorts into stores: every format, resumed, verified, and the table that names the stores."""

from __future__ import annotations

import gzip
import os

import itk
import numpy as np
import pandas as pd
import pytest
import tensorstore
from conversions import save, script, whole
from stores import AFFINE, values

from cpic_monai.volumes import ArrayVolume, ChunkedVolume, DicomVolume, VolumeError, open_volume, verify_store
from cpic_monai.volumes import write_chunked as writing
from cpic_monai.volumes.convert import Settings, convert_scan, convert_scans, convert_table, store_name
from cpic_monai.volumes.nifti import GzipNiftiStream

SHAPE = (20, 24, 40)
SMALL = Settings(patch_size=3)  # chunks of 16


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_in_slabs(tmp_path, monkeypatch, suffix):
    array = values(SHAPE, "int16")
    source = save(tmp_path / f"a{suffix}", array)
    monkeypatch.setattr(writing, "SLAB_BYTES", 20 * 24 * 16 * 2)  # one chunk of slices at a time
    boxes = list(writing.slabs(open_volume(source), 16, 16))
    assert [(first[2], last[2]) for first, last in boxes] == [(0, 16), (16, 32), (32, 40)]
    done = convert_scan(source, tmp_path / "a.ome.zarr", Settings(3, verify=True))
    assert done.status == "written"
    np.testing.assert_array_equal(whole(tmp_path / "a.ome.zarr"), array)
    np.testing.assert_allclose(open_volume(tmp_path / "a.ome.zarr").affine, AFFINE, atol=1e-5)


def test_slabs_are_cut_along_rows_where_slices_are_large(tmp_path, monkeypatch):
    array = values((20, 40, 18), "int16")
    monkeypatch.setattr(writing, "SLAB_BYTES", 20 * 16 * 16 * 2)
    volume = ArrayVolume(array, AFFINE)
    assert len(list(writing.slabs(volume, 16, 16))) == 3 * 2
    small = writing.write_store(volume, tmp_path / "small.zarr", 3)
    monkeypatch.undo()
    assert writing.write_store(volume, tmp_path / "large.zarr", 3) == small
    assert verify_store(tmp_path / "small.zarr") == small
    np.testing.assert_array_equal(whole(tmp_path / "small.zarr"), array)


def test_compressed_nifti_is_streamed_once_and_scaled(tmp_path):
    array = values(SHAPE, "uint8")
    source = save(tmp_path / "a.nii.gz", array, slope=(0.5, -3.0))
    stream = GzipNiftiStream(str(source))
    assert stream.dtype == np.float32
    wanted = whole(source)
    for k in range(0, 40, 8):
        np.testing.assert_array_equal(stream.read((2, 3, k), (20, 20, k + 8)), wanted[2:20, 3:20, k : k + 8])
    assert stream.bytes_read == array.nbytes
    data = gzip.decompress(source.read_bytes())
    source.write_bytes(gzip.compress(data[:-100]))
    with pytest.raises(VolumeError, match=r"a\.nii\.gz: ends before slice 40"):
        convert_scan(source, tmp_path / "a.zarr", SMALL)
    assert not (tmp_path / "a.zarr").exists()


def test_metaimage(tmp_path):
    array = values((9, 8, 7), "int16")
    image = itk.image_from_array(np.ascontiguousarray(array.T))
    itk.imwrite(image, str(tmp_path / "a.mha"))
    convert_scan(tmp_path / "a.mha", tmp_path / "a.ome.zarr", SMALL)
    np.testing.assert_array_equal(whole(tmp_path / "a.ome.zarr"), array)


def test_dicom(tmp_path, write_series):
    folder, stored = write_series(RescaleIntercept=-1024)
    convert_scan(folder, tmp_path / "a.ome.zarr", SMALL)
    np.testing.assert_array_equal(whole(tmp_path / "a.ome.zarr"), stored.T.astype(int) - 1024)


def test_a_real_series_has_the_same_values(tmp_path, real):
    folder = min((p for p in (real / "dicom_lung_ct").iterdir() if p.is_dir()), key=lambda p: len(list(p.rglob("*"))))
    folder = next(p for p in [folder, *folder.rglob("*")] if p.is_dir() and list(p.glob("*.dcm")))
    convert_scan(folder, tmp_path / "ct.ome.zarr", Settings(patch_size=9, levels=2, verify=True))
    dicom, store = DicomVolume(str(folder)), ChunkedVolume(tmp_path / "ct.ome.zarr")
    assert (store.shape, store.dtype, store.block_shape) == (
        dicom.shape,
        dicom.dtype,
        (32, 32, min(32, dicom.shape[2])),
    )
    np.testing.assert_array_equal(store.affine, dicom.affine)
    box = (200, 100, 3), (330, 300, 20)
    np.testing.assert_array_equal(store.read(*box), dicom.read(*box))


def test_finished_stores_are_kept_until_the_source_or_the_settings_change(tmp_path):
    source = save(tmp_path / "a.nii", values(SHAPE, "int16"))
    target = tmp_path / "out" / "a.ome.zarr"
    assert convert_scan(source, target, SMALL).status == "written"
    stamp = (target / "zarr.json").stat().st_mtime_ns
    assert convert_scan(source, target, SMALL).status == "kept"
    assert (target / "zarr.json").stat().st_mtime_ns == stamp
    with pytest.raises(VolumeError, match="chunk is 16, wanted 32; pass --overwrite"):
        convert_scan(source, target, Settings(patch_size=9))
    array = values(SHAPE, "int16", seed=1)
    save(source, array)
    os.utime(source, (1, 1))
    with pytest.raises(VolumeError, match="changed source or settings"):
        convert_scan(source, target, SMALL)
    assert convert_scan(source, target, Settings(3, overwrite=True)).status == "written"
    np.testing.assert_array_equal(whole(target), array)
    assert [p.name for p in target.parent.iterdir()] == ["a.ome.zarr"]


def test_an_interrupted_conversion_is_taken_up_again(tmp_path, monkeypatch):
    sources = [save(tmp_path / f"{n}.nii", values(SHAPE, "int16", seed=n)) for n in range(2)]
    out = tmp_path / "out"
    pairs = {str(out / f"{s.stem}.ome.zarr"): str(s) for s in sources}
    read, calls = type(open_volume(sources[0])).read, []

    def interrupted(self, start, stop):
        calls.append(self.path)
        if self.path == str(sources[1]) and start[2] > 0:
            raise KeyboardInterrupt
        return read(self, start, stop)

    monkeypatch.setattr(writing, "SLAB_BYTES", 20 * 24 * 16 * 2)
    monkeypatch.setattr(type(open_volume(sources[0])), "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert_scans(pairs, SMALL, progress=False)
    monkeypatch.undo()
    assert sorted(p.name for p in out.iterdir()) == ["0.ome.zarr"]
    with pytest.raises(FileNotFoundError):
        open_volume(out / "1.ome.zarr")
    assert [c.status for c in convert_scans(pairs, SMALL, progress=False)] == ["kept", "written"]
    assert sorted(p.name for p in out.iterdir()) == ["0.ome.zarr", "1.ome.zarr"]
    np.testing.assert_array_equal(whole(out / "1.ome.zarr"), values(SHAPE, "int16", seed=1))


def test_two_conversions_of_one_scan_at_a_time_leave_a_whole_store(tmp_path, monkeypatch):
    array = values(SHAPE, "int16")
    target = tmp_path / "out" / "a.ome.zarr"
    read, inside = ArrayVolume.read, []

    def meanwhile(self, start, stop):
        if not inside:  # the second begins and ends while the first is at its first slab
            inside.append(True)
            writing.write_store(ArrayVolume(array, AFFINE), target, 3)
        return read(self, start, stop)

    monkeypatch.setattr(ArrayVolume, "read", meanwhile)
    writing.write_store(ArrayVolume(array, AFFINE), target, 3)
    verify_store(target)
    np.testing.assert_array_equal(whole(target), array)
    assert [p.name for p in target.parent.iterdir()] == ["a.ome.zarr"]


def test_what_a_killed_conversion_left_is_named_and_not_touched(tmp_path, caplog):
    left = tmp_path / ".a.ome.zarr.0123.part"
    left.mkdir()
    convert_scan(save(tmp_path / "a.nii", values((4, 4, 4), "int16")), tmp_path / "a.ome.zarr", SMALL)
    assert left.is_dir()
    assert str(left) in caplog.text
    assert "delete it" in caplog.text


def test_changed_voxels_do_not_pass_verification(tmp_path):
    source = save(tmp_path / "a.nii", values(SHAPE, "int16"))
    target = tmp_path / "a.ome.zarr"
    convert_scan(source, target, SMALL)
    recorded = verify_store(target)
    assert recorded.startswith("sha256:")
    assert len(recorded) == 7 + 64
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{target}/0/"}}
    array = tensorstore.open(spec).result()
    array[39, 23, 19] = int(array[39, 23, 19].read().result()) ^ 1
    with pytest.raises(VolumeError, match=rf"a\.ome\.zarr: checksum of the voxels is .* was {recorded}"):
        convert_scan(source, target, Settings(3, verify=True))


def test_a_folder_that_is_no_store_is_not_replaced_unasked(tmp_path):
    source = save(tmp_path / "a.nii", values((4, 4, 4), "int16"))
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "thesis.txt").write_text("x")
    with pytest.raises(VolumeError, match="no finished store"):
        convert_scan(source, tmp_path / "a.zarr", SMALL)
    assert (tmp_path / "a.zarr" / "thesis.txt").exists()


def test_a_broken_scan_is_reported_and_the_others_are_converted_in_parallel(tmp_path):
    good = [save(tmp_path / f"{n}.nii.gz", values((9, 8, 7), "int16", seed=n)) for n in range(2)]
    (tmp_path / "bad.nii").write_bytes(b"no scan")
    pairs = {str(tmp_path / "out" / store_name(p.name)): str(p) for p in [good[0], tmp_path / "bad.nii", good[1]]}
    done = convert_scans(pairs, SMALL, workers=2, progress=False)
    assert [c.status for c in done] == ["written", "failed", "written"]
    assert done[1].reason.startswith("VolumeError")
    assert "bad.nii" in done[1].reason
    np.testing.assert_array_equal(whole(done[2].target), values((9, 8, 7), "int16", seed=1))


def test_a_table_is_copied_with_the_places_of_the_stores(tmp_path):
    for name, seed in (("p1/t1.nii.gz", 1), ("p2/t1.nii", 2)):
        save(tmp_path / "in" / name, values((9, 8, 7), "int16", seed=seed))
    lines = ["id,t1,age,t2", "001,p1/t1.nii.gz,50.10,", "002,p2/t1.nii,NA,p1/t1.nii.gz", "001,p1/t1.nii.gz,51,"]
    (tmp_path / "in" / "cohort.csv").write_text("\n".join(lines) + "\n")
    copy, done = convert_table(tmp_path / "in" / "cohort.csv", ["t1", "t2"], tmp_path / "out", SMALL, progress=False)
    assert len(done) == 2
    assert copy.read_text().splitlines() == [
        "id,t1,age,t2",
        "001,p1/t1.ome.zarr,50.10,",
        "002,p2/t1.ome.zarr,NA,p1/t1.ome.zarr",
        "001,p1/t1.ome.zarr,51,",
    ]
    np.testing.assert_array_equal(whole(copy.parent / "p2" / "t1.ome.zarr"), values((9, 8, 7), "int16", seed=2))
    with pytest.raises(ValueError, match="no column"):
        convert_table(tmp_path / "in" / "cohort.csv", ["image"], tmp_path / "out", SMALL)
    save(tmp_path / "in" / "p1" / "t1.nii", values((4, 4, 4), "uint8"))
    (tmp_path / "in" / "two.csv").write_text("image\np1/t1.nii\np1/t1.nii.gz\n")
    with pytest.raises(ValueError, match=r"would both become p1/t1\.ome\.zarr"):
        convert_table(tmp_path / "in" / "two.csv", ["image"], tmp_path / "out", SMALL)


def test_a_link_in_a_table_is_converted_under_its_own_name(tmp_path):
    save(tmp_path / "scan.nii.gz", values((9, 8, 7), "int16"))
    (tmp_path / "scan.nii.gz").rename(tmp_path / "a0f3")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link.nii.gz").symlink_to(tmp_path / "a0f3")
    (tmp_path / "in" / "cohort.csv").write_text("image\nlink.nii.gz\n")
    copy, _ = convert_table(tmp_path / "in" / "cohort.csv", ["image"], tmp_path / "out", SMALL, progress=False)
    assert copy.read_text().split() == ["image", "link.ome.zarr"]
    np.testing.assert_array_equal(whole(copy.parent / "link.ome.zarr"), values((9, 8, 7), "int16"))


def test_the_script_converts_folders_and_tables(tmp_path, capsys):
    save(tmp_path / "in" / "a.nii.gz", values((9, 8, 7), "int16"))
    main = script().main
    arguments = [str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--patch_size", "3", "--verify"]
    assert main(arguments) == 0
    assert "1 written, 0 kept, 0 failed; chunks of 16 voxels" in capsys.readouterr().out
    assert main(arguments) == 0
    assert "0 written, 1 kept" in capsys.readouterr().out
    np.testing.assert_array_equal(whole(tmp_path / "out" / "a.ome.zarr"), values((9, 8, 7), "int16"))
    (tmp_path / "in" / "c.csv").write_text("scan\na.nii.gz\nnowhere.nii\n")
    table = [str(tmp_path / "in" / "c.csv"), "--image_column", "scan", *arguments[1:]]
    assert main(table) == 1
    said = capsys.readouterr()
    assert "nowhere.nii: no such file" in said.err
    assert pd.read_csv(tmp_path / "out" / "c.csv")["scan"].tolist() == ["a.ome.zarr", "nowhere.ome.zarr"]
    with pytest.raises(SystemExit):
        main([*arguments, "--levels", "0"])


def test_the_script_runs_again_with_its_output_among_the_scans(tmp_path, capsys):
    save(tmp_path / "a.nii.gz", values((9, 8, 7), "int16"))
    arguments = [str(tmp_path), "--output", str(tmp_path / "stores"), "--patch_size", "3"]
    assert script().main(arguments) == 0
    assert script().main(arguments) == 0
    assert "0 written, 1 kept, 0 failed" in capsys.readouterr().out
    save(tmp_path / "a.nii", values((9, 8, 7), "int16"))
    with pytest.raises(SystemExit):
        script().main(arguments)
    assert "two scans are named 'a'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "name"),
    [("a.nii.gz", "a"), ("p.1/b.NII", "p.1/b"), ("series.1", "series.1"), ("x.ome.zarr/", "x"), ("y.zarr", "y")],
)
def test_names_of_stores(path, name):
    assert store_name(path) == f"{name}.ome.zarr"


def test_the_bar_moves_within_a_scan(tmp_path, capsys):
    pairs = {str(tmp_path / "a.zarr"): str(save(tmp_path / "a.nii", values((9, 8, 7), "int16")))}
    convert_scans(pairs, SMALL)
    said = capsys.readouterr().err
    assert "convert: 100%" in said
    assert "write: " in said
