"""MONAI Label's tasks: thin, for all they do is in :class:`cpic_monai.label.LabelBundle` and ``fine_tune``."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.interfaces.tasks.train import TrainTask

from cpic_monai.attribution import CLASSES
from cpic_monai.label.bundle import LabelBundle, subject_name
from cpic_monai.label.finetune import REFITS, FineTuning, fine_tune, last_fine_tuning
from cpic_monai.label.overlay import SUFFIXES, write_label_map
from cpic_monai.label.request import RequestError

__all__ = ["FineTuneTask", "PredictTask", "read_outcome"]

logger = logging.getLogger(__name__)


class PredictTask(InferTask):
    """Quantiles as JSON, and a label map of where the model looked.

    Parameters
    ----------
    bundle
        Predicts; its checkpoint is read again when it changes.
    description
        For viewers.
    """

    def __init__(self, bundle: LabelBundle, description: str) -> None:
        self.bundle = bundle
        # The type decides where a viewer lists a model: 3D Slicer overlays what a segmentation gives.
        super().__init__(InferType.SEGMENTATION, dict(CLASSES), 3, description, self._settings())

    def _settings(self) -> dict[str, Any]:
        """What a viewer's table of settings shows: every value that a request may give, as text to fill in."""
        expected = self.bundle.expected
        settings: dict[str, Any] = {}
        for column in expected.columns:
            known = expected.categories(column)
            settings[column.name] = ["", *known] if known else ""
        if expected.baseline_column:
            settings[expected.baseline_column] = ""
        if expected.has_visits:
            settings["visits"] = ", ".join(f"{v:g}" for v in expected.visits)
        return settings

    def info(self) -> dict[str, Any]:
        """For ``GET /info/``."""
        return {
            "type": self.type,
            "labels": self.labels,
            "dimension": self.dimension,
            "description": self.description,
            "config": self.config(),
        }

    def config(self) -> dict[str, Any]:
        """Settings of a request."""
        return self._config

    def is_valid(self) -> bool:
        """The bundle was read when the task was made."""
        return True

    def __call__(self, request: dict[str, Any], callbacks: Any = None) -> tuple[str | None, dict[str, Any]]:
        """Path of the label map (the server removes it once sent), and the JSON."""
        begun = time.time()
        image = str(request.get("image") or "")
        if not image:
            raise RequestError("no such scan in the datastore; GET /datastore/?output=all lists them")
        result, labels, affine = self.bundle.predict(image, request)
        file = None
        if labels is not None:
            suffix = str(request.get("result_extension") or SUFFIXES[0])
            with tempfile.NamedTemporaryFile(suffix=suffix, delete=False) as made:
                file = str(write_label_map(Path(made.name), labels, affine))
            # Viewers name segments by position among the values that occur.
            result["label_names"] = {name: CLASSES[name] for name, count in result["label_map"].items() if count}
        result["latencies"] = {"total": round(time.time() - begun, 2)}
        return file, result


class FineTuneTask(TrainTask):
    """Fine-tunes on the JSON labels of the datastore.

    Parameters
    ----------
    bundle
        Whose checkpoint is replaced.
    description
        For viewers.
    """

    def __init__(self, bundle: LabelBundle, description: str) -> None:
        super().__init__(description)
        self.bundle = bundle

    def config(self) -> dict[str, Any]:
        """Settings of a request."""
        return {"refit": list(REFITS), "max_epochs": "0"}

    def stats(self) -> dict[str, Any]:
        """Of the last fine-tuning."""
        return last_fine_tuning(self.bundle)

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Fine-tune on every scan that has a JSON label; label maps are passed over."""
        items = []
        for entry in datastore.datalist():
            label = Path(entry["label"])
            if label.suffix.lower() != ".json":
                logger.warning(f"{label.name} is no outcome (JSON): passed over")
                continue
            outcome = read_outcome(label)
            items.append(self.bundle.expected.submitted(subject_name(entry["image"]), entry["image"], outcome))
        refit = request.get("refit") or "auto"
        refit = refit[0] if isinstance(refit, list) else refit
        try:
            epochs = int(request.get("max_epochs") or 0)
        except ValueError:
            raise RequestError(f"max_epochs must be a whole number, found {request['max_epochs']!r}") from None
        return fine_tune(self.bundle, items, FineTuning(refit=str(refit), epochs=epochs))


def read_outcome(path: str | Path) -> Any:
    """Content of a JSON label.

    Raises
    ------
    RequestError
        If it is no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise RequestError(f"{Path(path).name} is no JSON: {error}") from error
