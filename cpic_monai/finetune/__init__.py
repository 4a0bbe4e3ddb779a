"""Fine-tuning: the encoder of a checkpoint on a new cohort, with another target, other tabular columns, another grid.

The encoder looks at small cubes of voxels and knows neither the grid nor the outcome, so it alone is carried over.
Voxels, basis and head belong to a cohort: they are chosen and fitted again without any step of the encoder, the basis
in closed form (paper Sec. 3.3), the head by a few hundred steps on frozen features
(:class:`cpic_monai.handlers.FitBasisAndHead`). The encoder may then go on learning by the recipe of the config.
"""

from cpic_monai.finetune.run import FineTuning
from cpic_monai.finetune.weights import MismatchError, Part, take_encoder, take_voxels_and_basis

__all__ = ["FineTuning", "MismatchError", "Part", "take_encoder", "take_voxels_and_basis"]
