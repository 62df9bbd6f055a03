"""The paper's theorems, on a dense network whose minima are smooth in its parameters (paper, Section 2.4)."""

import pytest
import torch
from dense import DenseHopfield
from oracles import BETAS, LABELS, TARGET, finite_difference, gradient, slope

from timm_ebl import FREE, Clamped, Nudged, create_rule
from timm_ebl.rules.rule import squared_error


def minimum(model, x, perturbation):
    """``min_s E + c``, mean over the batch."""
    relaxation = model.relax(x, None, perturbation)
    cost = 0 if isinstance(perturbation, Clamped) else perturbation.cost(relaxation.state)
    return float((relaxation.energy + cost).mean())


def nudged_loss(model, x, beta):
    """``L_beta = (min (E + beta C) - min E) / beta`` (Theorem 2)."""
    return (minimum(model, x, Nudged(TARGET, beta)) - minimum(model, x, FREE)) / beta


def test_theorem_1_contrastive_learning_descends_the_contrastive_function(dense):
    model, x = dense
    found = gradient(model, create_rule("cl")(model, x, LABELS).loss)
    expected = finite_difference(model, lambda: minimum(model, x, Clamped(TARGET)) - minimum(model, x, FREE))
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize(("name", "sign"), [("p-ep", 1), ("n-ep", -1)])
def test_theorem_2_one_sided_propagation_descends_a_bound_of_the_cost(dense, name, sign):
    model, x = dense
    found = gradient(model, create_rule(name, beta=0.3)(model, x, LABELS).loss)
    expected = finite_difference(model, lambda: nudged_loss(model, x, sign * 0.3))
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-6)

    cost = float(squared_error(model.relax(x).output, TARGET).mean())
    gaps = [sign * (cost - nudged_loss(model, x, sign * beta)) for beta in BETAS]
    assert min(gaps) > 0
    assert slope(gaps) == pytest.approx(1, abs=0.1)


def test_theorem_3_centred_propagation_descends_the_cost_up_to_beta_squared(dense):
    model, x = dense

    def loss(beta):
        return (minimum(model, x, Nudged(TARGET, beta)) - minimum(model, x, Nudged(TARGET, -beta))) / (2 * beta)

    found = gradient(model, create_rule("c-ep", beta=0.3)(model, x, LABELS).loss)
    torch.testing.assert_close(found, finite_difference(model, lambda: loss(0.3)), atol=1e-8, rtol=1e-6)
    cost = float(squared_error(model.relax(x).output, TARGET).mean())
    assert slope([abs(loss(beta) - cost) for beta in BETAS]) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_the_bounds_of_theorem_2_hold_for_each_sample(seed):
    model = DenseHopfield(scale=0.6, seed=seed)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
    free = model.relax(x)
    cost = squared_error(free.output, TARGET)

    def bound(beta):
        relaxation = model.relax(x, free, Nudged(TARGET, beta))
        return (relaxation.energy + Nudged(TARGET, beta).cost(relaxation.state) - free.energy) / beta

    for beta in (0.05, 0.2, 0.5):
        assert (bound(beta) <= cost).all()
        assert (cost <= bound(-beta)).all()


@pytest.mark.parametrize("name", ["p-cpl", "n-cpl", "c-cpl"])
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_coupled_learning_can_increase_the_squared_error(name, beta):
    # Two hidden units that inhibit one another through the outputs, and one trained parameter, the first one's bias.
    # Coupled learning follows the direct feedback of the output error, W_1 . (y - o) = 0.06. What the bias really does
    # to the error goes through (1 - W^T W)^-1 as well, where the second unit turns the sign: -0.12.
    model = DenseHopfield(inputs=1, hidden=2, outputs=2)
    weights = torch.tensor([[0.6, -0.3], [0.0, 0.5]], dtype=torch.float64)
    hidden = torch.tensor([0.5, 0.5], dtype=torch.float64)
    with torch.no_grad():
        model.V.zero_()
        model.b.zero_()
        model.W.copy_(weights)
        model.a.copy_(hidden - weights.T @ weights @ hidden)
    x, y = torch.ones(1, 1, dtype=torch.float64), torch.tensor([[0.25, 1.25]], dtype=torch.float64)

    def change(rule, rate):
        before = squared_error(model.relax(x).output, y).item()
        (direction,) = torch.autograd.grad(rule(model, x, y).loss, model.a)
        with torch.no_grad():
            model.a[0] -= rate * direction[0]
            after = squared_error(model.relax(x).output, y).item()
            model.a[0] += rate * direction[0]
        return after - before

    for rate in (1e-3, 1e-2, 0.1, 1.0):
        assert change(create_rule(name, beta=beta), rate) > 0
        assert change(create_rule("c-ep", beta=0.01), rate) < 0
