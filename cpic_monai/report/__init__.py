"""What a run leaves for people to read: predictions.csv, metrics.json, the report as HTML, Markdown and JSON."""

from cpic_monai.report.checksum import data_checksum, data_record
from cpic_monai.report.comparison import DifferentPatientsError, Evaluated, compare
from cpic_monai.report.comparison_page import write_comparison
from cpic_monai.report.page import write_report
from cpic_monai.report.picked import PickedScan
from cpic_monai.report.predictions import (
    check_predictions,
    predictions_frame,
    read_baselines,
    read_predictions,
    write_baselines,
    write_predictions,
)
from cpic_monai.report.provenance import collect_provenance, config_digest, run_settings
from cpic_monai.report.summary import (
    constant_baseline,
    describe_cohort,
    read_metrics,
    summarise_splits,
    write_metrics,
)

__all__ = [
    "DifferentPatientsError",
    "Evaluated",
    "PickedScan",
    "check_predictions",
    "collect_provenance",
    "compare",
    "config_digest",
    "constant_baseline",
    "data_checksum",
    "data_record",
    "describe_cohort",
    "predictions_frame",
    "read_baselines",
    "read_metrics",
    "read_predictions",
    "run_settings",
    "summarise_splits",
    "write_baselines",
    "write_comparison",
    "write_metrics",
    "write_predictions",
    "write_report",
]
