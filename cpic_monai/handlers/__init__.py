"""Ignite handlers: seeds, index selection, basis and head, checkpoints."""

from cpic_monai.handlers.checkpoint import BestCheckpoint, LastCheckpoint
from cpic_monai.handlers.fit import FitBasisAndHead
from cpic_monai.handlers.seed import SeedEpoch
from cpic_monai.handlers.select import SelectIndexSets

__all__ = ["BestCheckpoint", "FitBasisAndHead", "LastCheckpoint", "SeedEpoch", "SelectIndexSets"]
