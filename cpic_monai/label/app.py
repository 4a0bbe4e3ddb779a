"""The MONAI Label app: one model, the bundle's.

A folder with a ``main.py`` that imports :class:`LabelApp` is what ``monailabel start_server --app`` wants; the packed
bundle's is ``label_app``.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import MONAILabelException

from cpic_monai.label.bundle import LabelBundle, subject_name
from cpic_monai.label.tasks import FineTuneTask, PredictTask, read_outcome

__all__ = ["LabelApp"]

logger = logging.getLogger(__name__)


class LabelApp(MONAILabelApp):
    """Predicts and fine-tunes with one bundle.

    Parameters
    ----------
    app_dir
        Folder of ``main.py``.
    studies
        The datastore.
    conf
        ``--conf`` pairs of the server. ``bundle``: the bundle's folder, by default the one that holds ``app_dir``.
        ``model``: the model's name in requests, by default ``cpic``. ``device``: where the network computes, by default
        a GPU if there is one.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        conf = conf or {}
        self.bundle = LabelBundle(conf.get("bundle") or Path(app_dir).parent, conf.get("device"))
        self.model = conf.get("model") or "cpic"
        metadata = json.loads((self.bundle.root / "configs" / "metadata.json").read_text(encoding="utf-8"))
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name=metadata["name"],
            description=metadata["description"],
            version=metadata["version"],
        )

    def init_infers(self) -> dict[str, PredictTask]:
        """One model."""
        return {self.model: PredictTask(self.bundle, self.description)}

    def init_trainers(self) -> dict[str, FineTuneTask]:
        """One trainer, of the same name."""
        return {self.model: FineTuneTask(self.bundle, f"Fine-tunes {self.name} on submitted outcomes")}

    def infer(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """As MONAI Label's, with refusals that a client can read (HTTP 400)."""
        return self._plainly(lambda: super(LabelApp, self).infer(request, datastore))

    def train(self, request: dict[str, Any]) -> dict[str, Any]:
        """As MONAI Label's, with refusals that a client can read (HTTP 400 if it waits for the result)."""
        return self._plainly(lambda: super(LabelApp, self).train(request))

    def on_save_label(self, image_id: str, label_id: str) -> dict[str, Any]:
        """Check an outcome when it is submitted; one that cannot be used is removed and refused (HTTP 400)."""
        store = self.datastore()
        label = store.get_label_uri(label_id, DefaultLabelTag.FINAL)
        if not label or not label.endswith(".json"):
            return {}
        image = store.get_image_uri(image_id)
        try:
            item = self.bundle.expected.submitted(subject_name(image), image, read_outcome(label))
        except ValueError as error:
            store.remove_label(label_id, DefaultLabelTag.FINAL)
            raise HTTPException(status_code=400, detail=str(error)) from error
        return {"rows": len(item["target"])}

    def _plainly(self, act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What ``act`` returns, its refusals as HTTP errors; in the process of a training task as they are."""
        try:
            return act()
        except (ValueError, FileNotFoundError, MONAILabelException) as error:
            if not self._server_mode:
                raise
            message = getattr(error, "msg", None) or str(error)
            logger.warning(f"refused ({os.getpid()}): {message}")
            raise HTTPException(status_code=400, detail=message) from error
