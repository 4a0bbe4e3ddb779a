"""Conversions to places given by URL: a bucket (S3, on the loopback interface), a file:// folder, and refusals."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from buckets import s3
from conversions import save, script, whole
from stores import values

from cpic_monai.volumes import open_volume
from cpic_monai.volumes import write_chunked as writing
from cpic_monai.volumes.convert import Settings, convert_scans, convert_table, store_place

SHAPE = (20, 24, 40)


def test_the_script_writes_to_a_bucket_and_takes_up_there(tmp_path, monkeypatch, capsys):
    main, arrays = script().main, [values(SHAPE, "int16", seed=n) for n in range(2)]
    sources = [save(tmp_path / "in" / f"{name}.nii", array) for name, array in zip(("a 50%", "b"), arrays, strict=True)]
    (tmp_path / "in" / "c.csv").write_text(f"image,age\n{sources[0].name},1\n{sources[1]},2\n")
    kind = type(open_volume(sources[0]))
    read = kind.read

    def interrupted(self, start, stop):
        if self.path == str(sources[1]) and start[2] > 0:
            raise KeyboardInterrupt
        return read(self, start, stop)

    with s3() as (storage, held):
        end = ["--output", "s3://bucket/out/", "--patch_size", "3", "--verify", "--storage", json.dumps(storage)]
        table = [str(tmp_path / "in" / "c.csv"), "--table", str(tmp_path / "copy" / "c.csv"), *end]
        monkeypatch.setattr(writing, "SLAB_BYTES", 20 * 24 * 16 * 2)
        monkeypatch.setattr(kind, "read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            main(table)
        monkeypatch.undo()
        stores = {name: {key for key in held if f"/{name}.ome.zarr/" in key} for name in ("a 50%", "b")}
        assert "/bucket/out/a 50%.ome.zarr/zarr.json" in stores["a 50%"]
        assert stores["b"]
        assert "/bucket/out/b.ome.zarr/zarr.json" not in stores["b"]
        capsys.readouterr()
        assert main(table) == 0
        assert "s3://bucket/out: 1 written, 1 kept, 0 failed" in capsys.readouterr().out
        places = pd.read_csv(tmp_path / "copy" / "c.csv")["image"].tolist()
        assert places == ["s3://bucket/out/a%2050%25.ome.zarr", "s3://bucket/out/b.ome.zarr"]
        for place, array in zip(places, arrays, strict=True):
            np.testing.assert_array_equal(whole(place, storage=storage), array)
        assert main([str(tmp_path / "in"), *end]) == 0
        assert "0 written, 2 kept" in capsys.readouterr().out
        key = "/bucket/out/b.ome.zarr/0/c/0/0/0"
        held[key] = held[key][:100] + bytes([held[key][100] ^ 1]) + held[key][101:]
        assert main([str(sources[1]), *end]) == 1
        assert "s3://bucket/out/b.ome.zarr: box" in capsys.readouterr().err
        save(sources[1], values((9, 8, 7), "uint8"))
        assert main([str(sources[1]), *end]) == 1
        assert "holds another conversion (changed source or settings)" in capsys.readouterr().err
        assert main([str(sources[1]), *end, "--overwrite"]) == 0
        np.testing.assert_array_equal(whole(places[1], storage=storage), values((9, 8, 7), "uint8"))


def test_several_processes_write_to_a_bucket(tmp_path):
    sources = [save(tmp_path / f"{n}.nii", values((9, 8, 7), "int16", seed=n)) for n in range(2)]
    with s3() as (storage, _):
        pairs = {store_place("s3://bucket", f"{s.stem}.ome.zarr"): str(s) for s in sources}
        done = convert_scans(pairs, Settings(3, verify=True, storage=storage), workers=2, progress=False)
    assert [c.status for c in done] == ["written", "written"], done


def test_outputs_are_folders_or_urls_that_can_be_written_to(tmp_path, capsys):
    save(tmp_path / "in" / "a.nii", values((9, 8, 7), "int16"))
    (tmp_path / "c.csv").write_text("image\nin/a.nii\n")
    main, scans, table = script().main, str(tmp_path / "in"), str(tmp_path / "c.csv")
    assert main([scans, "--output", (tmp_path / "with space").as_uri(), "--storage", '{"file_io_sync": false}']) == 0
    np.testing.assert_array_equal(whole(tmp_path / "with space" / "a.ome.zarr"), values((9, 8, 7), "int16"))
    assert main([table, "--output", str(tmp_path / "out"), "--table", str(tmp_path / "d.csv")]) == 0
    assert (tmp_path / "d.csv").read_text() == f"image\n{tmp_path / 'out' / 'in' / 'a.ome.zarr'}\n"
    for wrong, said in (
        ([scans, "--output", "memory://x"], "memory://x: cannot be written to; give a folder"),
        ([scans, "--output", "https://host/x"], "https://host/x: cannot be written to"),
        ([scans, "--output", "s3://bucket/x", "--storage", "{"], "'{' is no JSON"),
        ([scans, "--output", "s3://bucket/x", "--storage", "3"], "'3' is no JSON object"),
        ([scans, "--output", "s3://bucket/x", "--storage", '{"region": "x"}'], "`storage` with region is none of"),
        ([scans, "--output", "s3://bucket/x", "--table", "c.csv"], "--table c.csv: is for the copy of a CSV"),
        ([table, "--output", "s3://bucket/x"], "--output s3://bucket/x is a URL: name a local file for the copy"),
    ):
        with pytest.raises(SystemExit):
            main(wrong)
        assert said in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"s3://bucket/x/c\.csv: the copy of the table must be a local file"):
        convert_table(table, ["image"], "s3://bucket/x", progress=False)
