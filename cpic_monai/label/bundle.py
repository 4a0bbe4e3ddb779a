"""A bundle folder as a server uses it: loaded once, read again when its checkpoint changes, asked for one scan."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigParser

from cpic_monai.attribution import CLASSES, Explained, attribution_classes, explain, label_map
from cpic_monai.cohorts import ItemEncoder, find_scans
from cpic_monai.label.request import Expected
from cpic_monai.networks import CPICNet
from cpic_monai.transforms import VirtualScan

__all__ = ["LabelBundle", "subject_name"]

logger = logging.getLogger(__name__)
CONFIG = "inference.json"


class LabelBundle:
    """A folder with ``configs/inference.json`` and ``models/model.pt``.

    Preprocessing, network, tabular encoding and times are those of the config, which is where training has them from.

    Parameters
    ----------
    root
        The bundle's folder.
    device
        Where the network computes; the config's own choice if None.

    Raises
    ------
    FileNotFoundError
        If the folder, its config or its checkpoint is missing.
    """

    def __init__(self, root: str | os.PathLike[str], device: str | None = None) -> None:
        self.root = Path(root).expanduser().resolve()
        self.device = device
        self._lock = threading.RLock()
        self._stamp: tuple[int, int] | None = None
        self._parser = ConfigParser()
        self.refresh()

    @property
    def checkpoint(self) -> Path:
        """The file whose change makes :meth:`refresh` read it again."""
        return self.root / "models" / "model.pt"

    def refresh(self) -> bool:
        """Read config and weights if the checkpoint is another file than last time; returns whether it was."""
        with self._lock:
            config = self.root / "configs" / CONFIG
            for file in (config, self.checkpoint):
                if not file.is_file():
                    raise FileNotFoundError(f"{file} is missing: is {self.root} the folder of a packed bundle?")
            status = self.checkpoint.stat()
            stamp = (status.st_mtime_ns, status.st_ino)
            if stamp == self._stamp:
                return False
            parser = ConfigParser()
            # Configs that take keys from each other name them relative to the bundle's folder.
            with contextlib.chdir(self.root):
                parser.read_config(str(config))
                parser.resolve_macro_and_relative_ids()
            parser["bundle_root"] = str(self.root)
            parser["ckpt_path"] = str(self.checkpoint)
            if self.device is not None:
                parser["device"] = self.device
            network: CPICNet = parser.get_parsed_content("network_def")
            network.load_state_dict(parser.get_parsed_content("checkpoint")["model"])
            self.network = network.to(parser.get_parsed_content("device")).eval()
            self._parser, self._stamp = parser, stamp
            self.expected = self._expected()
            logger.info(f"read {self.checkpoint} of {self.root.name}")
            return True

    def get(self, key: str, default: Any = None) -> Any:
        """Content of a config key, made once a checkpoint."""
        return self._parser.get_parsed_content(key) if key in self._parser else default

    @property
    def encoder(self) -> ItemEncoder:
        """Tabular encoding and target scale of the training cohort."""
        return self.get("item_encoder")

    @property
    def quantiles(self) -> tuple[float, ...]:
        """Levels predicted."""
        return tuple(self.get("quantiles"))

    def _expected(self) -> Expected:
        relative = self.encoder.target.mode == "relative_to_first"
        name, unit = self.get("target_name", "target"), self.get("unit", "")
        first = (self.get("target_column") or name) if relative else None
        visits = tuple(float(v) for v in self.get("visits", (0.0,)))
        return Expected(self.encoder, self.get("visit_column"), visits, first, name, unit)

    def item(self, image: str, request: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Encoded item of a scan with what a request says about it, and notes; see :meth:`Expected.requested`."""
        item, notes = self.expected.requested(subject_name(image), image, request)
        return {**self.encoder.apply([item])[0], "unit": item["unit"]}, notes

    def pipeline(self, key: str) -> Any:
        """Transforms of a config key that have opened no scan yet, for one request."""
        # Headers kept by path must not outlive a request: a file may be replaced, a DICOM series grow by the next one.
        return copy.deepcopy(self.get(key))

    def view(self, item: dict[str, Any]) -> VirtualScan:
        """The scan of an item as the network sees it, from the files that are there now."""
        return self.pipeline("viewing")(item)["image"]

    def predict(self, image: str, request: Mapping[str, Any]) -> tuple[dict[str, Any], np.ndarray | None, np.ndarray]:
        """Predict for one scan.

        Parameters
        ----------
        image
            Path of a file or of a folder of DICOM.
        request
            See :meth:`Expected.requested`; ``label_map`` false makes none.

        Returns
        -------
        result, labels, affine
            JSON-safe result; the label map uint8 on the scan's grid, or None; the scan's (4, 4) voxel to RAS+ mm.

        Raises
        ------
        RequestError, FileNotFoundError, VolumeError
            If the request or the file cannot be used.
        """
        with self._lock:
            self.refresh()
            item, notes = self.item(image, request)
            scan = self.view(item)
            explained = explain(self.network, scan, item["tabular"], subject=item["subject"])
        result = self.result(item, explained, notes)
        drawn = str(request.get("label_map", True)).strip().lower() not in ("false", "0", "no")
        labels = label_map(scan, explained) if drawn else None
        if labels is not None:
            result["label_map"] = {name: int((labels == value).sum()) for name, value in CLASSES.items()}
        return result, labels, scan.volumes[0].affine

    def result(self, item: Mapping[str, Any], explained: Explained, notes: list[str]) -> dict[str, Any]:
        """What a client gets as JSON.

        Returns
        -------
        dict
            ``subject, target, unit, predictions`` (a row a visit: ``visit`` and a key a quantile), ``looked_at``
            (voxels, classes, attributions in the target's unit) and ``notes``.
        """
        expected, notes = self.expected, list(notes)
        units = explained.quantiles * item["scale"] + item["offset"]
        names = [f"q{level:g}" for level in self.quantiles]
        rows = [dict(zip(names, map(float, row), strict=True)) for row in units]
        if expected.has_visits:
            rows = [{"visit": float(v), **row} for v, row in zip(item["visit"][:, 0], rows, strict=True)]
        if not explained.finite:
            notes.append("attributions are not finite (equal singular values): voxels are shown as picked only")
        moved = explained.attribution * float(item["scale"][-1])
        classes = attribution_classes(explained.attribution)
        looked: dict[str, Any] = {
            "voxels": len(explained.voxels),
            "classes": {name: int((classes == value).sum()) for name, value in CLASSES.items()},
            "raised_by": float(moved.clamp_min(0).sum()),
            "lowered_by": float(moved.clamp_max(0).sum()),
        }
        if expected.has_visits:
            looked["visit"] = float(item["visit"][-1])
        return {
            "subject": item["subject"],
            "target": expected.target_name,
            "unit": item["unit"],
            "predictions": rows,
            "looked_at": looked,
            "notes": notes,
        }


def subject_name(image: str) -> str:
    """Name of a scan: its file without suffix, or its folder."""
    path = Path(image)
    return next(iter(find_scans(path))) if path.is_file() else path.name
