"""A checkpoint knows the grid that its voxels are counted on, and how its encoder pools."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scans import small_network

from cpic_monai.networks import CPICNet


def network(shape: tuple[int, ...] = (16, 16, 16), **settings: Any) -> CPICNet:
    return CPICNet(shape, rank=3, channels=4, features=(3,), **settings)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"grid_step": 3}, "`grid_step` is 3, the checkpoint's was 2"),
        ({"shape": (15, 16, 16)}, r"`spatial_shape` is \[15, 16, 16\], the checkpoint's was \[16, 16, 16\]"),
        ({"unfolding": "grouped"}, "`unfolding` is grouped, the checkpoint's was interleaved"),
    ],
)
@pytest.mark.parametrize("index_sets", ["cohort", "scan", "random_voxels"])
def test_another_grid_of_equal_sizes_is_refused_by_name(index_sets: str, other: dict[str, Any], words: str) -> None:
    saved = network(grid_step=2, index_sets=index_sets).state_dict()
    network(grid_step=2, index_sets=index_sets).load_state_dict(saved)
    with pytest.raises(RuntimeError, match=words):
        network(**{"grid_step": 2, "index_sets": index_sets, **other}).load_state_dict(saved)


def test_an_encoder_that_pools_otherwise_is_refused_by_name() -> None:
    saved = network(pooling=3).state_dict()
    network(pooling=3).load_state_dict(saved)
    with pytest.raises(RuntimeError, match="`pooling` is 1, the checkpoint's was 3"):
        network().load_state_dict(saved)


def test_a_checkpoint_without_a_record_loads() -> None:
    saved = small_network().state_dict()
    del saved["grid_record.facts"], saved["encoder_record.facts"]
    fresh = small_network()
    fresh.load_state_dict(saved)
    assert fresh.grid_record.facts.tolist() == [*fresh.grid.shape, 1, 2]
    assert fresh.grid_record.differences(None) == {}
    assert fresh.grid_record.differences(torch.tensor([*fresh.grid.shape, 2, 2])) == {"grid_step": (2, 1)}


def test_other_scales_of_as_many_channels_are_refused_by_name() -> None:
    saved = network(scales=(2,)).state_dict()
    network(scales=(2,)).load_state_dict(saved)
    with pytest.raises(RuntimeError, match=r"`scales` is \[1\], the checkpoint's was \[2\]"):
        network().load_state_dict(saved)
    saved["encoder_record.facts"] = saved["encoder_record.facts"][:1]  # as before scales were kept
    network().load_state_dict(saved)
