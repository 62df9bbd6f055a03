"""The rules against oracles: closed forms, finite differences, the slow reference, one another."""

import inspect
import re

import pytest
import responses
import torch
from oracles import BETAS, CONVERGED, LABELS, TARGET, error, finite_difference, gradient, slope, true_gradient

from timm_ebl import Minimizer, Nudged, create_rule, list_rules
from timm_ebl.rules import contrastive, reference
from timm_ebl.rules.rule import as_target, rule_options, squared_error

CONTRASTIVE = [name for name in list_rules() if name not in ("tbp", "rbp")]


# ---------------------------------------------------------------------------------------------------- the two baselines


def test_truncated_backpropagation_is_the_finite_difference_of_the_cost(dense):
    model, x = dense
    found = true_gradient(model, x, LABELS)
    expected = finite_difference(model, lambda: float(squared_error(model.relax(x).output, TARGET).mean()))
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-6)


def test_recurrent_and_truncated_backpropagation_agree_at_convergence(dense, make_dchn, batch):
    for model, x, y in ((*dense, LABELS), (make_dchn(), *batch)):
        adjoint = Minimizer(sweeps=600, order="synchronous", omega=1.0)
        recurrent = create_rule("rbp", free=CONVERGED, adjoint=adjoint)(model, x, y)
        assert error(gradient(model, recurrent.loss), true_gradient(model, x, y)) < 1e-8
        assert recurrent.loss.item() == pytest.approx(
            float(squared_error(recurrent.free.state[-1], as_target(y, recurrent.output)).mean())
        )


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_recurrent_backpropagation_in_a_few_steps_is_backpropagation_through_as_many_sweeps(make_dchn, batch, steps):
    model, (x, y) = make_dchn(), batch
    phase = Minimizer(sweeps=steps, order="synchronous", omega=1.0)
    rules = create_rule("rbp", free=CONVERGED, adjoint=phase), create_rule("tbp", free=CONVERGED, unrolled=phase)
    found = [gradient(model, rule(model, x, y).loss) for rule in rules]
    assert error(*found) < 1e-9


def test_recurrent_backpropagation_leaves_the_sweep_that_it_differentiates(make_dchn, batch):
    """As in the released code: the next free phase starts one synchronous sweep beyond the free state."""
    model, (x, y) = make_dchn(), batch
    rule = create_rule("rbp", free=Minimizer(sweeps=3))
    found, free = rule(model, x, y).last, model.relax(x, minimizer=rule.free)
    for left, layer, start in zip(found, model.sweep(x, free.state, rule.adjoint), free.state, strict=True):
        torch.testing.assert_close(left, layer.detach())
        assert not torch.allclose(left, start)
        assert not left.requires_grad


# ------------------------------------------------------------------------------------------- equilibrium propagation


@pytest.mark.parametrize(("name", "order"), [("p-ep", 1), ("n-ep", 1), ("c-ep", 2)])
def test_the_bias_of_equilibrium_propagation_has_its_order_in_beta(dense, make_dchn, batch, name, order):
    routed = make_dchn(seed=3, gains=0.5, bias_gain=1.5)
    for model, x, y in ((*dense, LABELS), (routed, *batch)):
        expected = true_gradient(model, x, y)
        errors = []
        for beta in BETAS:
            rule = create_rule(name, beta=beta, free=CONVERGED, perturbed=CONVERGED, linear_response=True)
            errors.append(error(gradient(model, rule(model, x, y).loss), expected))
        assert slope(errors) == pytest.approx(order, abs=0.15)
        assert errors[-1] < 1.5 * BETAS[-1] ** order


def test_the_read_outs_update_is_the_contrast_of_outer_products(make_dchn, batch):
    model, (x, y) = make_dchn(), batch
    beta, perturbed = 0.2, Minimizer(sweeps=4)
    rule = create_rule("c-ep", beta=beta, perturbed=perturbed, linear_response=False, settle=False)
    rule(model, x, y).loss.backward()
    free = model.relax(x)
    target = torch.eye(3, dtype=torch.float64)[y]
    products = []
    for sign in (-1, 1):
        *_, top, output = model.relax(x, free, Nudged(target, sign * beta), perturbed).state
        products.append(torch.einsum("bo,bf->of", output, top.flatten(1)))
    torch.testing.assert_close(model.head.weight.grad, -(products[1] - products[0]) / (2 * beta * len(x)))


# --------------------------------------------------------------------------------------------- the slow reference


def slow_states(params, x, y, name, rule, free_sweeps, second_sweeps):
    """``(state_1, state_2, held)`` of a contrastive rule, as the table of the paper's equations says."""
    groups, beta = responses.GROUPS["asynchronous"], rule.beta
    free = reference.zero_state(params, x)
    for _ in range(free_sweeps):
        free, potentials, _ = responses.free_sweep(params, x, free, groups)
    held = free

    def perturbation(sign):
        if name == "cl" or name.endswith("cpl"):
            return {"clamp": (1 - sign * beta) * free[-1] + sign * beta * y}
        return {"beta": sign * beta, "y": y, "damped": rule.damped}

    def followed(sign):
        if not sign and rule.companion is False:
            return free
        state = (*free[:-1], perturbation(sign).get("clamp", free[-1]))
        for _ in range(second_sweeps):
            state = responses.sweep(params, x, state, groups, **perturbation(sign))
        return state

    signs = {"cl": (0, 1), "p": (0, 1), "n": (-1, 0), "c": (-1, 1)}[name.split("-")[0]]
    for _ in range(2 if rule.settle else 0):
        free, potentials, held = responses.free_sweep(params, x, free, groups)
    if not rule.linear_response:
        return *map(followed, signs), None
    each = [perturbation(sign) for sign in signs if sign]
    moved = responses.respond(params, x, free, potentials, held, groups, [1.0] * second_sweeps, each)
    first, second = [moved.pop(0) if sign else free for sign in signs]
    return first, second, held


WAYS = {
    "the paper's": {"linear_response": False, "settle": False, "companion": True, "damped": True},
    "no companion": {"linear_response": False, "settle": False, "companion": False},
    "settled, no companion": {"linear_response": False, "settle": True, "companion": False},
    "settled, a companion": {"linear_response": False, "settle": True, "companion": True},
    "held, settled": {"linear_response": True, "settle": True},
    "held as it is": {"linear_response": True, "settle": False, "companion": True},
}


@pytest.mark.parametrize(
    ("name", "way"),
    [(name, way) for name in CONTRASTIVE for way in WAYS if name != "cl" or not WAYS[way]["linear_response"]],
)
def test_every_rules_update_is_the_slow_references(make_dchn, batch, name, way):
    model, (x, y) = make_dchn(), batch
    options = {option: value for option, value in {"beta": 0.3, **WAYS[way]}.items() if option in rule_options(name)}
    plain = Minimizer(sweeps=9, omega=1.0, start="zero")
    rule = create_rule(name, free=plain, perturbed=Minimizer(sweeps=5, omega=1.0), **options)
    loss, output, free, last = rule(model, x, y)

    params, leaves = responses.learning(responses.layers_of(model))
    target = torch.eye(3, dtype=torch.float64)[y]
    first, second, held = slow_states(responses.layers_of(model), x, target, name, rule, 9, 5)
    denominator = (2 if name.startswith("c-") else 1) * rule.beta
    contrast = (
        responses.energy(params, x, second, held) - responses.energy(params, x, first, held)
    ).mean() / denominator
    expected = torch.autograd.grad(contrast, leaves)
    assert loss.item() == pytest.approx(contrast.item(), abs=1e-10)
    torch.testing.assert_close(gradient(model, loss), torch.cat([g.flatten() for g in expected]), atol=1e-10, rtol=1e-9)
    torch.testing.assert_close(last, second)
    assert free.sweeps == 9
    assert output is free.output


@pytest.mark.parametrize("omega", [1.0, 1.4])
def test_truncated_backpropagations_update_is_the_slow_references(make_dchn, batch, omega):
    model, (x, y) = make_dchn(), batch
    free, unrolled = Minimizer(sweeps=3, omega=1.0, start="zero"), Minimizer(sweeps=4, omega=omega)
    loss, _, found, _ = create_rule("tbp", free=free, unrolled=unrolled)(model, x, y)

    groups, state = responses.GROUPS["asynchronous"], reference.zero_state(responses.layers_of(model), x)
    for _ in range(3):
        state = responses.sweep(responses.layers_of(model), x, state, groups)
    torch.testing.assert_close(found.state[-1], state[-1], atol=1e-10, rtol=0)
    params, leaves = responses.learning(responses.layers_of(model))
    for _ in range(4):
        state = responses.sweep(params, x, state, groups, omega)
    cost = ((state[-1] - torch.eye(3, dtype=torch.float64)[y]) ** 2).sum(1).mean() / 2
    expected = torch.autograd.grad(cost, leaves)
    assert loss.item() == pytest.approx(cost.item(), abs=1e-10)
    torch.testing.assert_close(gradient(model, loss), torch.cat([g.flatten() for g in expected]), atol=1e-10, rtol=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 6])
def test_recurrent_backpropagations_update_is_the_references(make_dchn, batch, steps):
    model, (x, y) = make_dchn(), batch
    free = Minimizer(sweeps=3, omega=1.0, start="zero")
    adjoint = Minimizer(sweeps=steps, order="synchronous", omega=1.0)
    loss, _, found, _ = create_rule("rbp", free=free, adjoint=adjoint)(model, x, y)

    params, target = responses.layers_of(model), torch.eye(3, dtype=torch.float64)[y]
    state = reference.relax(params, x, reference.zero_state(params, x), 3)
    expected = reference.gradients("rbp", params, x, target, state, sweeps=steps)
    torch.testing.assert_close(gradient(model, loss), torch.cat([g.flatten() for g in expected]), atol=1e-10, rtol=1e-9)
    torch.testing.assert_close(found.state[-1], state[-1], atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", list_rules())
@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_are_laid_out_as_their_parameters(make_dchn, batch, name, channels):
    """As data parallelism asks for; a dimension of one counts, too."""
    model = make_dchn(in_chans=channels)
    create_rule(name)(model, batch[0][:, :1].expand(-1, channels, -1, -1), batch[1]).loss.backward()
    for parameter in model.parameters():
        assert parameter.grad.stride() == parameter.stride()


@pytest.mark.parametrize("name", list_rules())
def test_every_rule_returns_the_record_and_output_of_its_free_phase(make_dchn, batch, name):
    model, (x, y) = make_dchn(), batch
    rule = create_rule(name, free=Minimizer(sweeps=6))
    expected = model.relax(x, minimizer=rule.free)
    _, output, free, _ = rule(model, x, y)
    assert free.sweeps == 6
    assert torch.equal(output, expected.output)
    assert torch.equal(free.residual, expected.residual)
    assert all(torch.equal(a, b) for a, b in zip(free.state, expected.state, strict=True))
    warm = model.relax(x, minimizer=Minimizer(sweeps=30)).state
    _, output, *_ = rule(model, x, y, warm)
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
        loss, output, *_ = rule(model, x, LABELS)
        loss.backward()
        optimizer.step()
        costs.append(float(squared_error(output, TARGET).mean()))
    assert costs[-1] < costs[0]


def test_what_the_free_phase_left_undone_is_no_effect_of_the_perturbation(make_dchn, batch):
    model, (x, y) = make_dchn(seed=3, gains=0.5, bias_gain=1.5), batch
    expected = true_gradient(model, x, y)
    perturbed = Minimizer(order="backward", sweeps=4, omega=1.0)
    for name in ("p-ep", "n-ep"):
        errors = []
        for options in (
            {},
            {"linear_response": False},
            {"linear_response": False, "settle": False, "companion": False},
        ):
            rule = create_rule(name, beta=0.02, free=Minimizer(sweeps=4), perturbed=perturbed, **options)
            errors.append(error(gradient(model, rule(model, x, y).loss), expected))
        assert max(errors[:2]) < 0.1
        assert errors[2] > 3 * max(errors[:2])


@pytest.mark.parametrize("name", ["p-ep", "n-cpl"])
def test_a_companion_is_there_by_default_where_routes_are_followed(make_dchn, batch, name):
    model, (x, y) = make_dchn(), batch
    options = {"beta": 0.3, "linear_response": False}
    found = gradient(model, create_rule(name, **options)(model, x, y).loss)
    for asked, same in (
        ({"companion": True, "settle": False}, True),
        ({"companion": False}, False),
        ({"settle": True}, False),
    ):
        other = gradient(model, create_rule(name, **options, **asked)(model, x, y).loss)
        assert torch.equal(other, found) is same


def test_contrastive_learning_is_coupled_learning_at_beta_1(make_dchn, batch):
    model, (x, y) = make_dchn(), batch
    found = [create_rule("cl")(model, x, y), create_rule("p-cpl", beta=1.0, linear_response=False)(model, x, y)]
    assert torch.equal(*(gradient(model, output.loss) for output in found))


# ------------------------------------------------------------------------------------------------------- definitions


@pytest.mark.parametrize("module", [contrastive, reference])
def test_every_equation_of_the_papers_rules_is_found_by_its_number(module):
    source = inspect.getsource(module)
    assert [n for n in range(1, 10) if not re.search(rf"Equation {n}\b", source)] == []
