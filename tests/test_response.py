"""The response of a free state to perturbations, against the slow reference and its equilibrium."""

import pytest
import responses
import torch
from oracles import CONVERGED, distance, record_calls, record_products

from timm_ebl import Clamped, Forced, Minimizer, Nudged, create_rule
from timm_ebl.relaxation.response import ResponsePhase

TARGET = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0, 1, 2]]
FREE_OMEGAS = (1.9, 1.7, 1.5)
PERTURBATIONS = {
    "nudged": (lambda sign: Nudged(TARGET, 0.4 * sign), lambda sign: {"beta": 0.4 * sign, "y": TARGET}),
    "clamped": (lambda sign: Clamped(0.4 * sign * TARGET), lambda sign: {"clamp": 0.4 * sign * TARGET}),
}


def both_signs(make):
    """Two perturbations of one kind as that of two copies."""
    parts = [make(-1), make(1)]
    if isinstance(parts[0], Clamped):
        return Clamped(torch.cat([part.target for part in parts]))
    betas = torch.tensor([part.beta for part in parts], dtype=torch.float64)
    return Nudged(torch.cat([part.target for part in parts]), betas.repeat_interleave(len(TARGET))[:, None])


@pytest.mark.parametrize("order", responses.GROUPS)
@pytest.mark.parametrize("omega", [1.0, 1.4])
@pytest.mark.parametrize("kind", PERTURBATIONS)
def test_every_sweep_ends_where_the_references_does(make_dchn, batch, order, omega, kind):
    model, (x, _) = make_dchn(), batch
    params, state = responses.layers_of(model), responses.feedforward_state(responses.layers_of(model), x)
    for free_omega in FREE_OMEGAS:
        state, potentials, _ = responses.free_sweep(params, x, state, responses.GROUPS["asynchronous"], free_omega)
    free = model.relax(x, minimizer=Minimizer(sweeps=3, omega=FREE_OMEGAS))
    assert distance(free._cache.potentials, potentials) <= 1e-10
    assert max(layer.max() for layer in potentials[:-1]) > 1
    make, equivalent = PERTURBATIONS[kind]
    pair = free.twice()
    for sweeps in range(1, 8):
        minimizer = Minimizer(order=order, omega=omega, sweeps=sweeps)
        arguments = params, x, state, potentials, state, responses.GROUPS[order], [omega] * sweeps
        for sign in (-1, 1):
            (expected,) = responses.respond(*arguments, [equivalent(sign)])
            assert distance(model.respond(free, make(sign), minimizer).state, expected) <= 1e-10
        expected = responses.respond(*arguments, [equivalent(-1), equivalent(1)])
        found = model.respond(pair, both_signs(make), minimizer)
        assert distance(found.state, [torch.cat(layers) for layers in zip(*expected, strict=True)]) <= 1e-10


def test_the_first_of_several_sweeps_updates_the_first_layer_only_under_a_force_on_it(make_dchn, batch, monkeypatch):
    model, (x, _) = make_dchn(), batch
    free, layers = model.relax(x), range(5)
    updates = record_calls(monkeypatch, ResponsePhase, ("replace",), lambda _, layer: layer)
    forced = Forced([torch.full_like(free.state[0], 0.1), None, None, None, None])
    for perturbation, first in ((Nudged(TARGET, 0.1), layers[1:]), (forced, layers)):
        updates.clear()
        model.respond(free, perturbation, Minimizer(order="forward", sweeps=2))
        assert updates == [*first, *layers]


@pytest.mark.parametrize("copies", [1, 2])
def test_without_a_perturbation_a_free_state_stays_where_its_sweeps_left_it(make_dchn, batch, copies):
    model, (x, _) = make_dchn(), batch
    free = model.relax(x, minimizer=Minimizer(sweeps=2, omega=1.7))
    assert free.residual.min() > 0.01
    free = free.twice() if copies == 2 else free
    at_rest = model.respond(free, Nudged(TARGET.repeat(copies, 1), 0.0), Minimizer())
    assert distance(at_rest.state, free.state) <= 1e-14


@pytest.mark.parametrize("kind", PERTURBATIONS)
def test_from_an_equilibrium_it_leads_to_the_minimum_of_the_perturbed_energy(make_dchn, batch, kind):
    model, (x, _) = make_dchn(seed=3, gains=0.8, bias_gain=1.5), batch
    free = model.relax(x, minimizer=CONVERGED)
    make, equivalent = PERTURBATIONS[kind]
    pair = free.twice()
    both = model.respond(pair, both_signs(make), Minimizer(sweeps=300, omega=1.4))
    crossed = 0
    for half, sign in enumerate((-1, 1)):
        state = [layer.chunk(2)[half] for layer in both.state]
        alone = model.respond(free, make(sign), Minimizer(sweeps=300, omega=1.4))
        assert distance(state, alone.state) <= 1e-9
        for layer, value in enumerate(state):
            expected = responses.minimum(
                responses.layers_of(model), x, state, layer, held=free.state, **equivalent(sign)
            )
            torch.testing.assert_close(value, expected, atol=1e-9, rtol=0)
        crossed += sum(int(((s == 0) != (f == 0)).sum()) for s, f in zip(state[:-1], free.state, strict=False))
    assert crossed > 0


def test_it_starts_from_a_free_relaxation_or_two_copies_of_one(make_dchn, batch):
    model, (x, _) = make_dchn(), batch
    free = model.relax(x)
    nudged = model.relax(x, free, Nudged(TARGET, 0.1))
    for start in (nudged, model.respond(free, Nudged(TARGET, 0.1), Minimizer()), free.state):
        with pytest.raises(ValueError, match="starts from a free relaxation"):
            model.respond(start, Nudged(TARGET, 0.1), Minimizer())


def test_samples_that_were_done_early_respond_as_the_others(make_dchn, batch):
    model, (x, _) = make_dchn(), batch
    free = model.relax(x, minimizer=Minimizer(sweeps=500, tolerance=1e-9, omega=1.7))
    whole = model.respond(free, Nudged(TARGET, 0.4), Minimizer())
    for index in range(len(x)):
        one = slice(index, index + 1)
        alone = model.relax(x[one], minimizer=Minimizer(sweeps=500, tolerance=1e-9, omega=1.7))
        expected = model.respond(alone, Nudged(TARGET[one], 0.4), Minimizer())
        assert distance([layer[one] for layer in whole.state], expected.state) <= 1e-10


def test_two_opposite_nudges_cost_the_products_of_one(make_dchn, batch, monkeypatch):
    model, (x, y) = make_dchn(), batch
    calls = record_products(monkeypatch, model, note=lambda _, images: len(images))
    perturbed = Minimizer(order="backward", sweeps=2, omega=1.4)
    model.relax(x)
    products = len(calls)
    create_rule("c-ep", perturbed=perturbed, settle=False)(model, x, y)
    # From the output down: feedbacks of the layers between the first and the last, which has that of the matrix; in the
    # second sweep the first layer's as well, and the drives of what lies above a layer that has moved.
    assert calls[2 * products :] == [len(x)] * (2 + 3 + 2)
