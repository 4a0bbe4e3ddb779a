"""Tensor trains: batched cores, inner products, rounding, TT-SVD."""

from cpic_monai.tensor_train.core import TensorTrain, concatenate, inner, norm
from cpic_monai.tensor_train.rounding import orthogonalize, round_train, truncate_train, tt_svd

__all__ = ["TensorTrain", "concatenate", "inner", "norm", "orthogonalize", "round_train", "truncate_train", "tt_svd"]
