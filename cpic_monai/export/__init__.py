"""Export of a fitted network: TorchScript, ONNX, and weights in the form that MONAI's model zoo expects."""

from cpic_monai.export.files import export_models, export_onnx, strip_sources
from cpic_monai.export.static import ScriptableCPICNet, StaticCPIC
from cpic_monai.export.weights import read_checkpoint, write_weights

__all__ = [
    "ScriptableCPICNet",
    "StaticCPIC",
    "export_models",
    "export_onnx",
    "read_checkpoint",
    "strip_sources",
    "write_weights",
]
