"""The last fit learns from the validation scans too, writes the checkpoint, and says where it cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from planted import planted_batch
from scans import small_network
from torch import nn

from cpic_monai.handlers import FinalFit, FitBasisAndHead
from cpic_monai.losses import PinballLoss
from cpic_monai.networks import CPICNet, LeaveOneOutRidge

SCHEDULE = {"steps": 20, "ridge_steps": 3}


def fitted(network: CPICNet, loader: list) -> FitBasisAndHead:
    fit = FitBasisAndHead(network, loader, PinballLoss(), SCHEDULE, LeaveOneOutRidge())
    fit()
    return fit


def test_fits_to_training_and_validation_scans_and_writes_them(tmp_path: Path) -> None:
    network = small_network()
    train, validation = [planted_batch(network, 10, seed=1)], [planted_batch(network, 4, seed=2)]
    fit = fitted(network, train)
    assert network.basis.scans == 10
    encoder = {k: v.clone() for k, v in network.encoder.state_dict().items()}
    FinalFit(fit, [train, validation], tmp_path / "model.pt", {"model": network})()
    assert network.basis.scans == 14
    assert all(torch.equal(v, encoder[k]) for k, v in network.encoder.state_dict().items())
    assert fit.loader is train, "epochs go on fitting to training scans"
    saved = torch.load(tmp_path / "model.pt", weights_only=True)["model"]
    assert all(torch.equal(v, saved[k]) for k, v in network.state_dict().items() if isinstance(v, torch.Tensor))


def test_it_is_the_fit_to_all_of_them(tmp_path: Path) -> None:
    """The same as a fit to one loader of all scans, and the same again if it is repeated."""
    network = small_network()
    train, validation = [planted_batch(network, 10, seed=1)], [planted_batch(network, 4, seed=2)]
    fitted(network, train + validation)
    at_once = nn.utils.parameters_to_vector(network.head.parameters()).detach().clone()
    final = FinalFit(fitted(network, train), [train, validation], tmp_path / "model.pt", {"model": network})
    for _ in range(2):
        final()
        again = nn.utils.parameters_to_vector(network.head.parameters()).detach()
        torch.testing.assert_close(again, at_once, rtol=0, atol=1e-6)


def test_joint_training_is_refused(tmp_path: Path) -> None:
    fit = FitBasisAndHead(small_network(), [], PinballLoss())
    with pytest.raises(ValueError, match="set `fit_on_validation` to false"):
        FinalFit(fit, [], tmp_path / "model.pt", {})


def test_scans_learned_from_do_not_calibrate(tmp_path: Path) -> None:
    fit = FitBasisAndHead(small_network(), [], PinballLoss(), SCHEDULE)
    with pytest.raises(ValueError, match="`calibration_source` to train_leave_one_out"):
        FinalFit(fit, [], tmp_path / "model.pt", {}, calibrates_on_validation=True)
