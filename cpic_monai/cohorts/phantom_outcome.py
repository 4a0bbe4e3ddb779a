"""Who the phantom's patients are and how their forced vital capacity (FVC) declines."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

__all__ = ["MEASUREMENT_SD", "PhantomPatient", "draw_patient", "fvc_table"]

MAX_EXTENT = 0.5  # fraction of the lung that is fibrotic in the worst patient
BASE_DECLINE = 20.0  # mL/year at a baseline of 2,700 mL, without fibrosis
EXTENT_DECLINE = 430.0  # mL/year at the largest extent, ground glass only
HONEYCOMB_DECLINE = 540.0  # mL/year more where all of it is honeycombing
SUBJECT_SD = 30.0  # mL/year, decline that no scan explains
REFERENCE_FVC = 2700.0
MEASUREMENT_SD = 65.0  # mL, of one spirometry


@dataclass(frozen=True)
class PhantomPatient:
    """One patient: what the table shows, and the truth behind it (`extent`, `honeycomb`, `slope`)."""

    name: str
    number: int
    age: int
    sex: str
    smoking: str
    stature: float
    predicted_fvc: float  # mL, from age, sex and stature
    baseline_fvc: float  # mL, true, at the first visit
    extent: float  # fibrotic fraction of the lung
    honeycomb: float  # honeycombing fraction of the fibrosis
    slope: float  # mL per week, true
    weeks: tuple[int, ...]
    fvc: tuple[int, ...]  # mL, measured

    def truth(self) -> dict[str, object]:
        """JSON-safe truth for tests of accuracy and attribution."""
        values = asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def draw_patient(seed: int, number: int) -> PhantomPatient:
    """Draw patient `number` of the cohort `seed`; it does not depend on how many patients there are.

    The extent is uniform in [0, 0.5] of the lung and the honeycombing fraction uniform in [0, 1], independent of age,
    sex and smoking. The decline in mL a year, per 2,700 mL of baseline, is
    ``20 + 430 * e + 540 * e * honeycomb + N(0, 30)`` with ``e = extent / 0.5``: 0 to about 1,000 mL. Only ``Percent``
    (baseline FVC in per cent of the predicted) hints at it: it falls by 8 points from the least to the largest extent,
    within a sd of 12.
    """
    rng = np.random.default_rng([seed, number, 0])
    severity, honeycomb = float(rng.uniform()), float(rng.uniform())
    sex = "Male" if rng.uniform() < 0.78 else "Female"
    smoking = str(rng.choice(["Ex-smoker", "Never smoked", "Currently smokes"], p=[0.66, 0.28, 0.06]))
    age = int(np.clip(np.rint(rng.normal(67, 7)), 49, 88))
    stature = float(np.clip(rng.normal(), -2, 2))
    predicted = (3750.0 if sex == "Male" else 2850.0) - 20 * (age - 67) + 250 * stature
    percent = float(np.clip(rng.normal(78, 12) - 8 * (severity - 0.5), 45, 120))
    baseline = predicted * percent / 100
    yearly = BASE_DECLINE + EXTENT_DECLINE * severity + HONEYCOMB_DECLINE * severity * honeycomb
    yearly = max(0.0, yearly + rng.normal(0, SUBJECT_SD)) * baseline / REFERENCE_FVC
    slope = -yearly / (365.25 / 7)
    first = int(rng.integers(-5, 11))
    # As in OSIC: dense visits at first, then months apart, some missed.
    gaps = np.array([0, 4, 9, 16, 26, 38, 52, 70, 88]) + np.concatenate([[0], rng.integers(-2, 3, 8)])
    kept = np.concatenate([[True], rng.uniform(size=8) > 0.06])
    since = gaps[kept]
    fvc = baseline + slope * since + rng.normal(0, MEASUREMENT_SD, len(since))
    return PhantomPatient(
        name=f"PHANTOM{number:05d}",
        number=number,
        age=age,
        sex=sex,
        smoking=smoking,
        stature=stature,
        predicted_fvc=predicted,
        baseline_fvc=baseline,
        extent=MAX_EXTENT * severity,
        honeycomb=honeycomb,
        slope=slope,
        weeks=tuple(int(first + w) for w in since),
        fvc=tuple(int(np.rint(max(v, 300.0))) for v in fvc),
    )


def fvc_table(patients: list[PhantomPatient]) -> list[dict[str, object]]:
    """Rows of OSIC's ``train.csv``, one a visit."""
    return [
        {
            "Patient": p.name,
            "Weeks": week,
            "FVC": fvc,
            "Percent": round(100 * fvc / p.predicted_fvc, 4),
            "Age": p.age,
            "Sex": p.sex,
            "SmokingStatus": p.smoking,
        }
        for p in patients
        for week, fvc in zip(p.weeks, p.fvc, strict=True)
    ]
