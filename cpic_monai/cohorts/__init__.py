"""Cohorts: tables and scans to items, splits, and a phantom for those without data."""

from cpic_monai.cohorts.brats import BratsCohort
from cpic_monai.cohorts.cohort import Cohort, LeftOut
from cpic_monai.cohorts.finding import find_scans
from cpic_monai.cohorts.folds import split
from cpic_monai.cohorts.osic import OsicCohort
from cpic_monai.cohorts.outcomes import ClassTableCohort, SurvivalTableCohort
from cpic_monai.cohorts.phantom import write_phantom_cohort
from cpic_monai.cohorts.prepare import ItemEncoder, Splits, load_splits, prepare
from cpic_monai.cohorts.scans import ScanCohort
from cpic_monai.cohorts.table import TableCohort
from cpic_monai.cohorts.tabular import Column, TabularEncoder
from cpic_monai.cohorts.target import TargetScaler
from cpic_monai.cohorts.trained_on import TrainedOn

__all__ = [
    "BratsCohort",
    "ClassTableCohort",
    "Cohort",
    "Column",
    "ItemEncoder",
    "LeftOut",
    "OsicCohort",
    "ScanCohort",
    "Splits",
    "SurvivalTableCohort",
    "TableCohort",
    "TabularEncoder",
    "TargetScaler",
    "TrainedOn",
    "find_scans",
    "load_splits",
    "prepare",
    "split",
    "write_phantom_cohort",
]
