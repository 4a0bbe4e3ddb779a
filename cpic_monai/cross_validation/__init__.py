"""Cross-validation: every fold trained by the training workflow in a process of its own, and one result over folds."""

from cpic_monai.cross_validation.aggregate import aggregate
from cpic_monai.cross_validation.fold import FoldRun, SettingsChangedError
from cpic_monai.cross_validation.results import MethodResult, read_method
from cpic_monai.cross_validation.run import CrossValidation, reader_of
from cpic_monai.cross_validation.splits import split_checksum

__all__ = [
    "CrossValidation",
    "FoldRun",
    "MethodResult",
    "SettingsChangedError",
    "aggregate",
    "read_method",
    "reader_of",
    "split_checksum",
]
