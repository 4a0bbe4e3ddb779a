"""The bundle in a MONAI Label server: quantiles and where the model looked, fine-tuning on submitted outcomes.

`cpic_monai.label.app` is the server's app and needs ``monailabel``; everything else here runs without it.
"""

from cpic_monai.label.bundle import LabelBundle
from cpic_monai.label.finetune import FineTuning, fine_tune
from cpic_monai.label.overlay import write_label_map
from cpic_monai.label.request import RequestError
from cpic_monai.label.stock import RequestedPatchesd, RequestedResultd, RequestInferer

__all__ = [
    "FineTuning",
    "LabelBundle",
    "RequestError",
    "RequestInferer",
    "RequestedPatchesd",
    "RequestedResultd",
    "fine_tune",
    "write_label_map",
]
