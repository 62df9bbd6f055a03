"""Any loss has its gradient by equilibrium propagation: against implicit differentiation and finite differences."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from oracles import (
    BETAS,
    CONVERGED,
    LABELS,
    TARGET,
    error,
    finite_difference,
    flat,
    gradient,
    parameter_gradients,
    slope,
)
from quartic import QuarticHopfield

from timm_ebl import Forced, Minimizer, Nudging, create_backward, create_rule, equilibrium, list_backwards
from timm_ebl.rules.contrastive import EquilibriumPropagation
from timm_ebl.rules.rule import squared_error

TEACHER = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8], [0.5, 0.4, 0.1], [0.3, 0.4, 0.3]]).double()
LOSSES = {
    "cross-entropy": lambda output: F.cross_entropy(output, LABELS),
    "label smoothing, summed": lambda output: F.cross_entropy(output, LABELS, label_smoothing=0.1, reduction="sum"),
    "distillation": lambda output: F.kl_div((output / 2).log_softmax(1), TEACHER, reduction="batchmean"),
    "squared error": lambda output: squared_error(output, TARGET).mean(),
    "binary cross-entropy": lambda output: F.binary_cross_entropy_with_logits(output, TARGET * 0.9),
}
MANY = {
    "tbp": create_backward("tbp", unrolled=Minimizer(sweeps=400, omega=1.0)),
    "rbp": create_backward("rbp", adjoint=Minimizer(sweeps=400, omega=1.0, order="synchronous")),
}


def converged_ep(beta):
    return create_backward("ep", beta=beta, perturbed=CONVERGED)


def unheld_ep(beta):
    """For the dense networks, which have no routes to hold."""
    return create_backward("ep", beta=beta, linear_response=False)


def converged(model):
    """The network, relaxing until nothing changes."""
    model.minimizer = CONVERGED
    return model


# ----------------------------------------------------------------------------------------------------------- the force


@pytest.mark.parametrize("beta", [-5.0, 0.3, 5.0])
def test_a_force_is_exactly_minimised_whatever_its_strength(make_live, batch, generator, beta):
    model, (x, _) = make_live(), batch
    free = model.relax(x)
    forces = [beta * torch.randn(s.shape, generator=generator, dtype=s.dtype) for s in free.state]
    forces[1] = None
    perturbation = Forced(forces)
    state, before = free.state, torch.full((len(x),), float("inf"), dtype=x.dtype)
    for _ in range(20):
        state = model.relax(x, state, perturbation, Minimizer(sweeps=1, omega=1.4)).state
        after = (model.energy(x, state) + perturbation.cost(state)).detach()
        assert (after <= before + 1e-12).all()
        before = after
    output = model.head(state[-2].flatten(1)) - forces[-1]
    settled = model.relax(x, state, perturbation, CONVERGED)
    torch.testing.assert_close(settled.output, model.head(settled.state[-2].flatten(1)) - forces[-1])
    assert output.shape == settled.output.shape


def test_there_is_a_force_for_each_layer(make_live, batch):
    model, (x, _) = make_live(), batch
    free, force = model.relax(x), Forced([None, None])
    for phase in (lambda: model.relax(x, free, force), lambda: model.respond(free, force, model.perturbed)):
        with pytest.raises(ValueError, match="There is a force for each of 5 layers, or None for it; got 2"):
            phase()


def test_a_force_of_nothing_costs_nothing(dense):
    model, x = dense
    state = model.relax(x).state
    assert torch.equal(Forced([None, None]).cost(state), torch.zeros(len(x), dtype=x.dtype))


# ------------------------------------------------------------------------------------------------------------- oracles


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_the_baselines_are_the_finite_difference_of_any_loss(dense, loss):
    model, x = dense
    expected = finite_difference(model, lambda: float(loss(model.relax(x).output)))
    for backward in MANY.values():
        found = gradient(model, loss(equilibrium(model, x, backward)[0]))
        torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_equilibrium_propagation_differs_by_the_square_of_beta(dense, loss):
    x = dense[1]
    model = QuarticHopfield(scale=0.5)
    expected = gradient(model, loss(equilibrium(model, x, MANY["rbp"])[0]))
    errors = []
    for beta in BETAS:
        errors.append(error(gradient(model, loss(equilibrium(model, x, unheld_ep(beta))[0])), expected))
    assert slope(errors) == pytest.approx(2, abs=0.05)
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)
    assert 1e-8 < errors[-1] < BETAS[-1] ** 2


@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_in_a_hopfield_network_it_is_exact_until_a_unit_meets_a_bound(dense, make_live, batch, loss, pooling):
    model, x = dense
    expected = gradient(model, loss(equilibrium(model, x, MANY["rbp"])[0]))
    for beta in (0.01, 0.1, 0.5):
        assert error(gradient(model, loss(equilibrium(model, x, unheld_ep(beta))[0])), expected) < 1e-12
    model, x = converged(make_live(pooling=pooling)), batch[0][:5]
    expected = gradient(model, loss(equilibrium(model, x, MANY["rbp"])[0]))
    errors = [error(gradient(model, loss(equilibrium(model, x, converged_ep(b))[0])), expected) for b in (1e-3, 0.5)]
    assert errors[0] < 1e-8
    assert errors[0] < errors[1] < 0.2


def test_truncated_backpropagation_passes_gradcheck_in_input_and_parameters(dense):
    model, x = dense

    def output(x, *parameters):
        return equilibrium(model, x, MANY["tbp"])[0]

    assert torch.autograd.gradcheck(output, (x.clone().requires_grad_(), *model.parameters()))


@pytest.mark.parametrize("name", list_backwards())
def test_the_input_has_a_gradient(make_live, batch, name):
    model, (x, _) = converged(make_live()), batch
    model.backward = converged_ep(1e-3) if name == "ep" else MANY[name]
    x, direction = x[:1].clone().requires_grad_(), torch.randn(1, 2, 16, 16, generator=torch.Generator().manual_seed(5))
    (found,) = torch.autograd.grad(model(x).square().sum(), x)
    with torch.no_grad():
        values = [model(x + sign * 1e-5 * direction).square().sum() for sign in (1, -1)]
    torch.testing.assert_close((found * direction).sum(), (values[0] - values[1]) / 2e-5, rtol=1e-4, atol=1e-10)


def test_each_sweep_that_is_gone_back_through_has_its_omega(make_live, batch):
    model, (x, y) = make_live(), batch
    result = create_rule("tbp", unrolled=Minimizer(sweeps=4, omega=(1.9, 1.5, 1.0)))(model, x, y)
    state = result.free.state
    for omega in (1.9, 1.5, 1.0, 1.0):
        state = model.sweep(x, state, Minimizer(sweeps=1, omega=omega))
    torch.testing.assert_close(result.last, state, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["tbp", "rbp"])
def test_for_the_squared_error_the_backward_pass_is_the_rule_of_its_name(make_live, batch, name):
    model, (x, y) = converged(make_live()), batch
    model.backward = MANY[name]
    expected = gradient(model, replace(MANY[name], free=CONVERGED)(model, x, y).loss)
    assert error(gradient(model, squared_error(model(x), torch.eye(3).double()[y]).mean()), expected) < 1e-9


def test_a_loss_on_the_hidden_layers_has_its_gradient(make_live, batch):
    model, (x, _) = converged(make_live()), batch
    generator = torch.Generator().manual_seed(4)
    weights = [torch.randn(s.shape, generator=generator, dtype=s.dtype) for s in model.relax(x).state[:-1]]

    def loss():
        return sum((w * s).sum() for w, s in zip(weights, model.forward_intermediates(x)[1], strict=True))

    expected = {name: gradient(model, loss()) for model.backward in MANY.values() for name in [repr(model.backward)]}
    truncated, recurrent = expected.values()
    assert error(truncated, recurrent) < 1e-8
    model.backward = converged_ep(1e-5)
    assert error(gradient(model, loss()), recurrent) < 1e-6


def test_a_network_without_classes_has_the_gradient_of_its_features(make_live, batch):
    model, (x, _) = converged(make_live(num_classes=0)), batch
    found = []
    for model.backward in (*MANY.values(), converged_ep(1e-5)):
        found.append(gradient(model, model(x).square().sum()))
    assert error(found[0], found[1]) < 1e-8
    assert error(found[2], found[1]) < 1e-6


def test_a_classifier_put_on_the_features_by_hand_has_the_models_gradient(make_live, batch):
    model, (x, y) = converged(make_live()), batch
    model.backward = MANY["rbp"]
    whole = gradient(model, F.cross_entropy(model(x), y))
    by_hand = gradient(model, F.cross_entropy(model.forward_head(model.forward_features(x)), y))
    assert error(by_hand, whole) < 1e-8


def test_a_layer_used_twice_has_the_sum_of_its_gradients(make_live, batch):
    model, (x, _) = make_live(), batch

    def gradients(count):
        last, states = model.forward_intermediates(x, indices=[3])
        return gradient(model, (last * count).square().sum() if count > 1 else (last + states[0]).square().sum())

    torch.testing.assert_close(gradients(1), gradients(2))


@pytest.mark.parametrize("linear_response", [True, False])
@pytest.mark.parametrize("nudging", [Nudging.POSITIVE, Nudging.NEGATIVE, Nudging.CENTERED])
def test_a_loss_is_contrasted_as_a_rule_contrasts_its_cost(make_live, batch, nudging, linear_response):
    """The squared error's force is ``(o_* - y) / B``; where beta is small, a nudge is that force."""
    model, (x, y) = make_live(), batch
    model.minimizer = CONVERGED
    options = {"nudging": nudging, "linear_response": linear_response, "beta": 1e-4, "perturbed": CONVERGED}
    model.backward = create_backward("ep", **options)
    target = torch.eye(3, dtype=x.dtype)[y]
    found = gradient(model, squared_error(model(x), target).mean())
    expected = gradient(model, EquilibriumPropagation(free=CONVERGED, **options)(model, x, y).loss)
    assert error(found, expected) < 1e-3


@pytest.mark.parametrize(("nudging", "sign"), [(Nudging.POSITIVE, 1), (Nudging.NEGATIVE, -1)])
def test_one_sided_equilibrium_propagation_of_a_loss_leaves_the_free_state_as_it_is(make_live, batch, nudging, sign):
    """By hand: ``|f| (E(s_beta) - E(s_*)) / beta``, the force of norm beta for each sample, routes followed."""
    model, (x, _) = make_live(), batch
    model.minimizer = CONVERGED
    beta, free = 0.2, model.relax(x)
    force = free.output
    unit = force / force.norm(dim=1, keepdim=True)
    moved = model.relax(x, free, Forced([None] * 4 + [sign * beta * unit]), CONVERGED)
    weights = sign * force.norm(dim=1) / beta
    expected = gradient(model, (weights * (model.energy(x, moved.state) - model.energy(x, free.state))).sum())
    model.backward = create_backward("ep", nudging=nudging, beta=beta, linear_response=False, perturbed=CONVERGED)
    assert error(gradient(model, model(x).square().sum() / 2), expected) < 1e-9


# ------------------------------------------------------------------------------------------------------------- settings


def test_unknown_settings_are_refused_with_the_known_ones(make_live):
    with pytest.raises(ValueError, match="'bptt' of a DCHN: choose one of ep, tbp, rbp"):
        make_live(backward="bptt")
    with pytest.raises(ValueError, match="'tbp' has no option 'beta': its options are unrolled"):
        create_backward("tbp", beta=0.1)
    for beta in (0, -1, float("nan"), float("inf"), "0.5", True):
        with pytest.raises(ValueError, match="beta is a positive number"):
            create_backward("ep", beta=beta)


def test_the_method_is_an_attribute(make_live, batch):
    model, (x, y) = make_live(), batch
    assert model.backward == create_backward("ep")
    found = []
    for name in list_backwards():
        model.backward = create_backward(name)
        found.append(flat(parameter_gradients(model, F.cross_entropy(model(x), y))))
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])
