"""Predictive coding networks: the free state is a forward pass, and the rules descend what backpropagation descends."""

import pytest
import torch
import torch.nn.functional as F
from oracles import error, gradient, signs_for
from predictive import LABELS, LAYERS, TARGET, energy, forward_pass, images, modified_update, small_network
from torch.utils.flop_counter import FlopCounterMode

from timm_ebl import Clamped, Minimizer, Nudged, Relaxation, create_backward, create_rule, list_backwards, list_rules

LONG = Minimizer(sweeps=60, omega=1.0)


@pytest.fixture
def model():
    return small_network()


@pytest.fixture
def x():
    return images()


def backpropagation(model, x):
    cost = ((forward_pass(model, x)[-1] - TARGET) ** 2).sum(1).mean() / 2
    return gradient(model, cost)


def error_of(model, x, name, beta, linear_response, sweeps=LAYERS):
    minimizer = Minimizer(sweeps=sweeps, omega=1.0)
    rule = create_rule(name, beta=beta, perturbed=minimizer, linear_response=linear_response)
    return error(gradient(model, rule(model, x, LABELS, **signs_for(rule, x)).loss), backpropagation(model, x))


# The free phase.


def test_the_free_state_is_the_forward_pass_to_the_last_bit(model, x):
    """By the same operations: images channels last, and so the columns of the read-out."""
    model.to(memory_format=torch.channels_last)
    free = model.relax(x)
    *hidden, output = forward_pass(model, x.contiguous(memory_format=torch.channels_last))
    assert all(map(torch.equal, free.state[:-1], hidden))
    weight = model.head.weight.unflatten(1, hidden[-1].shape[1:]).permute(0, 2, 3, 1).flatten(1)
    expected = F.linear(hidden[-1].permute(0, 2, 3, 1).flatten(1), weight, model.head.bias)
    assert torch.equal(free.state[-1], expected)
    assert torch.equal(free.output, expected)
    torch.testing.assert_close(expected, output)
    assert not free.energy.any()
    assert not free.residual.any()
    assert model.settle(free) is free


def test_the_call_of_the_network_is_the_forward_pass(model, x):
    expected = forward_pass(model, x)
    assert torch.equal(model.eval()(x), expected[-1])
    assert torch.equal(model.answer(x), expected[-1])
    assert all(map(torch.equal, model.forward_intermediates(x, intermediates_only=True), expected[:-1]))
    torch.testing.assert_close(model.train()(x), expected[-1])
    with FlopCounterMode(display=False) as counter:
        model.eval()(x[:1])
    assert model.flops() == counter.get_total_flops()


def test_the_energy_and_its_gradient_are_autograds(model, x):
    state = tuple(torch.randn_like(layer).requires_grad_() for layer in model.relax(x).state)
    leaves = [*state, *model.parameters()]
    found, expected = (each(x, state) for each in (model.energy, lambda *given: energy(model, *given)))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(each.sum(), leaves) for each in (found, expected)))


def test_the_energy_has_no_gradient_in_the_weights_at_the_free_state(model, x):
    assert not gradient(model, model.energy(x, model.relax(x)).sum()).any()


# The perturbed phase.


def test_a_nudged_phase_is_the_textbooks_modified_projected_gradient(model, x):
    free, minimizer = model.relax(x), Minimizer(sweeps=4, omega=1.0)
    state = list(free.state)
    for _ in range(4):
        for group in minimizer.groups(model.graph.neighbours):
            moved = {k: modified_update(model, x, state, k, lambda o: 0.3 * (o - TARGET)) for k in group}
            for k, layer in moved.items():
                state[k] = layer.detach()
    found = model.relax(x, free, Nudged(TARGET, 0.3, damped=True), minimizer)
    torch.testing.assert_close(found.state, tuple(state), atol=1e-11, rtol=1e-9)
    again = model.relax(x, free.state, Nudged(TARGET, 0.3, damped=True), minimizer)
    torch.testing.assert_close(again.state, tuple(state), atol=1e-11, rtol=1e-9)


def test_the_contrast_is_the_energys_gradient_without_a_graph(model, x):
    free = model.relax(x)
    weights = torch.linspace(-1, 2, 8, dtype=torch.float64)
    pair = model.relax(*(lambda two: (two.input, two))(free.twice()), Nudged(TARGET.repeat(2, 1), 0.2), LONG)
    inputs = [pair.input.requires_grad_(), *model.parameters()]
    value = model.contrast(pair, weights)
    expected = (weights * energy(model, pair.input, pair.state)).sum()
    torch.testing.assert_close(value, expected)
    found, wanted = (torch.autograd.grad(each, inputs) for each in (value, expected))
    torch.testing.assert_close(found, wanted, atol=1e-11, rtol=1e-9)


def test_a_nudge_reaches_two_layers_in_a_sweep(model, x):
    free = model.relax(x)
    for sweeps in range(1, 4):
        found = model.relax(x, free, Nudged(TARGET, 0.1), Minimizer(sweeps=sweeps, omega=1.0))
        moved = [not torch.equal(a, b) for a, b in zip(found.state, free.state, strict=True)]
        assert moved == [False] * (LAYERS - 2 * sweeps + 1) + [True] * (2 * sweeps - 1)
    assert error_of(model, x, "c-ep", 2e-3, False, sweeps=2) > 0.3


# What the rules descend.


@pytest.mark.parametrize("linear_response", [True, False])
def test_centred_propagation_is_backpropagation_up_to_beta_squared(model, x, linear_response):
    errors = [error_of(model, x, "c-ep", beta, linear_response) for beta in (4e-3, 2e-3, 1e-3)]
    assert errors[1] < 1e-4
    assert errors[0] / errors[2] == pytest.approx(16, rel=0.1)


@pytest.mark.parametrize("linear_response", [True, False])
@pytest.mark.parametrize("name", ["p-ep", "n-ep", "r-ep"])
def test_one_sided_propagation_is_backpropagation_up_to_beta(model, x, name, linear_response):
    errors = [error_of(model, x, name, beta, linear_response) for beta in (4e-3, 1e-3)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


def test_contrastive_learning_is_predictive_coding(model, x):
    """The output held at the target, and each weight along its layer's error: ``dw_k = e_k d f_k(h_{k-1}) / dw_k``."""
    state = model.relax(x, None, Clamped(TARGET), LONG).state
    assert torch.equal(state[-1], TARGET)
    update = gradient(model, energy(model, x, state).mean())
    rule = create_rule("cl", perturbed=LONG)
    assert error(gradient(model, rule(model, x, LABELS).loss), update) < 1e-12


@pytest.mark.parametrize("name", ["tbp", "rbp"])
def test_the_baselines_are_backpropagation(model, x, name):
    assert error(gradient(model, create_rule(name)(model, x, LABELS).loss), backpropagation(model, x)) < 1e-12


@pytest.mark.parametrize("name", list_rules())
def test_every_rule_descends_the_cost(model, x, name):
    rule = create_rule(name)
    update = gradient(model, rule(model, x, LABELS, **signs_for(rule, x)).loss)
    assert torch.cosine_similarity(update, backpropagation(model, x), dim=0) > (
        0.9 if name.endswith("cpl") else 0.5 if name == "cl" else 0.99
    )


@pytest.mark.parametrize(("name", "copies"), [("p-ep", 1), ("n-ep", 1), ("r-ep", 1), ("c-ep", 2)])
def test_a_one_sided_rule_relaxes_a_single_state(model, x, name, copies, monkeypatch):
    seen = []
    contrast = model.contrast
    monkeypatch.setattr(model, "contrast", lambda pair, w: seen.append(len(pair.input)) or contrast(pair, w))
    rule = create_rule(name)
    rule(model, x, LABELS, **signs_for(rule, x))
    assert seen == [copies * len(x)]


def test_a_rule_takes_from_the_model_what_it_is_not_told(model):
    rule = create_rule("c-ep").fitted(model)
    assert (rule.beta, rule.perturbed) == (0.02, Minimizer(sweeps=LAYERS, omega=1.0))
    assert create_rule("c-ep", beta=0.1, perturbed=LONG).fitted(model) == create_rule("c-ep", beta=0.1, perturbed=LONG)


# The gradient of a loss.


@pytest.mark.parametrize(("backward", "most"), [("ep", 1e-4), ("tbp", 1e-12), ("rbp", 1e-12), ("bp", 1e-12)])
def test_a_loss_has_its_gradient_in_training(model, x, backward, most):
    model.backward = create_backward("ep", beta=2e-3) if backward == "ep" else backward
    x.requires_grad_()
    leaves = [x, *model.parameters()]
    expected = torch.autograd.grad(F.cross_entropy(forward_pass(model, x)[-1], LABELS), leaves)
    found = torch.autograd.grad(F.cross_entropy(model.train()(x), LABELS), leaves)
    assert error(*(torch.cat([g.flatten() for g in each]) for each in (found, expected))) < most


def test_a_loss_on_feature_maps_has_its_gradient(model, x):
    model.backward = create_backward("ep", beta=1e-3)
    found = gradient(model, sum(h.square().sum() for h in model.forward_intermediates(x, intermediates_only=True)))
    expected = gradient(model, sum(h.square().sum() for h in forward_pass(model, x)[:-1]))
    assert error(found, expected) < 1e-4


@pytest.mark.parametrize("name", list_backwards())
def test_without_classes_a_loss_of_the_features_has_backpropagations_gradient(x, name):
    model = small_network(num_classes=0)
    model.backward = None
    expected = gradient(model, model(x).square().sum())
    model.backward = create_backward(name, **({"beta": 1e-4} if name == "ep" else {}))
    assert error(gradient(model, model(x).square().sum()), expected) < 1e-6


def test_in_evaluation_the_gradient_is_autograds_own(model, x):
    assert torch.equal(
        gradient(model, F.cross_entropy(model.eval()(x), LABELS)),
        gradient(model, F.cross_entropy(forward_pass(model, x)[-1], LABELS)),
    )


def test_states_are_in_32_bits_under_autocast(x):
    model = small_network(dtype=torch.float32)
    expected = gradient(model, create_rule("c-ep")(model, x.float(), LABELS).loss)
    with torch.autocast("cpu", torch.bfloat16):
        loss = create_rule("c-ep")(model, x.float(), LABELS).loss
    assert torch.equal(gradient(model, loss), expected)


def test_energies_are_in_32_bits_under_autocast(x):
    model, x = small_network(dtype=torch.float32), x.float()
    free = model.relax(x)
    nudged = model.relax(x, free, Nudged(TARGET.float(), 0.1))
    pair, weights = Relaxation.pair(free, nudged), torch.linspace(-1, 1, 8)  # the drives of a pair are not known
    expected = model.energy(x, nudged.state), model.contrast(pair, weights)
    with torch.autocast("cpu", torch.bfloat16), torch.backends.mkldnn.flags(enabled=False):
        found = model.energy(x, nudged.state), model.contrast(pair, weights)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
