"""Cross-approximation: index sets, pivoting, interpolation, sweeps."""

from cpic_monai.cross.index_sets import CrossIndices, CrossPlan, left_sizes, make_plan, right_sizes
from cpic_monai.cross.interpolation import Ridge, interpolate
from cpic_monai.cross.pivoting import joint_rows, pivoted_rows
from cpic_monai.cross.planned import StackedPlan, interpolate_plan, stack_plan
from cpic_monai.cross.seeds import suffix_sets
from cpic_monai.cross.sweep import half_sweep

__all__ = [
    "CrossIndices",
    "CrossPlan",
    "Ridge",
    "StackedPlan",
    "half_sweep",
    "interpolate",
    "interpolate_plan",
    "joint_rows",
    "left_sizes",
    "make_plan",
    "pivoted_rows",
    "right_sizes",
    "stack_plan",
    "suffix_sets",
]
