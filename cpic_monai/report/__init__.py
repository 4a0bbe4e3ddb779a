"""What is left of a run for people to read: predictions.csv, metrics.json and report.html."""

from cpic_monai.report.page import write_report
from cpic_monai.report.picked import PickedScan
from cpic_monai.report.predictions import check_predictions, predictions_frame, read_predictions, write_predictions
from cpic_monai.report.provenance import collect_provenance, config_digest, data_checksum
from cpic_monai.report.summary import (
    constant_baseline,
    describe_cohort,
    read_metrics,
    summarise_splits,
    write_metrics,
)

__all__ = [
    "PickedScan",
    "check_predictions",
    "collect_provenance",
    "config_digest",
    "constant_baseline",
    "data_checksum",
    "describe_cohort",
    "predictions_frame",
    "read_metrics",
    "read_predictions",
    "summarise_splits",
    "write_metrics",
    "write_predictions",
    "write_report",
]
