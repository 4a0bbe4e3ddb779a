"""Scans opened by their header and read in boxes. Start with :func:`open_volume`."""

from cpic_monai.volumes.array import ArrayVolume
from cpic_monai.volumes.cache import BlockCache, shared_cache
from cpic_monai.volumes.cached import CachedVolume
from cpic_monai.volumes.chunked import ChunkedVolume
from cpic_monai.volumes.dicom import DicomVolume
from cpic_monai.volumes.nifti import CompressedNiftiVolume, NiftiVolume
from cpic_monai.volumes.open import check_same_grid, open_volume
from cpic_monai.volumes.pooled import PooledVolume, pooled_volume
from cpic_monai.volumes.protocol import Volume, VolumeError
from cpic_monai.volumes.regularity import Fault, IrregularSeriesError
from cpic_monai.volumes.spline import SplineVolume
from cpic_monai.volumes.write_chunked import verify_store, write_store

__all__ = [
    "ArrayVolume",
    "BlockCache",
    "CachedVolume",
    "ChunkedVolume",
    "CompressedNiftiVolume",
    "DicomVolume",
    "Fault",
    "IrregularSeriesError",
    "NiftiVolume",
    "PooledVolume",
    "SplineVolume",
    "Volume",
    "VolumeError",
    "check_same_grid",
    "open_volume",
    "pooled_volume",
    "shared_cache",
    "verify_store",
    "write_store",
]
