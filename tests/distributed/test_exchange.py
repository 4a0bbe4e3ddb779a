"""Two processes compute what one does: gradients, voxels, basis, head, metrics; and say who was lost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from cpic_monai import distributed
from cpic_monai.distributed import deal, dealt_order, share
from cpic_monai.distributed.processes import VARIABLES
from tests.distributed import exchange
from tests.distributed.launch import ROOT, members

Result = dict[str, Any]


@pytest.fixture(scope="module")
def one() -> Result:
    """In this process alone."""
    return exchange.results()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    """In two processes, by rank."""
    folder = tmp_path_factory.mktemp("exchange")
    started = members([str(ROOT / "tests" / "distributed" / "exchange.py"), str(folder)], 2)
    said = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 9], "\n\n".join(said)
    return [torch.load(folder / f"rank{n}.out", weights_only=True) for n in range(2)]


@pytest.mark.parametrize("recipe", ["closed_form", "paper"])
def test_three_steps_of_two_processes_are_those_of_one(recipe: str, one: Result, two: list[Result]) -> None:
    for found in two:
        for key in ("weights", "losses"):
            torch.testing.assert_close(found[recipe][key], one[recipe][key], rtol=1e-6, atol=1e-6)
    assert all(torch.equal(two[0][recipe][key], two[1][recipe][key]) for key in ("weights", "basis"))
    assert one[recipe]["losses"][-1] < one[recipe]["losses"][0], "it learns"


def test_voxels_basis_and_head_are_those_of_one_process(one: Result, two: list[Result]) -> None:
    for found in two:
        assert torch.equal(found["fitting"]["codes"], one["fitting"]["codes"])
        assert found["fitting"]["scans"] == one["fitting"]["scans"] == 11
        for key in ("head", "basis"):
            torch.testing.assert_close(found["fitting"][key], one["fitting"][key], rtol=1e-6, atol=1e-6)
    assert all(torch.equal(two[0]["fitting"][key], two[1]["fitting"][key]) for key in ("head", "basis"))


def test_metrics_of_uneven_shares(one: Result, two: list[Result]) -> None:
    for found in two:
        assert found["scoring"] == pytest.approx(one["scoring"], rel=1e-12)
    assert len(one["scoring"]) == 6


def test_index_sets_follow_their_subject(two: list[Result]) -> None:
    subjects = {item["subject"] for item in exchange.cohort()}
    own = [found["following"]["own"] for found in two]
    assert set(own[0]).isdisjoint(own[1])
    assert set(own[0]) | set(own[1]) == subjects
    for found in two:
        for subject, codes in {**own[0], **own[1]}.items():
            assert torch.equal(found["following"]["first"][subject], codes)
            assert torch.equal(found["following"]["then"][subject], codes), "seen by the other process, not drawn anew"


def test_the_first_process_writes_what_all_know(two: list[Result]) -> None:
    for found in two:
        assert found["checkpoints"]["subjects"] == ["of rank 0", "of rank 1"]
        assert found["checkpoints"]["files"] == ["last.pt", "model.pt"]
        assert found["checkpoints"]["epoch"] == 1
        assert found["made"] == "by rank 0"


def test_errors_name_the_process(two: list[Result]) -> None:
    assert "rank 0 of 2 waited in 'exchange of objects' for rank 1, which ended or hangs" in two[0]["lost"]
    assert "--resume True" in two[0]["lost"]
    for found in two:
        assert "rank 1 does not see" in found["resuming"]
        assert "by rank {0: 3, 1: 4}" in found["unlike"]


def test_dealing_and_its_undoing() -> None:
    dealt = [torch.arange(7)[rank::3] for rank in range(3)]
    order = dealt_order([len(part) for part in dealt])
    assert torch.cat(dealt)[order].tolist() == list(range(7))
    assert list(deal(range(4))) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="0 scans of a split cannot be dealt to 1 processes"):
        deal([], least=1)


def test_shares_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cpic_monai.distributed.dealing.world_size", lambda: 3)
    assert share(21) == 7
    with pytest.raises(ValueError, match="`batch_size` 20 is not a multiple of the 3 processes: take 18 or 21"):
        share(20)
    with pytest.raises(ValueError, match="take 3"):
        share(2)


def test_one_process_needs_no_group() -> None:
    rows, module = torch.randn(3, 2), nn.Linear(2, 1)
    assert distributed.gather_rows(rows) is rows
    assert distributed.gather_objects("a") == ["a"]
    assert distributed.first(len, "abc") == 3
    module(rows).sum().backward()
    before = module.weight.grad
    distributed.average_gradients(module.parameters())
    assert module.weight.grad is before
    distributed.barrier("nothing")
    distributed.stop()


def test_start_outside_of_torchrun_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RuntimeError, match=r"lacks RANK, .*torchrun --standalone"):
        distributed.start()
    for name in VARIABLES:
        monkeypatch.setenv(name, "0")
    with pytest.raises(ValueError, match="must be positive, found 0"):
        distributed.start(timeout_minutes=0)
