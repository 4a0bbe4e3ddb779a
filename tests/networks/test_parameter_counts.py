"""The paper's tables, reproduced to the parameter."""

from __future__ import annotations

from typing import Any

import pytest

from cpic_monai.networks import CPICNet

BRATS: dict[str, Any] = {"tabular_features": 0, "batch_norm": True}


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        pytest.param({}, 87_429, id="OSIC"),
        pytest.param({"encoder": False}, 64_283, id="OSIC TT + MLP"),
        pytest.param({**BRATS, "channels": 32}, 37_385, id="BraTS n=32"),
        pytest.param({**BRATS, "channels": 16}, 26_569, id="BraTS n=16"),
        pytest.param({**BRATS, "channels": 8}, 21_161, id="BraTS n=8"),
        pytest.param({**BRATS, "channels": 8, "rank": 15}, 21_661, id="BraTS n=8 r=15"),
        pytest.param({**BRATS, "encoder": False}, 3_423, id="BraTS TT + MLP"),
    ],
)
def test_trainable_parameters(settings: dict[str, Any], count: int) -> None:
    network = CPICNet((16, 16, 16), **settings)
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == count
    assert network.patch_size == (1 if settings.get("encoder") is False else 9)
