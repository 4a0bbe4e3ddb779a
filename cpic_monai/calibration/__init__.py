"""Conformal calibration: intervals of predicted quantiles that hold what they promise on patients not learned from.

Conformalised quantile regression (Romano, Patterson and Candes, NeurIPS 2019) in its scaled form (Sesia and Candes,
Stat 2020): the score of a visit is by how many predicted half-widths the truth lies off the median, and the interval
is stretched or shrunk by a quantile of the scores. A factor, not a margin in mL, because half-widths differ between
visits: at the first visit, which is known, the interval stays narrow. The median is left as it is, and since a factor
is never negative, quantiles cannot cross.

Visits of a patient are not independent. They share one patient's weight, and a patient to come has the same weight at
infinity (hierarchical conformal prediction: Lee, Barber and Willett 2023; Dunn, Wasserman and Ramdas, JASA 2022), so
that the promise is about a random visit of a new patient, exact in finite samples for scores of patients that took no
part in training.

The factors are a buffer of the head (``widths`` of :class:`cpic_monai.networks.QuantileHead`), hence part of the
checkpoint, and apply wherever the network predicts.
"""

from cpic_monai.calibration.conformal import SOURCES, ConformalCalibration
from cpic_monai.calibration.factors import patient_quantile, patient_shares, stretched, width_factors

__all__ = ["SOURCES", "ConformalCalibration", "patient_quantile", "patient_shares", "stretched", "width_factors"]
