"""Costs of a rule other than the squared error: the nudged output, the rules' gradients, and random signs."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from oracles import CONVERGED, error, gradient
from predictive import forward_pass, small_network

from timm_ebl import Cost, Minimizer, Nudging, create_backward, create_rule, list_costs, random_signs, register_cost
from timm_ebl.rules import cost as cost_module
from timm_ebl.rules.cost import CROSS_ENTROPY, SQUARED_ERROR, CrossEntropyNudged, GradientNudged


@dataclass(frozen=True)
class Huber(Cost):
    """`F.huber_loss`, with autograd's gradient and the nudge that any cost has."""

    delta: float = 0.4

    def value(self, output, target):
        return F.huber_loss(output, target, reduction="none", delta=self.delta).sum(1)


COSTS = [SQUARED_ERROR, CROSS_ENTROPY, Huber()]


@pytest.fixture
def huber(monkeypatch):
    monkeypatch.setattr(cost_module._COSTS, "_entries", dict(cost_module._COSTS._entries))
    register_cost("huber", Huber())
    return Huber()


def minimum(drive, target, beta):
    """``argmin 1/2 |o - u|^2 + beta C(o, y)`` by bisection.

    With ``c = u + beta y`` each ``o_i`` solves ``o_i + beta exp(o_i - z) = c_i``, where ``z = logsumexp(o)``: the right
    ``z`` is the one at which the shares ``exp(o_i - z)`` sum up to 1.
    """
    centre = drive + beta * target

    def outputs(z):
        low, high = centre - beta - 1e-3, centre + 1e-3
        for _ in range(60):
            middle = (low + high) / 2
            above = middle + beta * torch.exp((middle - z).clamp(max=30)) > centre
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return (low + high) / 2

    low, high = (centre.logsumexp(1, keepdim=True) + shift for shift in (-beta - 1, beta + 1))
    for _ in range(60):
        z = (low + high) / 2
        too_low = torch.exp(outputs(z) - z).sum(1, keepdim=True) > 1
        low, high = torch.where(too_low, z, low), torch.where(too_low, high, z)
    return outputs((low + high) / 2)


@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
@pytest.mark.parametrize("beta", [0.5, -0.5, 1e-3, 5.0])
def test_a_nudged_output_is_the_minimum(generator, beta, scale):
    drive = torch.randn(6, 5, generator=generator, dtype=torch.float64) * scale
    target = torch.eye(5, dtype=torch.float64)[[0, 1, 2, 3, 4, 0]]
    nudge = CrossEntropyNudged(target, beta)
    found = nudge.output(drive, drive)
    assert (found - drive + beta * (found.softmax(1) - target)).abs().max() < 1e-11
    if beta > 0:  # where the equation of a single unit has one solution
        torch.testing.assert_close(found, minimum(drive, target, beta), atol=1e-9, rtol=0)
    narrow = CrossEntropyNudged(target.float(), torch.full((6, 1), beta)).output(drive.float(), drive.float())
    torch.testing.assert_close(narrow, found.float(), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("cost", COSTS[:2])
def test_a_damped_nudge_has_the_same_fixed_point(generator, cost):
    drive = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    target = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0]]
    output = drive
    for _ in range(200):
        output = cost.nudge(target, -0.3, damped=True).output(drive, output)
    torch.testing.assert_close(output, cost.nudge(target, -0.3).output(drive, drive))


@pytest.mark.parametrize("cost", COSTS)
def test_the_costs_are_pytorchs_and_their_gradients_autograds(generator, cost):
    output = torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 2, 1, 1])
    target = torch.eye(3, dtype=torch.float64)[labels]
    expected = F.cross_entropy(output, labels, reduction="none")
    if isinstance(cost, Huber):
        expected = F.huber_loss(output, target, reduction="none", delta=0.4).sum(1)
    elif cost is SQUARED_ERROR:
        expected = F.mse_loss(output, target, reduction="none").sum(1) / 2
    torch.testing.assert_close(cost.value(output, target), expected)
    torch.testing.assert_close(cost.gradient(output, target), *torch.autograd.grad(expected.sum(), output))
    torch.testing.assert_close(cost.nudge(target, 0.3).cost([output]), 0.3 * expected)


LOSSES = {
    "cross-entropy": F.cross_entropy,
    "huber": lambda o, y: Huber().value(o, F.one_hot(y, o.shape[1]).to(o)).mean(),
}


@pytest.mark.usefixtures("huber")
@pytest.mark.parametrize("cost", LOSSES)
@pytest.mark.parametrize("name", ["c-ep", "tbp", "rbp"])
def test_rules_descend_a_cost(make_live, batch, name, cost):
    """Against the loss's own backward pass at a converged state of a Hopfield network."""
    model, (x, y) = make_live(), batch
    model.minimizer, model.backward = CONVERGED, create_backward("tbp", unrolled=Minimizer(sweeps=150, omega=1.0))
    expected = gradient(model, LOSSES[cost](model(x), y))
    second = {"c-ep": {"perturbed": CONVERGED, "beta": 1e-3}}.get(name, {})
    second |= {"tbp": {"unrolled": Minimizer(sweeps=150, omega=1.0)}}.get(name, {})
    second |= {"rbp": {"adjoint": Minimizer(sweeps=150, omega=1.0, order="synchronous")}}.get(name, {})
    rule = create_rule(name, cost=cost, free=CONVERGED, **second)
    assert error(gradient(model, rule(model, x, y).loss), expected) < 1e-5


def test_a_predictive_network_descends_the_cross_entropy(generator):
    model, y = small_network(), torch.tensor([0, 1, 2, 0])
    x = torch.randn(4, 2, 8, 8, generator=generator, dtype=torch.float64)
    expected = gradient(model, F.cross_entropy(forward_pass(model, x)[-1], y))
    rule = create_rule("c-ep", cost="cross-entropy", beta=2e-3)
    assert error(gradient(model, rule(model, x, y).loss), expected) < 1e-4


def test_the_nudge_of_any_cost_relaxes_to_the_minimum(generator):
    drive = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    target, output = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0]], drive
    for nudge in (GradientNudged(SQUARED_ERROR, target, -0.3), GradientNudged(CROSS_ENTROPY, target, 0.3)):
        for _ in range(200):
            output = nudge.output(drive, output)
        torch.testing.assert_close(output, nudge.paid.nudge(target, nudge.beta).output(drive, drive))


def test_a_cost_of_ones_own_is_found_by_name_or_given_as_it_is(huber):
    assert {"squared-error", "cross-entropy", "huber"} <= {*list_costs()}
    assert create_rule("n-ep", cost="huber") == create_rule("n-ep", cost=Huber())
    with pytest.raises(ValueError, match="'cross-entropy' is one of the package's own costs"):
        register_cost("cross-entropy", huber)
    for name in ("", 3):
        with pytest.raises(ValueError, match="A cost has a name to choose it by, not"):
            register_cost(name, huber)
    with pytest.raises(TypeError, match=r"A cost is derived from timm_ebl\.Cost; 'mine' is <class"):
        register_cost("mine", Huber)


def test_an_unknown_cost_is_refused():
    with pytest.raises(ValueError, match="Unknown cost 'hinge': choose one of squared-error, cross-entropy"):
        create_rule("c-ep", cost="hinge")
    with pytest.raises(ValueError, match="has no option 'cost'"):
        create_rule("c-cpl", cost="cross-entropy")


# Random signs.


@pytest.mark.parametrize("name", ["c-ep", "cl", "tbp", "rbp"])
def test_a_network_without_classes_has_none_to_learn(make_dchn, batch, name):
    for y in (batch[1], torch.zeros(6, 0)):
        with pytest.raises(ValueError, match=r"no classes to learn, num_classes=0: model.reset_classifier gives"):
            create_rule(name)(make_dchn(num_classes=0), batch[0], y)


@pytest.mark.parametrize(("name", "plus", "minus"), [("r-ep", "p-ep", "n-ep"), ("r-cpl", "p-cpl", "n-cpl")])
@pytest.mark.parametrize("linear_response", [True, False])
def test_a_random_rule_is_the_positive_one_for_some_samples_and_the_negative_for_others(
    make_live, batch, name, plus, minus, linear_response
):
    model, (x, y) = make_live(), batch
    signs = torch.tensor([1, -1, -1, 1, 1, -1])

    def update(name, rows, **given):
        rule = create_rule(name, linear_response=linear_response)
        return gradient(model, rule(model, x[rows], y[rows], **given).loss) * len(rows) / len(x)

    expected = update(plus, [0, 3, 4]) + update(minus, [1, 2, 5])
    assert error(update(name, range(6), signs=signs), expected) < 1e-9


def test_signs_are_needed_one_for_each_sample(make_live, batch):
    model, (x, y) = make_live(), batch
    for given in ({}, {"signs": torch.ones(5)}):
        with pytest.raises(ValueError, match="A random nudge needs a sign for each of the 6 samples"):
            create_rule("r-ep")(model, x, y, **given)
    model.backward = create_backward("ep", nudging=Nudging.RANDOM)
    with pytest.raises(ValueError, match="needs a sign for each"):
        model(x).sum().backward()


def test_signs_come_from_their_generator_in_equal_parts():
    first, again = (random_signs(10_000, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert set(first.tolist()) == {-1, 1}
    assert abs(first.float().mean()) < 0.05
