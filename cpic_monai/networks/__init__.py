"""Networks: the patch encoder, the canonical basis, the heads, C-PIC itself."""

from cpic_monai.networks.basis import CanonicalBasis
from cpic_monai.networks.cpic import CPICNet
from cpic_monai.networks.encoder import PatchEncoder, VoxelValues
from cpic_monai.networks.heads import QuantileHead
from cpic_monai.networks.leave_one_out import LeaveOneOutRidge

__all__ = ["CPICNet", "CanonicalBasis", "LeaveOneOutRidge", "PatchEncoder", "QuantileHead", "VoxelValues"]
