"""Dictionary transforms from a path to patches; nothing in between holds a scan.

LoadVolumed -> MONAI's spatial transforms, lazy -> VirtualScand -> SamplePatchesd, in a LazyCompose.
"""

from cpic_monai.transforms.align import AlignToTemplated, fit_transforms
from cpic_monai.transforms.compose import LazyCompose
from cpic_monai.transforms.intensity import HUWindow, PercentileScaled, ScaleRange, ZScoreSampled
from cpic_monai.transforms.load import LoadVolumed
from cpic_monai.transforms.patch_hash import PatchHash
from cpic_monai.transforms.virtual import SamplePatchesd, VirtualScand
from cpic_monai.transforms.virtual_scan import VirtualScan

__all__ = [
    "AlignToTemplated",
    "HUWindow",
    "LazyCompose",
    "LoadVolumed",
    "PatchHash",
    "PercentileScaled",
    "SamplePatchesd",
    "ScaleRange",
    "VirtualScan",
    "VirtualScand",
    "ZScoreSampled",
    "fit_transforms",
]
