"""Cross-validation: every fold trained by the training workflow in a process of its own, and one result over folds."""

from cpic_monai.cross_validation.fold import FoldRun, SettingsChangedError
from cpic_monai.cross_validation.results import MethodResult, aggregate, read_method, split_checksum
from cpic_monai.cross_validation.run import CrossValidation

__all__ = [
    "CrossValidation",
    "FoldRun",
    "MethodResult",
    "SettingsChangedError",
    "aggregate",
    "read_method",
    "split_checksum",
]
