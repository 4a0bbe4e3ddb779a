"""Where it looked: maps of each scan's picked voxels and of their attributions, in the scan's own space."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from cpic_monai.atomic import write_text_atomically
from cpic_monai.attribution import CLASSES, attribution_map, check_visit, explain, label_map, shared_reference
from cpic_monai.distributed import rank
from cpic_monai.label.overlay import write_label_map
from cpic_monai.networks import CPICNet
from cpic_monai.networks.heads import LogitHead
from cpic_monai.report.summary import plain

__all__ = ["Explanation"]

logger = logging.getLogger(__name__)


class Explanation:
    """Write ``<subject>_picked.nii.gz`` and ``<subject>_attribution.nii.gz`` of scans, and ``explained.json``.

    Both lie on the grid of the scan's file (its first channel's; of a DICOM series its regular grid), with its shape
    and affine. The former is a uint8 label map of the classes of :data:`cpic_monai.attribution.CLASSES`, the latter
    float32, signed, in the target's unit (a fraction of the first value, where predictions are; of classes log odds or
    log probability, of survival log hazard). Its sum is that of the attributions of picked voxels within the file.

    Parameters
    ----------
    network
        With the checkpoint's weights.
    scans
        Encoded items with lazy scans under ``image``. Of a MONAI dataset one is opened at a time.
    output_dir
        Made where missing.
    target_name, unit
        Of the cohort.
    reference
        ``air`` or ``cohort``; see :mod:`cpic_monai.attribution`.
    visit
        Which of a scan's rows is explained; -1 is the last.
    outputs
        Names of what the network predicts. The one that is explained is named in ``explained.json``: the middle
        quantile, the log hazard, or a class.
    output
        Which class; None for the second of two, and of several each scan's most probable one.

    Raises
    ------
    ValueError
        If two subjects' files would have one name, a scan lacks that visit, or there is no such class.
    """

    def __init__(
        self,
        network: CPICNet,
        scans: Sequence[dict[str, Any]],
        output_dir: str | Path,
        *,
        target_name: str,
        unit: str,
        reference: str = "cohort",
        visit: int = -1,
        outputs: Sequence[str] = (),
        output: str | None = None,
    ) -> None:
        if not isinstance(network, CPICNet):
            raise TypeError(
                f"{type(network).__name__} picks no voxels, so nothing can be explained: leave configs/resnet.json out"
            )
        self.network, self.scans, self.output_dir = network, scans, Path(output_dir)
        self.target_name, self.reference, self.visit = target_name, reference, int(visit)
        self.outputs = [str(name) for name in outputs]
        self.unit = unit
        if isinstance(network.head, LogitHead):
            words = {1: "log hazard", 2: "log odds"}
            self.unit = words.get(network.head.quantiles, "log probability")
        if output is not None and (output not in self.outputs or not isinstance(network.head, LogitHead)):
            raise ValueError(
                f"config key `explain_output` is {output!r}; of classes, name one of {', '.join(self.outputs) or '-'}"
            )
        self.output = None if output is None else self.outputs.index(output)

    def run(self) -> list[dict[str, Any]]:
        """Explain all scans; returns the content of ``explained.json``, an entry a scan.

        Of several processes the first alone explains; the others return an empty list.
        """
        if rank() > 0:
            return []
        items = getattr(self.scans, "data", self.scans)  # of a MONAI dataset, without its transform
        stems = [_file_stem(str(item["subject"])) for item in items]
        twice = sorted({stem for stem in stems if stems.count(stem) > 1})
        if twice:
            raise ValueError(f"several subjects' files would be named {', '.join(twice)}: give them other names")
        for item in items:
            check_visit(str(item["subject"]), item.get("tabular"), self.visit)
        self.network.eval()
        from_here = shared_reference(self.network, self.reference)
        entries = [
            self.write(self.scans[n], stem, from_here)
            for n, stem in enumerate(tqdm(stems, desc="explain", unit="scan"))
        ]
        content = {
            "target": self.target_name,
            "unit": self.unit,
            "reference": self.reference,
            "label_names": CLASSES,
            "scans": entries,
        }
        path = write_text_atomically(self.output_dir / "explained.json", json.dumps(plain(content), indent=2) + "\n")
        logger.info(f"wrote the maps of {len(entries)} scans beside {path}")
        return entries

    def write(self, item: Mapping[str, Any], stem: str, reference: str | Tensor) -> dict[str, Any]:
        """Write one scan's two maps, under ``stem``; returns what ``explained.json`` says about it.

        ``reference`` is that of :func:`cpic_monai.attribution.explain`.

        Returns
        -------
        dict
            ``subject``; ``files`` (``picked``, ``attribution``); ``visit``; ``output`` that is explained; ``voxels``
            picked; ``raised_by`` and
            ``lowered_by``, sums of the attributions above and below 0; ``beyond_file``, the sum of those outside the
            file; ``finite``, false where the derivative is not finite and all attributions are given as 0.
        """
        subject, scan = str(item["subject"]), item["image"]
        explained = explain(
            self.network, scan, item.get("tabular"), visit=self.visit, subject=subject, reference=reference,
            output=self.output,
        )  # fmt: skip
        factor = self._factor(item)
        moved = explained.attribution * factor
        shown = replace(explained, attribution=moved)
        affine = scan.volumes[0].affine
        values = attribution_map(scan, shown)
        files = {name: f"{stem}_{name}.nii.gz" for name in ("picked", "attribution")}
        write_label_map(self.output_dir / files["picked"], label_map(scan, shown), affine)
        write_label_map(self.output_dir / files["attribution"], values, affine)
        visit = float(item["visit"][self.visit]) if "visit" in item else math.nan
        return {
            "subject": subject,
            "files": files,
            "visit": visit,
            "output": self.outputs[explained.output] if self.outputs else "",
            "voxels": len(explained.voxels),
            "raised_by": float(moved.clamp_min(0).sum()),
            "lowered_by": float(moved.clamp_max(0).sum()),
            "beyond_file": float(moved.sum()) - float(values.sum(dtype=np.float64)),
            "finite": explained.finite,
        }

    def _factor(self, item: Mapping[str, Any]) -> float:
        """From the head's output to the target's unit."""
        if isinstance(self.network.head, LogitHead) or "scale" not in item:
            return 1.0
        return float(item["scale"][self.visit])


def _file_stem(subject: str) -> str:
    """A subject's name as a file's: whatever else than letters, digits, ``.``, ``_`` and ``-`` becomes ``_``."""
    return re.sub(r"[^\w.-]", "_", subject)
