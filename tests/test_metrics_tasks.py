"""Losses, metrics and working responses of classes and of survival, against other ways to the same numbers."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from lifelines import CoxPHFitter, NelsonAalenFitter
from pandas import DataFrame
from torch import nn

from cpic_monai.losses import ClassLoss, CoxLoss, cox_partial_likelihood
from cpic_monai.metrics import EngineMetrics, classification_metrics, survival_metrics
from cpic_monai.networks import CPICNet, LeaveOneOutRidge
from cpic_monai.tasks import ClassTask, LogitCPICNet, SurvivalTask, TaskRecipe, WorkingRidge


def survival(rows: int = 40, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """One covariate, and signed times with many ties: whole months, a third censored."""
    generator = torch.Generator().manual_seed(seed)
    risk = torch.randn(rows, 1, generator=generator, dtype=torch.float64)
    time = 1 + (6 * torch.rand(rows, 1, generator=generator, dtype=torch.float64) * (-risk).exp()).floor().clamp(max=9)
    event = torch.rand(rows, 1, generator=generator) < 0.67
    return risk, torch.where(event, time, -time)


@pytest.mark.parametrize("ties", ["efron", "breslow"])
def test_partial_likelihood_is_the_definition(ties: str) -> None:
    """Term by term over the events of each moment."""
    risk, signed = (x[:, 0] for x in survival())
    time, expected = signed.abs(), 0.0
    for moment in time[signed > 0].unique():
        dying = (time == moment) & (signed > 0)
        others, tied = risk[time >= moment].exp().sum(), risk[dying].exp().sum()
        expected += float(risk[dying].sum())
        for k in range(int(dying.sum())):
            share = k / int(dying.sum()) if ties == "efron" else 0.0
            expected -= math.log(float(others - share * tied))
    assert float(cox_partial_likelihood(risk, signed, ties)) == pytest.approx(expected, rel=1e-9)


def test_partial_likelihood_is_that_of_lifelines() -> None:
    """Its fitted model (Efron) has the likelihood that we give its coefficient, and a gradient of zero there."""
    risk, signed = survival(60, 1)
    table = DataFrame({"x": risk[:, 0], "time": signed.abs()[:, 0], "event": signed[:, 0] > 0})
    fitted = CoxPHFitter().fit(table, "time", "event")
    beta = torch.tensor(float(fitted.params_["x"]), dtype=torch.float64, requires_grad=True)
    value = cox_partial_likelihood(beta * risk[:, 0], signed[:, 0])
    value.backward()
    assert float(value.detach()) == pytest.approx(fitted.log_likelihood_, rel=1e-6)
    assert beta.grad is not None
    assert abs(float(beta.grad)) < 1e-3
    metrics = {
        name: float(metric.of(beta.detach() * risk, signed[:, 0])) for name, metric in survival_metrics().items()
    }
    assert metrics["concordance"] == pytest.approx(fitted.concordance_index_, abs=1e-9)
    events = int((signed > 0).sum())
    assert metrics["cox"] == pytest.approx(-fitted.log_likelihood_ / events, rel=1e-6)


def test_cox_loss_learns_and_stays_finite() -> None:
    risk, signed = survival(200, 2)
    network = nn.Linear(1, 1).double()
    optimizer = torch.optim.Adam(network.parameters(), 0.1)
    for _ in range(60):
        optimizer.zero_grad()
        CoxLoss()(network(risk), signed).backward()
        optimizer.step()
    assert float(network.weight.detach()) > 0.5
    far = torch.tensor([[300.0], [-300.0], [0.0]], requires_grad=True)
    CoxLoss()(far, torch.tensor([[1.0], [1.0], [-2.0]])).backward()
    assert far.grad is not None
    assert bool(torch.isfinite(far.grad).all())
    censored = torch.zeros(3, 1, requires_grad=True)
    loss = CoxLoss()(censored, torch.tensor([[-1.0], [-2.0], [-3.0]]))
    loss.backward()
    assert float(loss.detach()) == 0
    assert censored.grad is not None
    assert not censored.grad.any()
    with pytest.raises(ValueError, match=r"efron, breslow, found 'exact'"):
        CoxLoss("exact")


def test_class_metrics_by_hand() -> None:
    pred = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]])
    truth = torch.tensor([[0.0], [0.0], [1.0], [1.0]])
    found = {}
    for name, metric in classification_metrics(2).items():
        metric(pred, truth)
        found[name] = float(metric.aggregate())
    assert found["auc"] == 1
    assert found["accuracy"] == 0.75
    assert found["log_loss"] == pytest.approx(-(math.log(0.9) + math.log(0.4) + math.log(0.7) + math.log(0.8)) / 4)
    logits = pred.log()
    assert float(ClassLoss()(logits, truth)) == pytest.approx(found["log_loss"])
    auc = classification_metrics(2)["auc"]
    assert math.isnan(auc.of(pred, torch.zeros(4))), "one class alone has no curve"
    with pytest.raises(ValueError, match="1 of 4 true values are not finite"):
        auc(pred, torch.tensor([[0.0], [math.nan], [1.0], [1.0]]))


def test_three_classes_are_averaged_each_against_the_rest() -> None:
    pred = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.5, 0.4], [0.2, 0.2, 0.6]], dtype=torch.float64)
    truth = torch.tensor([0.0, 1.0, 2.0, 2.0])
    # Class 0 and 2 are told apart from all others, class 1 as well: every pair is in order.
    assert classification_metrics(3)["auc"].of(pred, truth) == 1
    assert classification_metrics(3)["accuracy"].of(pred, truth) == 0.75


def test_metrics_reach_the_engine() -> None:
    metrics = EngineMetrics(metrics=survival_metrics())
    assert list(metrics.key("cox")) == ["cox"]
    assert list(metrics.others("cox")) == ["concordance"]
    with pytest.raises(KeyError, match="'mlll'; choose among concordance, cox"):
        metrics.key("mlll")


def test_concordance_without_comparable_pairs_has_no_value() -> None:
    concordance = survival_metrics()["concordance"]
    assert math.isnan(concordance.of(torch.zeros(3, 1).double(), torch.tensor([-1.0, -2.0, -3.0])))


def test_working_response_of_survival_is_the_martingale_residual() -> None:
    _, signed = survival(50, 3)
    hazard = NelsonAalenFitter(nelson_aalen_smoothing=False).fit(signed.abs()[:, 0], signed[:, 0] > 0)
    # lifelines adds 1/n + 1/(n-1) + ... for ties; Breslow's d/n is ours: compare where times are distinct.
    distinct = signed + torch.arange(50)[:, None] * 1e-4 * signed.sign()
    hazard.fit(distinct.abs()[:, 0], distinct[:, 0] > 0)
    expected = (distinct[:, 0] > 0).double() - torch.tensor(hazard.predict(distinct.abs()[:, 0].numpy()).to_numpy())
    response = SurvivalTask().working_response(distinct)[:, 0]
    expected = expected - expected.mean()
    torch.testing.assert_close(response, expected / expected.square().mean().sqrt(), rtol=1e-6, atol=1e-8)


def test_ridge_on_a_working_response_is_the_ridge_on_each_column() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(12, 5, generator=generator, dtype=torch.float64)
    gram, tabular, index = features @ features.T, torch.randn(12, 1, generator=generator), torch.arange(12)
    label = torch.tensor([[float(k % 3)] for k in range(12)])
    task = ClassTask(["a", "b", "c"])
    response = task.working_response(label.double())
    assert response.shape == (12, 2)
    plain, working = LeaveOneOutRidge(), WorkingRidge(task)
    error = label - working(gram, tabular, index, label)
    dual, left_out = working.scan_effects(gram, tabular, index, label)
    assert dual.shape == left_out.shape == (12, 4)
    for k in range(2):
        column = response[:, k : k + 1]
        torch.testing.assert_close(error[:, k : k + 1], column - plain(gram, tabular, index, column))
        torch.testing.assert_close(dual[:, k::2], plain.scan_effects(gram, tabular, index, column)[0])


def test_likelihood_without_an_event_has_no_value() -> None:
    """Of the loss it is 0, the best there is, which would make such an epoch the best for good."""
    pred, truth = torch.randn(6, 1, dtype=torch.float64), -torch.arange(1.0, 7.0)
    assert math.isnan(survival_metrics()["cox"].of(pred, truth))
    assert float(CoxLoss()(pred, truth)) == 0


def test_answers_for_everybody() -> None:
    label = torch.tensor([[0.0], [0.0], [0.0], [1.0]])
    shares = ClassTask(["a", "b", "never"]).constant(label)
    torch.testing.assert_close(shares, torch.tensor([3.0, 1.0, 0.5], dtype=torch.float64) / 4.5)
    assert SurvivalTask().constant(label).tolist() == [0.0]


def test_a_network_of_quantiles_is_refused_for_a_task() -> None:
    """Three ordered quantiles would pass for three logits: the last class would always win."""
    network = CPICNet((8, 16, 16), channels=4, features=(3,), rank=3, quantiles=3)
    with pytest.raises(ValueError, match="3 outputs of a QuantileHead, the task wants 3 of a LogitHead"):
        TaskRecipe("closed_form", network, ClassTask(["a", "b", "c"]))
    other = LogitCPICNet((8, 16, 16), channels=4, features=(3,), rank=3, quantiles=2)
    with pytest.raises(ValueError, match="2 outputs of a LogitHead, the task wants 3"):
        TaskRecipe("closed_form", other, ClassTask(["a", "b", "c"]))
    TaskRecipe("closed_form", other, ClassTask(["a", "b"]))


def test_concordance_without_lifelines_is_refused_before_anything_is_trained(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "lifelines.utils", None)
    with pytest.raises(ImportError, match=r"pip install 'cpic-monai\[survival\]'"):
        survival_metrics()
