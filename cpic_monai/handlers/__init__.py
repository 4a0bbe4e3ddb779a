"""Ignite handlers: seeds, index selection, gradients over processes, basis and head, checkpoints, ends."""

from cpic_monai.handlers.checkpoint import BestCheckpoint, LastCheckpoint, load_best
from cpic_monai.handlers.final import FinalFit
from cpic_monai.handlers.fit import FitBasisAndHead
from cpic_monai.handlers.gradients import AverageGradients
from cpic_monai.handlers.patience import StopWithoutBetter
from cpic_monai.handlers.seed import SeedEpoch
from cpic_monai.handlers.select import SelectIndexSets
from cpic_monai.handlers.time_limit import TrainingTimeLimit

__all__ = [
    "AverageGradients",
    "BestCheckpoint",
    "FinalFit",
    "FitBasisAndHead",
    "LastCheckpoint",
    "SeedEpoch",
    "SelectIndexSets",
    "StopWithoutBetter",
    "TrainingTimeLimit",
    "load_best",
]
