"""The rules against oracles: closed forms, finite differences, the slow twin, one another, the paper's theorems."""

import math

import pytest
import torch
import twin
from dense import DenseHopfield

from timm_ebl import FREE, Clamped, Minimizer, Nudged, create_rule, list_rules
from timm_ebl.rules import as_target, squared_error

BETAS = (0.1, 0.05, 0.025)
CONTRASTIVE = [name for name in list_rules() if name not in ("tbp", "rbp")]
CONVERGED = Minimizer(sweeps=5000, tolerance=1e-13, omega=1.2)
LABELS = torch.tensor([0, 1, 2, 0, 1])
TARGET = torch.eye(3, dtype=torch.float64)[LABELS]


@pytest.fixture
def dense():
    """A dense network, five inputs; every unit is strictly inside [0, 1] at its free state."""
    model = DenseHopfield()
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    hidden = model.relax(x).state[0]
    assert hidden.min() > 0.01
    assert hidden.max() < 0.99
    return model, x


def gradient(model, loss):
    """The gradient of a scalar in all parameters, as one vector."""
    gradients = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
    return torch.cat([g.flatten() for g in gradients])


def error(first, second):
    return float((first - second).norm() / second.norm())


def slope(errors):
    """Slope of log error over log beta, through the first and the last beta."""
    return math.log(errors[0] / errors[-1]) / math.log(BETAS[0] / BETAS[-1])


def true_gradient(model, x, y, sweeps=400):
    return gradient(
        model, create_rule("tbp", free=CONVERGED, second=Minimizer(sweeps=sweeps, omega=1.0))(model, x, y).loss
    )


# ---------------------------------------------------------------------------------------------------- the two baselines


def test_truncated_backpropagation_is_the_finite_difference_of_the_cost(dense):
    model, x = dense
    found = true_gradient(model, x, LABELS)
    expected, step = [], 1e-5
    for parameter in model.parameters():
        for index in range(parameter.numel()):
            costs = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter.view(-1)[index] += sign * step
                    costs.append(float(squared_error(model.relax(x).output, TARGET).mean()))
                    parameter.view(-1)[index] -= sign * step
            expected.append((costs[0] - costs[1]) / (2 * step))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-8, rtol=1e-6)


def test_recurrent_and_truncated_backpropagation_agree_at_convergence(dense, make_dchn, batch):
    for model, x, y in ((*dense, LABELS), (make_dchn(), *batch)):
        second = Minimizer(sweeps=600, order="synchronous", omega=1.0)
        recurrent = create_rule("rbp", free=CONVERGED, second=second)(model, x, y)
        assert error(gradient(model, recurrent.loss), true_gradient(model, x, y)) < 1e-8
        assert recurrent.loss.item() == pytest.approx(
            float(squared_error(recurrent.output, as_target(y, recurrent.output)).mean())
        )


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_recurrent_backpropagation_in_a_few_steps_is_backpropagation_through_as_many_sweeps(make_dchn, batch, steps):
    model, (x, y) = make_dchn(), batch
    second = Minimizer(sweeps=steps, order="synchronous", omega=1.0)
    found = [
        gradient(model, create_rule(name, free=CONVERGED, second=second)(model, x, y).loss) for name in ("rbp", "tbp")
    ]
    assert error(*found) < 1e-9


# ------------------------------------------------------------------------------------------- equilibrium propagation


@pytest.mark.parametrize(("name", "order"), [("p-ep", 1), ("n-ep", 1), ("c-ep", 2)])
def test_the_bias_of_equilibrium_propagation_has_its_order_in_beta(dense, make_dchn, batch, name, order):
    routed = make_dchn(seed=3, gains=0.5, bias_gain=1.5)
    for model, x, y in ((*dense, LABELS), (routed, *batch)):
        expected = true_gradient(model, x, y)
        errors = []
        for beta in BETAS:
            rule = create_rule(name, beta=beta, free=CONVERGED, second=CONVERGED, hold_routes=True)
            errors.append(error(gradient(model, rule(model, x, y).loss), expected))
        assert slope(errors) == pytest.approx(order, abs=0.15)
        assert errors[-1] < 1.5 * BETAS[-1] ** order


def test_the_read_outs_update_is_the_contrast_of_outer_products(make_dchn, batch):
    model, (x, y) = make_dchn(), batch
    beta, second = 0.2, Minimizer(sweeps=4)
    rule = create_rule("c-ep", beta=beta, second=second)
    rule(model, x, y).loss.backward()
    free = model.relax(x)
    target = torch.eye(3, dtype=torch.float64)[y]
    products = []
    for sign in (-1, 1):
        *_, top, output = model.relax(x, free, Nudged(target, sign * beta), second).state
        products.append(torch.einsum("bo,bf->of", output, top.flatten(1)))
    torch.testing.assert_close(model.head.weight.grad, -(products[1] - products[0]) / (2 * beta * len(x)))


# ------------------------------------------------------------------------------------------------- the slow twin


def twin_states(params, x, y, name, beta, free_sweeps, second_sweeps):
    """``(state_1, state_2, denominator)`` of a contrastive rule, as the table of the paper's equations says."""
    groups = ((0, 2, 4), (1, 3))
    free = twin.zero_state(params, x)
    for _ in range(free_sweeps):
        free = twin.sweep(params, x, free, groups)

    def perturbed(sign):
        clamp = None
        state = free
        if name == "cl" or name.endswith("cpl"):
            clamp = y if name == "cl" else (1 - sign * beta) * free[-1] + sign * beta * y
            state = (*free[:-1], clamp)
        for _ in range(second_sweeps):
            state = twin.sweep(params, x, state, groups, beta=sign * beta, y=y, clamp=clamp)
        return state

    if name == "cl":
        return free, perturbed(1), 1
    match name[0]:
        case "p":
            return free, perturbed(1), beta
        case "n":
            return perturbed(-1), free, beta
        case "c":
            return perturbed(-1), perturbed(1), 2 * beta


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_every_rules_update_is_the_slow_twins(make_dchn, batch, name):
    model, (x, y) = make_dchn(), batch
    plain = Minimizer(sweeps=9, omega=1.0, start="zero")
    options = {"free": plain, "second": Minimizer(sweeps=5, omega=1.0)}
    if name != "cl":
        options["beta"] = 0.3
    loss, output, free = create_rule(name, **options)(model, x, y)

    params = [(w.requires_grad_(), b.requires_grad_()) for w, b in twin.parameters(model)]
    frozen = twin.parameters(model)
    first, second, denominator = twin_states(frozen, x, torch.eye(3, dtype=torch.float64)[y], name, 0.3, 9, 5)
    contrast = (twin.energy(params, x, second) - twin.energy(params, x, first)).mean() / denominator
    expected = torch.autograd.grad(contrast, [p for pair in params for p in pair])
    assert loss.item() == pytest.approx(contrast.item(), abs=1e-10)
    torch.testing.assert_close(gradient(model, loss), torch.cat([g.flatten() for g in expected]), atol=1e-10, rtol=1e-9)
    assert free.sweeps == 9
    assert output is free.output


@pytest.mark.parametrize("omega", [1.0, 1.4])
def test_truncated_backpropagations_update_is_the_slow_twins(make_dchn, batch, omega):
    model, (x, y) = make_dchn(), batch
    free, second = Minimizer(sweeps=3, omega=1.0, start="zero"), Minimizer(sweeps=4, omega=omega)
    loss, output, _ = create_rule("tbp", free=free, second=second)(model, x, y)

    groups, state = ((0, 2, 4), (1, 3)), twin.zero_state(twin.parameters(model), x)
    for _ in range(3):
        state = twin.sweep(twin.parameters(model), x, state, groups)
    torch.testing.assert_close(output, state[-1], atol=1e-10, rtol=0)
    params = [(w.requires_grad_(), b.requires_grad_()) for w, b in twin.parameters(model)]
    for _ in range(4):
        state = twin.sweep(params, x, state, groups, omega, differentiable=True)
    cost = ((state[-1] - torch.eye(3, dtype=torch.float64)[y]) ** 2).sum(1).mean() / 2
    expected = torch.autograd.grad(cost, [p for pair in params for p in pair])
    assert loss.item() == pytest.approx(cost.item(), abs=1e-10)
    torch.testing.assert_close(gradient(model, loss), torch.cat([g.flatten() for g in expected]), atol=1e-10, rtol=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 6])
def test_recurrent_backpropagations_update_is_the_slow_twins_sum_of_powers_of_the_jacobian(make_dchn, generator, steps):
    model = make_dchn(widths=(2, 3), img_size=8)
    x = torch.randn(2, 2, 8, 8, generator=generator, dtype=torch.float64)
    y = torch.tensor([2, 0])
    free = Minimizer(sweeps=3, omega=1.0, start="zero")
    second = Minimizer(sweeps=steps, order="synchronous", omega=1.0)
    loss, output, _ = create_rule("rbp", free=free, second=second)(model, x, y)

    state = twin.zero_state(twin.parameters(model), x)
    for _ in range(3):
        state = twin.sweep(twin.parameters(model), x, state, ((0, 2), (1,)))
    params = [(w.requires_grad_(), b.requires_grad_()) for w, b in twin.parameters(model)]
    sizes = [layer.numel() for layer in state]

    def sweep(flat):
        layers = [part.view_as(layer) for part, layer in zip(flat.split(sizes), state, strict=True)]
        swept = twin.sweep(params, x, layers, ((0, 1, 2),), differentiable=True)
        return torch.cat([layer.flatten() for layer in swept])

    flat = torch.cat([layer.flatten() for layer in state])
    jacobian = torch.autograd.functional.jacobian(sweep, flat)
    cost_gradient = torch.zeros_like(flat)
    cost_gradient[-6:] = (state[-1] - torch.eye(3, dtype=torch.float64)[y]).flatten() / 2
    adjoint = sum(torch.linalg.matrix_power(jacobian.T, power) @ cost_gradient for power in range(steps))
    expected = torch.autograd.grad(sweep(flat), [p for pair in params for p in pair], adjoint)
    torch.testing.assert_close(gradient(model, loss), torch.cat([g.flatten() for g in expected]), atol=1e-10, rtol=1e-9)
    torch.testing.assert_close(output, state[-1], atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", list_rules())
def test_every_rule_returns_the_record_and_output_of_its_free_phase(make_dchn, batch, name):
    model, (x, y) = make_dchn(), batch
    rule = create_rule(name, free=Minimizer(sweeps=7))
    expected = model.relax(x, minimizer=rule.free)
    _, output, free = rule(model, x, y)
    assert free.sweeps == 7
    assert torch.equal(output, expected.output)
    assert torch.equal(free.residual, expected.residual)
    assert all(torch.equal(a, b) for a, b in zip(free.state, expected.state, strict=True))
    warm = model.relax(x, minimizer=Minimizer(sweeps=30)).state
    _, output, _ = rule(model, x, y, warm)
    assert torch.equal(output, model.relax(x, warm, minimizer=rule.free).output)


@pytest.mark.parametrize("name", list_rules())
def test_labels_and_one_hot_rows_give_the_same_update(make_dchn, batch, name):
    model, (x, y) = make_dchn(), batch
    rule = create_rule(name)
    first, second = (gradient(model, rule(model, x, target).loss) for target in (y, torch.eye(3, dtype=x.dtype)[y]))
    assert torch.equal(first, second)
    assert first.norm() > 0


@pytest.mark.parametrize("name", list_rules())
def test_every_rule_trains_a_model_that_only_has_the_interface(dense, name):
    model, x = dense
    rule, costs = create_rule(name), []
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(15):
        optimizer.zero_grad()
        loss, output, _ = rule(model, x, LABELS)
        loss.backward()
        optimizer.step()
        costs.append(float(squared_error(output, TARGET).mean()))
    assert costs[-1] < costs[0]


def test_contrastive_learning_is_coupled_learning_at_beta_1(make_dchn, batch):
    model, (x, y) = make_dchn(), batch
    found = [create_rule("cl")(model, x, y), create_rule("p-cpl", beta=1.0)(model, x, y)]
    assert torch.equal(*(gradient(model, output.loss) for output in found))


# ------------------------------------------------------------------------------------------------------- the theorems


def finite_difference(model, function, step=1e-5):
    """Gradient of a number that depends on the parameters through its own minimisations."""
    found = []
    for parameter in model.parameters():
        for index in range(parameter.numel()):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter.view(-1)[index] += sign * step
                    values.append(function())
                    parameter.view(-1)[index] -= sign * step
            found.append((values[0] - values[1]) / (2 * step))
    return torch.tensor(found, dtype=torch.float64)


def minimum(model, x, perturbation):
    """``min_s E + c``, mean over the batch."""
    relaxation = model.relax(x, None, perturbation)
    cost = 0 if isinstance(perturbation, Clamped) else perturbation.cost(relaxation.output)
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
        return (relaxation.energy + Nudged(TARGET, beta).cost(relaxation.output) - free.energy) / beta

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
