"""What a prediction looked at, and which of it moved the prediction."""

from cpic_monai.attribution.explain import Explained, check_visit, explain, shared_reference
from cpic_monai.attribution.maps import (
    CLASSES,
    attribution_classes,
    attribution_map,
    label_map,
    source_voxels,
)
from cpic_monai.attribution.reference import REFERENCES, basis_encoding, mean_encoding

__all__ = [
    "CLASSES",
    "REFERENCES",
    "Explained",
    "attribution_classes",
    "attribution_map",
    "basis_encoding",
    "check_visit",
    "explain",
    "label_map",
    "mean_encoding",
    "shared_reference",
    "source_voxels",
]
