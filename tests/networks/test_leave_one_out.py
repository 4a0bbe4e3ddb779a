"""Leave-one-patient-out ridge against brute-force refits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cpic_monai.networks import LeaveOneOutRidge
from cpic_monai.networks.leave_one_out import KERNELS, group_rows

PENALTY, COMMON, SCAN = 0.4, 3.0, 1.5
SCANS = torch.tensor([2, 0, 0, 1, 3, 3, 3, 4, 1, 5])  # visits in any order, one to three a scan


def problem(features: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn((6, 9), generator=generator, dtype=torch.float64) + 2.0
    tabular = torch.randn((len(SCANS), features), generator=generator, dtype=torch.float64)
    target = torch.randn((len(SCANS), 1), generator=generator, dtype=torch.float64)
    return root @ root.T, tabular, SCANS, target


def brute_force(gram: Tensor, tabular: Tensor, target: Tensor, kind: str = "product") -> tuple[Tensor, Tensor, Tensor]:
    """Predictions, dual weights and left-out coefficients, by one refit a scan."""
    n = len(gram)
    centring = torch.eye(n).double() - 1 / n
    centred = centring @ gram @ centring
    scale = centred.trace() / n
    phi = torch.cat([torch.ones(len(tabular), 1).double(), tabular], dim=1)
    kernel = torch.zeros(len(phi), len(phi)).double()
    for a in range(len(phi)):
        for b in range(len(phi)):
            scans = centred[SCANS[a], SCANS[b]] / scale
            alike = phi[a] @ phi[b]
            kernel[a, b] = {
                "product": alike * (COMMON + SCAN * scans),
                "sum": alike * COMMON + SCAN * scans,
                "scan": COMMON + SCAN * scans,
            }[kind]
    slopes = phi if kind == "product" else phi[:, :1]

    def weights(rows: Tensor) -> Tensor:
        block = kernel[rows][:, rows] + PENALTY * torch.eye(len(rows)).double()
        return torch.linalg.solve(block, target[rows])[:, 0]

    prediction, left_out = torch.zeros_like(target), torch.zeros(n, slopes.shape[1]).double()
    for g in range(n):
        others, own = (g != SCANS).nonzero()[:, 0], (g == SCANS).nonzero()[:, 0]
        w = weights(others)
        prediction[own, 0] = kernel[own][:, others] @ w
        for r, value in zip(others, w, strict=True):
            left_out[g] += SCAN / scale * centred[g, SCANS[r]] * value * slopes[r]
    dual = torch.zeros(n, slopes.shape[1]).double()
    for r, value in enumerate(weights(torch.arange(len(phi)))):
        dual[SCANS[r]] += SCAN / scale * value * slopes[r]
    return prediction, dual, left_out


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("features", [0, 1, 2])
def test_predictions_are_those_of_refits(features: int, kernel: str) -> None:
    gram, tabular, scans, target = problem(features)
    found = LeaveOneOutRidge(PENALTY, COMMON, SCAN, kernel)(gram, tabular, scans, target)
    torch.testing.assert_close(found, brute_force(gram, tabular, target, kernel)[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("features", [0, 2])
def test_scan_effects_are_those_of_refits(features: int, kernel: str) -> None:
    gram, tabular, scans, target = problem(features)
    dual, left_out = LeaveOneOutRidge(PENALTY, COMMON, SCAN, kernel).scan_effects(gram, tabular, scans, target)
    _, expected_dual, expected_left_out = brute_force(gram, tabular, target, kernel)
    torch.testing.assert_close(dual, expected_dual, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(left_out, expected_left_out, rtol=1e-9, atol=1e-9)


def test_a_scan_never_sees_its_own_targets() -> None:
    gram, tabular, scans, target = problem()
    ridge = LeaveOneOutRidge(PENALTY, COMMON, SCAN)
    before = ridge(gram, tabular, scans, target)
    own = scans == 3
    changed = torch.where(own[:, None], target + 100.0, target)
    after = ridge(gram, tabular, scans, changed)
    torch.testing.assert_close(after[own], before[own], rtol=1e-9, atol=1e-9)
    assert float((after[~own] - before[~own]).abs().min()) > 1e-3
    left_out = ridge.scan_effects(gram, tabular, scans, changed)[1]
    torch.testing.assert_close(left_out[3], ridge.scan_effects(gram, tabular, scans, target)[1][3])


def test_scale_of_the_kernel_and_offset_of_the_scans_do_not_matter() -> None:
    gram, tabular, scans, target = problem()
    ridge = LeaveOneOutRidge()
    expected = ridge(gram, tabular, scans, target)
    torch.testing.assert_close(ridge(1e4 * gram, tabular, scans, target), expected, rtol=1e-9, atol=1e-9)
    shift = torch.randn(6, dtype=torch.float64)
    moved = gram + shift[:, None] + shift[None, :] + 7.0
    torch.testing.assert_close(ridge(moved, tabular, scans, target), expected, rtol=1e-8, atol=1e-8)


def test_gradients() -> None:
    gram, tabular, scans, target = problem(1)
    ridge = LeaveOneOutRidge(PENALTY, COMMON, SCAN)
    root = torch.linalg.cholesky(gram).requires_grad_()  # a Gram matrix stays symmetric
    assert torch.autograd.gradcheck(lambda r: ridge(r @ r.T, tabular, scans, target), root)
    ridge(gram, tabular, scans, target).square().sum().backward()
    assert all(p.grad is not None and math.isfinite(p.grad) and p.grad != 0 for p in ridge.parameters())


def test_equal_scans_stay_finite() -> None:
    _, tabular, scans, target = problem()
    gram = torch.ones(6, 6, dtype=torch.float64, requires_grad=True)
    out = LeaveOneOutRidge()(gram, tabular, scans, target)
    (grad,) = torch.autograd.grad(out.sum(), gram)
    assert torch.isfinite(out).all()
    assert torch.isfinite(grad).all()


def test_too_few_scans_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 3 scans a batch, found 2"):
        LeaveOneOutRidge()(torch.eye(2), torch.zeros(2, 1), torch.tensor([0, 1]), torch.zeros(2, 1))


def test_group_rows_by_hand() -> None:
    members, real = group_rows(torch.tensor([1, 0, 1, 1]), 3)
    assert [m[r].tolist() for m, r in zip(members, real, strict=True)] == [[1], [0, 2, 3], []]


def test_a_patient_is_left_out_with_all_scans() -> None:
    gram, tabular, scans, target = problem()
    ridge = LeaveOneOutRidge(PENALTY, COMMON, SCAN)
    patients = torch.tensor([7, -3, 7, 5, 7, 2**62])[scans]  # scans 0, 2 and 4 are of one patient
    own = patients == 7
    changed = torch.where(own[:, None], target + 100.0, target)
    before, after = (ridge(gram, tabular, scans, t, patients) for t in (target, changed))
    torch.testing.assert_close(after[own], before[own], rtol=1e-9, atol=1e-9)
    assert float((after[~own] - before[~own]).abs().min()) > 1e-3
    effects = [ridge.scan_effects(gram, tabular, scans, t, patients)[1] for t in (target, changed)]
    for scan in (0, 2, 4):
        torch.testing.assert_close(effects[1][scan], effects[0][scan], rtol=1e-9, atol=1e-9)
    # By their own scan's number alone the other scans of the patient tell on each other.
    assert float((ridge(gram, tabular, scans, changed) - ridge(gram, tabular, scans, target))[own].abs().min()) > 1e-3
    alone = ridge(gram, tabular, scans, target, scans + 10)
    torch.testing.assert_close(alone, ridge(gram, tabular, scans, target), rtol=0, atol=0)


def test_a_twin_in_the_batch_predicts_nothing() -> None:
    """Twelve scans of noise, each twice: by patients the loss is that of knowing nothing, by scans far less."""
    generator = torch.Generator().manual_seed(1)
    root = torch.randn((12, 40), generator=generator, dtype=torch.float64).repeat(2, 1)
    target = torch.randn((12, 1), generator=generator, dtype=torch.float64).repeat(2, 1)
    scans, patients = torch.arange(24), torch.arange(12).repeat(2)
    ridge, blank = LeaveOneOutRidge(), torch.zeros((24, 0), dtype=torch.float64)
    losses = [
        float((ridge(root @ root.T, blank, scans, target, g) - target).square().mean().detach())
        for g in (None, patients)
    ]
    assert losses[0] < 0.4 * float(target.var())
    assert losses[1] > 0.8 * float(target.var())


def test_a_batch_of_one_patient_is_an_error() -> None:
    gram, tabular, scans, target = problem()
    with pytest.raises(ValueError, match="all scans of the batch are of one patient"):
        LeaveOneOutRidge()(gram, tabular, scans, target, torch.zeros_like(scans))


def test_an_unknown_kernel_names_its_config_key() -> None:
    with pytest.raises(ValueError, match=r"ridge#kernel.*product, sum, scan, found 'rbf'"):
        LeaveOneOutRidge(kernel="rbf")
