"""Items as a cohort reads them, for tests."""

from __future__ import annotations

import numpy as np


def raw_item(subject: str, group: str, target: list[float], **covariates: list) -> dict:
    count = len(target)
    return {
        "subject": subject,
        "group": group,
        "image": f"/scans/{subject}.nii",
        "covariates": covariates,
        "target": np.array(target, float),
        "baseline": target[0],
        "visit": np.arange(count, dtype=float),
        "strata": {},
    }
