"""Check the packed bundle in a real MONAI Label 0.8.5 server over HTTP; scripts/check_monai_label.sh runs it.

With the bundle's own app: infer on a scan of the datastore (quantiles; the overlay against the scan's affine), on a
folder of DICOM and as NRRD; refusals; submitted outcomes; fine-tuning in the background; infer with the new weights;
restart; infer again. Last, the stock `monaibundle` app.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import itk
import numpy as np
import pandas as pd
import torch
from label_server import Server
from monai.transforms import Compose, LoadImage, Orientation, Resize
from monailabel.client import MONAILabelClient
from nibabel.affines import apply_affine
from nibabel.nifti1 import Nifti1Image

from cpic_monai.attribution import CLASSES
from cpic_monai.label import LabelBundle

MODEL = "cpic"
WEEKS = [0.0, 26.0, 52.0]


class Check:
    """The steps, over one set of files.

    Parameters
    ----------
    work
        Folder for all of them.
    """

    def __init__(self, work: Path) -> None:
        self.work, self.studies, self.dicom = work, work / "studies", work / "phantom" / "train"
        self.bundle = work / "dist" / "cpic_fvc_regression"
        self.table = pd.read_csv(work / "phantom" / "train.csv")
        self.names = sorted(self.table["Patient"].unique())
        self.view = json.loads((self.bundle / "configs" / "inference.json").read_text())["spatial_shape"]
        self.steps = 0

    def expect(self, holds: Any, what: str) -> None:
        """Report a step that holds; stop at one that does not."""
        if not holds:
            raise SystemExit(f"FAILED: {what}")
        self.steps += 1
        print(f"ok  {what}", flush=True)

    def tabular(self, name: str) -> dict[str, Any]:
        """A patient's values, as a client gives them."""
        first = self.table[self.table["Patient"] == name].sort_values("Weeks").iloc[0]
        return {"Age": int(first["Age"]), "Sex": str(first["Sex"]), "FVC": float(first["FVC"])}

    def request(self, name: str, **more: Any) -> dict[str, Any]:
        """Parameters of an infer request."""
        return {"tabular": self.tabular(name), "visits": WEEKS, **more}

    def quantiles(self, result: dict[str, Any], first: float) -> np.ndarray:
        """Quantiles ``(3, 3)`` of a result, checked."""
        rows = result["predictions"]
        found = np.array([[row["q0.2"], row["q0.5"], row["q0.8"]] for row in rows])
        holds = [row["visit"] for row in rows] == WEEKS and (np.diff(found, axis=1) >= 0).all()
        holds = holds and result["unit"] == "mL" and (0.3 * first < found).all() and (found < 2 * first).all()
        self.expect(holds, "quantiles in order, in mL, for each visit asked for")
        return found

    def picked_world(self, file: Path) -> tuple[np.ndarray, np.ndarray]:
        """By MONAI's own transforms alone: the voxels that the weights pick, and the view's affine, for a file."""
        steps = [LoadImage(ensure_channel_first=True), Orientation("SPL", labels=None), Resize(self.view)]
        view: Any = Compose(steps)(str(file))
        voxels = torch.unique(LabelBundle(self.bundle).network.voxels(), dim=0).numpy()
        return voxels[(voxels < np.array(self.view)).all(1)], np.asarray(view.affine, float)

    def overlay_matches(self, file: Path, labels: np.ndarray, affine: np.ndarray, values: set[int], what: str) -> None:
        """The label map lies on the scan's grid, and what it marks are the picked voxels, in world coordinates."""
        scan = Nifti1Image.from_filename(file)
        self.expect(
            labels.shape == scan.shape and np.allclose(affine, scan.affine, atol=1e-3), f"{what}: the scan's grid"
        )
        self.expect(set(np.unique(labels)) <= {0, *values} and labels.any(), f"{what}: label values {sorted(values)}")
        voxels, view = self.picked_world(file)
        world = apply_affine(scan.affine, np.argwhere(labels))
        seen = np.floor(apply_affine(np.linalg.inv(view), world) + 0.5 + 1e-3).astype(int)
        picked = {tuple(v) for v in voxels}
        self.expect({tuple(v) for v in seen} <= picked, f"{what}: marks only picked voxels (world coordinates)")
        back = apply_affine(np.linalg.inv(scan.affine) @ view, voxels)
        nearest = np.floor(back + 0.5).astype(int)
        within = ((nearest >= 0) & (nearest < scan.shape)).all(1)
        shares = [labels[tuple(slice(max(0, a - 1), a + 2) for a in place)].any() for place in nearest[within]]
        self.expect(within.sum() > 50 and all(shares), f"{what}: marks all {within.sum()} picked voxels of the scan")

    def infers(self, server: Server) -> np.ndarray:
        """Quantiles, overlay and refusals of the bundle's app; returns the first scan's quantiles."""
        name = self.names[0]
        file, first = self.studies / f"{name}.nii.gz", self.tabular(name)["FVC"]
        info = server.json("GET", "/info/")
        self.expect(info["models"][MODEL]["labels"] == CLASSES, "the app lists its model and label classes")
        self.expect(
            {"Age", "Sex", "FVC", "visits"} <= set(info["models"][MODEL]["config"]), "and the values it asks for"
        )
        found = self.quantiles(server.infer(MODEL, name, self.request(name), "json"), first)
        result, overlay = server.infer_all(MODEL, name, self.request(name), self.work / "overlay.nii.gz")
        image = Nifti1Image.from_filename(overlay)
        self.overlay_matches(file, np.asarray(image.dataobj), image.affine, set(CLASSES.values()), "overlay")
        counts = {key: int((np.asarray(image.dataobj) == value).sum()) for key, value in CLASSES.items()}
        self.expect(counts == result["label_map"] and counts["raises"] + counts["lowers"] > 0, f"classes {counts}")
        self.expect(result["label_names"] == {k: CLASSES[k] for k, n in counts.items() if n}, "names of the classes")
        self.slicer(server, name, found)

        folder = self.dicom / self.names[1]
        by_file = server.infer(MODEL, self.names[1], self.request(self.names[1]), "json")
        by_folder, drawn = server.infer_all(MODEL, str(folder), self.request(self.names[1]), self.work / "dicom.nii.gz")
        same = [list(a.values()) == list(b.values()) or np.allclose(list(a.values()), list(b.values()), rtol=1e-4)
                for a, b in zip(by_file["predictions"], by_folder["predictions"], strict=True)]  # fmt: skip
        self.expect(all(same), "a folder of DICOM gives what its NIfTI gives")
        image = Nifti1Image.from_filename(drawn)
        self.overlay_matches(self.studies / f"{self.names[1]}.nii.gz", np.asarray(image.dataobj), image.affine,
                             set(CLASSES.values()), "overlay of DICOM")  # fmt: skip

        status, message = server.refused(MODEL, name, {"tabular": {"Age": 60, "FVC": first}})
        self.expect(status == 400 and "Sex" in message and "Age (a number)" in message, f"HTTP 400: {message}")
        status, message = server.refused(MODEL, name, self.request(name) | {"tabular": {"Age": "old", "Sex": "Male"}})
        self.expect(status == 400 and "Age must be a number, found 'old'" in message, f"HTTP 400: {message}")
        status, message = server.refused(MODEL, "nobody", self.request(name))
        self.expect(status == 400 and "no such scan" in message, f"HTTP 400: {message}")
        return found

    def slicer(self, server: Server, name: str, expected: np.ndarray) -> None:
        """As 3D Slicer's extension does it: its client, the values as text beside the others, an NRRD."""
        settings = server.json("GET", "/info/")["models"][MODEL]["config"]
        params = settings | {key: str(value) for key, value in self.tabular(name).items()} | {"visits": "0, 26, 52"}
        params |= {"result_extension": ".nrrd", "result_dtype": "uint8"}
        file, result = MONAILabelClient(server.url, tmpdir=str(self.work)).infer(MODEL, name, params)
        found = self.quantiles(result, self.tabular(name)["FVC"])
        self.expect(np.allclose(found, expected), "3D Slicer's client gets the same quantiles")
        a, b = itk.imread(file), itk.imread(str(self.work / "overlay.nii.gz"))
        same = (itk.array_view_from_image(a) == itk.array_view_from_image(b)).all()
        places = [
            np.r_[np.ravel(itk.array_from_matrix(i.GetDirection())), i.GetOrigin(), i.GetSpacing()] for i in (a, b)
        ]
        self.expect(
            same and np.allclose(places[0], places[1], atol=1e-3), "and the same overlay in the same place (NRRD)"
        )

    def fine_tunes(self, server: Server) -> None:
        """Submit outcomes and train, as a viewer does: in the background, asking for the state."""
        status, message = server.submit(self.names[2], {"target": 2500, "visits": [26], "tabular": {"Age": 60}})
        self.expect(status == 400 and "Sex is missing" in message, f"HTTP 400 for a bad outcome: {message}")
        for name in self.names[1:]:
            visits = self.table[self.table["Patient"] == name].sort_values("Weeks").drop_duplicates("Weeks")
            outcome = {
                "target": visits["FVC"].astype(float).tolist(),
                "visits": (visits["Weeks"] - visits["Weeks"].iloc[0]).astype(float).tolist(),
                "tabular": self.tabular(name),
            }
            status, message = server.submit(name, outcome)
            if status != 200:
                raise SystemExit(f"FAILED: outcome of {name}: HTTP {status} {message}")
        stored = server.json("GET", "/datastore/")
        self.expect(stored["completed"] == len(self.names) - 1, f"{stored['completed']} outcomes in the datastore")
        task = server.train(MODEL, {"refit": "auto"})
        self.expect(task["status"] == "DONE", f"training is done: {list(task['details'])[-1:]}")
        stats = server.json("GET", "/info/")["train_stats"][MODEL]
        self.expect(
            stats["refit"] == "basis" and stats["scans"] == len(self.names) - 1, "basis and head were fitted anew"
        )
        self.expect(
            stats["loss_after"] < stats["loss_before"], f"loss {stats['loss_before']:.3f} -> {stats['loss_after']:.3f}"
        )

    def stock(self, expected: np.ndarray) -> None:
        """The stock app with the same, fine-tuned bundle."""
        app, name = self.work / "monaibundle", self.names[0]
        shutil.copytree(Path(sys.prefix) / "monailabel" / "sample-apps" / "monaibundle", app)
        bundle = app / "model" / "cpic_fvc_regression"
        shutil.copytree(self.bundle, bundle)
        conf = {"models": "cpic_fvc_regression", "zoo_source": "local", "sam2": "false"}
        options = ("--uvicorn_app", "cpic_monai.label.stock_server:app")
        with Server(app, self.studies, conf, self.work, self.bundle, options) as server:
            path = self.work / "stock.nii.gz"
            result, overlay = server.infer_all("cpic_fvc_regression", name, self.request(name), path)
            found = self.quantiles(result, self.tabular(name)["FVC"])
            self.expect(np.allclose(found, expected, rtol=1e-4), "the stock app: the same quantiles")
            image = Nifti1Image.from_filename(overlay)
            file = self.studies / f"{name}.nii.gz"
            self.overlay_matches(file, np.asarray(image.dataobj), image.affine, {1}, "overlay of the stock app")

    def all(self) -> None:
        """Every step."""
        app, name = self.bundle / "label_app", self.names[0]
        with Server(app, self.studies, {}, self.work, self.bundle) as server:
            before = self.infers(server)
            self.fine_tunes(server)
            tuned = self.quantiles(server.infer(MODEL, name, self.request(name), "json"), self.tabular(name)["FVC"])
            self.expect(
                not np.allclose(before, tuned, rtol=1e-3),
                f"new weights: median {before[-1, 1]:.0f} -> {tuned[-1, 1]:.0f} mL",
            )
        with Server(app, self.studies, {}, self.work, self.bundle) as server:
            again = self.quantiles(server.infer(MODEL, name, self.request(name), "json"), self.tabular(name)["FVC"])
            self.expect(np.allclose(again, tuned, rtol=1e-6), "after a restart the same quantiles")
            self.expect(server.json("GET", "/datastore/")["completed"] == len(self.names) - 1, "and the same outcomes")
        self.stock(tuned)
        print(f"MONAI Label: {self.steps} checks hold", flush=True)


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder that make_label_check.py has filled")
    begun = time.time()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that servers are stopped
    Check(parser.parse_args().work.resolve()).all()
    print(f"{time.time() - begun:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
