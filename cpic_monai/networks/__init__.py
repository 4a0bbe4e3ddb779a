"""Networks: the patch encoder, the canonical basis, the heads, C-PIC itself; tensor regression layers and baselines."""

from cpic_monai.networks.basis import CanonicalBasis
from cpic_monai.networks.cpic import CPICNet
from cpic_monai.networks.encoder import PatchEncoder, VoxelValues
from cpic_monai.networks.heads import QuantileHead
from cpic_monai.networks.leave_one_out import LeaveOneOutRidge
from cpic_monai.networks.resnet_baseline import ScanResNet
from cpic_monai.networks.tensor_contraction import TensorContractionLayer
from cpic_monai.networks.tensor_dropout import TensorDropout
from cpic_monai.networks.tensor_regression import TensorRegressionLayer
from cpic_monai.networks.tensor_train_layer import TensorTrainRegressionLayer
from cpic_monai.networks.tensor_train_regression import TensorTrainRegression

__all__ = [
    "CPICNet",
    "CanonicalBasis",
    "LeaveOneOutRidge",
    "PatchEncoder",
    "QuantileHead",
    "ScanResNet",
    "TensorContractionLayer",
    "TensorDropout",
    "TensorRegressionLayer",
    "TensorTrainRegression",
    "TensorTrainRegressionLayer",
    "VoxelValues",
]
