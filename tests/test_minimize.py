"""Minimisers against the slow reference, and the properties that they promise."""

from dataclasses import replace

import pytest
import responses
import torch
from oracles import distance, record_products
from phases import PHASES, TARGET, cast

from timm_ebl import FREE, PAPER, Clamped, Minimizer, Nudged, Start
from timm_ebl.relaxation.descent import relative_change
from timm_ebl.rules import reference

STARTS = {Start.ZERO: reference.zero_state, Start.FEEDFORWARD: responses.feedforward_state}


def omegas(omega):
    """The over-relaxation of each of five sweeps."""
    return (*omega, *[omega[-1]] * 5) if isinstance(omega, tuple) else (omega,) * 5


@pytest.mark.parametrize("order", responses.GROUPS)
@pytest.mark.parametrize("omega", [1.0, 1.4, (1.9, 1.6, 1.2)])
@pytest.mark.parametrize("phase", PHASES)
def test_every_sweep_ends_where_the_references_does(make_dchn, batch, order, omega, phase):
    x, _ = batch
    perturbation, equivalent = PHASES[phase]
    model = make_dchn()
    single = make_dchn(dtype=torch.float32).requires_grad_(False)
    single.load_state_dict(model.state_dict())
    params = responses.layers_of(model)
    for start, make in STARTS.items():
        state = make(params, x)
        if phase == "clamped":
            state = (*state[:-1], TARGET)
        elif start is Start.FEEDFORWARD:
            state = (*state[:-1], torch.zeros_like(state[-1]))  # where a damped update of the output starts
            state = (*state[:-1], responses.minimum(params, x, state, 4, **equivalent))
        for sweeps in range(1, 6):
            minimizer = Minimizer(order=order, omega=omega, start=start, sweeps=sweeps)
            state = responses.sweep(params, x, state, responses.GROUPS[order], omegas(omega)[sweeps - 1], **equivalent)
            double = model.relax(x, None, perturbation, minimizer)
            assert distance(double.state, state) <= 1e-10
            assert float((double.energy - reference.energy(params, x, state)).abs().max()) <= 1e-10
        # Pooling may choose another of two equal positions in 32 bits, so the trajectory is followed a sweep at a time.
        before = tuple(layer.float() for layer in state)
        after = responses.sweep(params, x, state, responses.GROUPS[order], omegas(omega)[0], **equivalent)
        one = Minimizer(order=order, omega=omega, sweeps=1)
        assert distance(single.relax(x.float(), before, cast(perturbation, torch.float32), one).state, after) <= 1e-5


@pytest.mark.parametrize("order", responses.GROUPS)
@pytest.mark.parametrize("omega", [1.0, 1.4, (1.9, 1.6, 1.2)])
@pytest.mark.parametrize("phase", PHASES)
def test_every_sweep_from_a_given_state_ends_where_the_references_does(
    make_dchn, batch, generator, order, omega, phase
):
    x, _ = batch
    perturbation, equivalent = PHASES[phase]
    model, single = make_dchn(), make_dchn(dtype=torch.float32)
    single.load_state_dict(model.state_dict())
    params = responses.layers_of(model)
    start = tuple(torch.rand(s, generator=generator, dtype=torch.float64) for s in model.state_shapes(x))
    state = (*start[:-1], TARGET) if phase == "clamped" else start
    for sweeps in range(1, 6):
        state = responses.sweep(params, x, state, responses.GROUPS[order], omegas(omega)[sweeps - 1], **equivalent)
        minimizer = Minimizer(order=order, omega=omega, sweeps=sweeps)
        assert distance(model.relax(x, start, perturbation, minimizer).state, state) <= 1e-10
        rounded = tuple(layer.float() for layer in start)
        found = single.relax(x.float(), rounded, cast(perturbation, torch.float32), minimizer)
        assert distance(found.state, state) <= 1e-5


def test_images_that_no_pooling_divides_are_relaxed_as_by_the_reference(make_dchn, generator):
    model = make_dchn(img_size=(17, 23))
    x = torch.randn(6, 2, 17, 23, generator=generator, dtype=torch.float64)
    params = responses.layers_of(model)
    state = reference.zero_state(params, x)
    for _ in range(20):
        state = responses.sweep(params, x, state, responses.GROUPS["asynchronous"], beta=-0.3, y=TARGET)
    found = model.relax(x, Start.ZERO, Nudged(TARGET, -0.3), Minimizer(sweeps=20, omega=1.0))
    assert distance(found.state, state) <= 1e-10


def test_sixty_sweeps_in_32_bits_end_where_the_references_do(make_dchn, batch):
    x, _ = batch
    model = make_dchn(gains=1.0)
    single = make_dchn(dtype=torch.float32, gains=1.0)
    single.load_state_dict(model.state_dict())
    params = responses.layers_of(model)
    state = reference.zero_state(params, x)
    for _ in range(60):
        state = responses.sweep(params, x, state, responses.GROUPS["asynchronous"])
    assert distance(model.relax(x, minimizer=PAPER).state, state) <= 1e-10
    assert distance(single.relax(x.float(), minimizer=PAPER).state, state) <= 1e-5


def energies(model, x, state, perturbation, minimizer, sweeps):
    """Perturbed energy before and after each of a number of sweeps."""
    state = (*state[:-1], perturbation.start(state[-1]))
    values = [model.energy(x, state) + perturbation.cost(state)]
    for _ in range(sweeps):
        state = model.relax(x, state, perturbation, minimizer).state
        values.append(model.energy(x, state) + perturbation.cost(state))
    return torch.stack(values).detach()


@pytest.mark.parametrize("order", ["asynchronous", "forward", "backward"])
@pytest.mark.parametrize("seed", range(30))
def test_the_energy_never_rises_along_sweeps_that_update_neighbours_in_turn(make_dchn, seed, order):
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return low + (high - low) * float(torch.rand((), generator=generator))

    widths = tuple(int(draw(2, 12)) for _ in range(int(draw(1, 5))))
    model = make_dchn(seed, widths=widths, gains=draw(0.3, 4), bias_gain=draw(0, 2))
    x = torch.randn(4, 2, 16, 16, generator=generator, dtype=torch.float64) * draw(0.1, 3)
    state = tuple(torch.rand(s, generator=generator, dtype=torch.float64) for s in model.state_shapes(x))
    target = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0]]
    minimizer = Minimizer(order=order, sweeps=1, omega=draw(0.05, 1.95))
    phases = (FREE, Nudged(target, draw(0, 3)), Nudged(target, draw(-0.95, 0)), Clamped(target))
    for perturbation in phases:
        values = energies(model, x, state, perturbation, minimizer, 15)
        assert (values.diff(dim=0) <= 1e-11 * values.abs().max()).all()
        assert (values[-1] < values[0]).all()


def test_the_energy_can_rise_along_synchronous_sweeps(make_dchn, batch):
    x, _ = batch
    model = make_dchn(gains=4.0)
    state = tuple(torch.zeros(shape, dtype=torch.float64) for shape in model.state_shapes(x))
    assert (
        energies(model, x, state, FREE, Minimizer(order="synchronous", sweeps=1, omega=1.0), 15).diff(dim=0) > 0
    ).any()


def test_the_synchronous_order_can_circle_for_ever_where_the_asynchronous_one_converges(make_dchn, batch):
    x, _ = batch
    model = make_dchn(gains=4.0)
    residuals = {}
    for order in ("asynchronous", "synchronous"):
        minimizer = Minimizer(order=order, sweeps=300, omega=1.0, start="zero")
        residuals[order] = model.relax(x, minimizer=minimizer).residual
    assert (residuals["asynchronous"] < 1e-9).all()
    assert (residuals["synchronous"] > 0.1).any()


@pytest.mark.parametrize("phase", PHASES)
def test_at_convergence_every_layer_is_at_its_minimum(make_dchn, batch, phase):
    model, (x, _) = make_dchn(), batch
    perturbation, equivalent = PHASES[phase]
    relaxation = model.relax(x, None, perturbation, Minimizer(sweeps=2000, tolerance=1e-12))
    for layer, value in enumerate(relaxation.state):
        expected = responses.minimum(responses.layers_of(model), x, relaxation.state, layer, **equivalent)
        torch.testing.assert_close(value, expected, atol=1e-9, rtol=0)


def test_a_feed_forward_start_makes_no_convolution_twice(make_dchn, batch, monkeypatch):
    model, (x, _) = make_dchn(), batch
    calls = record_products(monkeypatch, model, ("up",))
    model.relax(x, minimizer=Minimizer(sweeps=10))
    counts = [calls.count(layer) for layer in range(4)]
    # The input's drive once; the others once a sweep, but for one more to start and, for layer 3, to end with.
    assert counts == [1, 11, 11, 11]


def test_a_minimiser_that_goes_further_ends_where_one_of_all_the_sweeps_does(make_dchn, batch):
    model, (x, _) = make_dchn(), batch
    few = Minimizer(sweeps=3, omega=(1.9, 1.8, 1.7, 1.6, 1.5))
    first = model.relax(x, minimizer=few)
    for more in (1, 4):
        found = model.relax(x, first, minimizer=few.further(more))
        assert distance(found.state, model.relax(x, minimizer=replace(few, sweeps=3 + more)).state) <= 1e-14


@torch.no_grad()
def test_a_sweep_has_the_over_relaxation_of_the_last_one(make_dchn, batch):
    model, (x, _) = make_dchn(), batch
    start = model.relax(x, minimizer=Minimizer(sweeps=2)).state
    for omegas, last in (((1.9, 1.5, 1.2), 1.2), ((1.9, 1.5, 1.2, 1.1), 1.2)):
        swept = model.sweep(x, start, Minimizer(sweeps=3, omega=omegas))
        assert distance(swept, model.relax(x, start, minimizer=Minimizer(sweeps=1, omega=last)).state) <= 1e-14


def test_16_bits_stay_near_32(make_dchn):
    model = make_dchn(dtype=torch.float32, gains=1.0, sweeps=8, omega=1.5)
    x = torch.randn(6, 2, 16, 16, generator=torch.Generator().manual_seed(1))
    expected = model.relax(x)
    for start in Start:
        with torch.autocast("cpu", torch.bfloat16):
            relaxation = model.relax(x, start)
        assert relaxation.energy.dtype == torch.float32
        assert (relative_change(relaxation.state, expected.state) < 0.05).all()
