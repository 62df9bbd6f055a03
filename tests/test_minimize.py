"""Minimisers against the slow twin, and the properties that they promise."""

from dataclasses import replace

import pytest
import torch
import twin
from oracles import distance, record_calls

from timm_ebl import FREE, PAPER, Clamped, Minimizer, Nudged, Start
from timm_ebl.minimize import SWEEPS_BETWEEN_LOOKS, relative_change

TARGET = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0, 1, 2]]
PHASES = {
    "free": (FREE, {}),
    "nudged towards": (Nudged(TARGET, 0.3), {"beta": 0.3, "y": TARGET}),
    "nudged away": (Nudged(TARGET, -0.3), {"beta": -0.3, "y": TARGET}),
    "damped": (Nudged(TARGET, -0.3, damped=True), {"beta": -0.3, "y": TARGET, "damped": True}),
    "clamped": (Clamped(TARGET), {"clamp": TARGET}),
}
STARTS = {Start.ZERO: twin.zero_state, Start.FEEDFORWARD: twin.feedforward_state}


def cast(phase, dtype):
    match phase:
        case Nudged(target, beta, damped):
            return Nudged(target.to(dtype), beta, damped)
        case Clamped(target):
            return Clamped(target.to(dtype))
    return phase


def omegas(omega):
    """The over-relaxation of each of five sweeps."""
    return (*omega, *[omega[-1]] * 5) if isinstance(omega, tuple) else (omega,) * 5


@pytest.mark.parametrize("order", twin.GROUPS)
@pytest.mark.parametrize("omega", [1.0, 1.4, (1.9, 1.6, 1.2)])
@pytest.mark.parametrize("phase", PHASES)
def test_every_sweep_ends_where_the_twins_does(make_dchn, batch, order, omega, phase):
    x, _ = batch
    perturbation, equivalent = PHASES[phase]
    model = make_dchn()
    single = make_dchn(dtype=torch.float32).requires_grad_(False)
    single.load_state_dict(model.state_dict())
    params = twin.parameters(model)
    for start, make in STARTS.items():
        state = make(params, x)
        if phase == "clamped":
            state = (*state[:-1], TARGET)
        elif start is Start.FEEDFORWARD:
            state = (*state[:-1], torch.zeros_like(state[-1]))  # where a damped update of the output starts
            state = (*state[:-1], twin.minimum(params, x, state, 4, **equivalent))
        for sweeps in range(1, 6):
            minimizer = Minimizer(order=order, omega=omega, start=start, sweeps=sweeps)
            state = twin.sweep(params, x, state, twin.GROUPS[order], omegas(omega)[sweeps - 1], **equivalent)
            double = model.relax(x, None, perturbation, minimizer)
            assert distance(double.state, state) <= 1e-10
            assert float((double.energy - twin.energy(params, x, state)).abs().max()) <= 1e-10
        # Pooling may choose another of two equal positions in 32 bits, so the trajectory is followed a sweep at a time.
        before = tuple(layer.float() for layer in state)
        after = twin.sweep(params, x, state, twin.GROUPS[order], omegas(omega)[0], **equivalent)
        one = Minimizer(order=order, omega=omega, sweeps=1)
        assert distance(single.relax(x.float(), before, cast(perturbation, torch.float32), one).state, after) <= 1e-5


@pytest.mark.parametrize("order", twin.GROUPS)
@pytest.mark.parametrize("omega", [1.0, 1.4, (1.9, 1.6, 1.2)])
@pytest.mark.parametrize("phase", PHASES)
def test_every_sweep_from_a_given_state_ends_where_the_twins_does(make_dchn, batch, generator, order, omega, phase):
    x, _ = batch
    perturbation, equivalent = PHASES[phase]
    model, single = make_dchn(), make_dchn(dtype=torch.float32)
    single.load_state_dict(model.state_dict())
    params = twin.parameters(model)
    start = tuple(torch.rand(s, generator=generator, dtype=torch.float64) for s in model.state_shapes(x))
    state = (*start[:-1], TARGET) if phase == "clamped" else start
    for sweeps in range(1, 6):
        state = twin.sweep(params, x, state, twin.GROUPS[order], omegas(omega)[sweeps - 1], **equivalent)
        minimizer = Minimizer(order=order, omega=omega, sweeps=sweeps)
        assert distance(model.relax(x, start, perturbation, minimizer).state, state) <= 1e-10
        rounded = tuple(layer.float() for layer in start)
        found = single.relax(x.float(), rounded, cast(perturbation, torch.float32), minimizer)
        assert distance(found.state, state) <= 1e-5


def test_images_that_no_pooling_divides_are_relaxed_as_by_the_twin(make_dchn, generator):
    model = make_dchn(img_size=(17, 23))
    x = torch.randn(6, 2, 17, 23, generator=generator, dtype=torch.float64)
    params = twin.parameters(model)
    state = twin.zero_state(params, x)
    for _ in range(20):
        state = twin.sweep(params, x, state, twin.GROUPS["asynchronous"], beta=-0.3, y=TARGET)
    found = model.relax(x, Start.ZERO, Nudged(TARGET, -0.3), Minimizer(sweeps=20, omega=1.0))
    assert distance(found.state, state) <= 1e-10


def test_sixty_sweeps_in_32_bits_end_where_the_twins_do(make_dchn, batch):
    x, _ = batch
    model = make_dchn(gains=1.0)
    single = make_dchn(dtype=torch.float32, gains=1.0)
    single.load_state_dict(model.state_dict())
    params = twin.parameters(model)
    state = twin.zero_state(params, x)
    for _ in range(60):
        state = twin.sweep(params, x, state, twin.GROUPS["asynchronous"])
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


def test_a_fixed_number_of_sweeps_is_made_whatever_the_residual(make_dchn, batch):
    model, (x, _) = make_dchn(gains=0.2), batch
    relaxation = model.relax(x, minimizer=Minimizer(sweeps=40))
    assert relaxation.sweeps == 40
    assert relaxation.converged.all()


def test_a_tolerance_ends_the_relaxation_at_the_first_look_that_meets_it(make_dchn, batch):
    model, (x, _) = make_dchn(), batch
    relaxation = model.relax(x, minimizer=Minimizer(sweeps=500, tolerance=1e-6))
    assert 1 < relaxation.sweeps < 500
    assert (relaxation.residual <= 1e-6).all()
    assert relaxation.converged.all()
    before = model.relax(x, minimizer=Minimizer(sweeps=relaxation.sweeps - SWEEPS_BETWEEN_LOOKS))
    assert (before.residual > 1e-6).any()


@pytest.mark.parametrize("phase", PHASES)
def test_samples_that_leave_the_batch_end_where_they_would_alone(make_dchn, batch, phase):
    model, (x, _) = make_dchn(), batch
    minimizer = Minimizer(sweeps=500, tolerance=1e-9, omega=1.7)
    perturbation, _ = PHASES[phase]
    whole = model.relax(x, None, perturbation, minimizer)
    assert whole.input is x
    sweeps = set()
    for index in range(len(x)):
        samples = torch.tensor([index])
        alone = model.relax(x[samples], None, perturbation.select(samples), minimizer)
        sweeps.add(alone.sweeps)
        for found, expected in zip(whole.state, alone.state, strict=True):
            torch.testing.assert_close(found[samples], expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(whole.energy[samples], alone.energy, rtol=1e-12, atol=0)
        torch.testing.assert_close(whole.residual[samples], alone.residual, rtol=1e-3, atol=1e-15)
    assert len(sweeps) > 1
    assert whole.sweeps == max(sweeps)
    torch.testing.assert_close(model.energy(x, whole), model.energy(x, whole.state), rtol=1e-12, atol=0)


def test_a_growing_residual_takes_the_over_relaxation_back(make_dchn, batch):
    model, (x, _) = make_dchn(), batch
    synchronous = Minimizer(order="synchronous", sweeps=400, omega=1.7, tolerance=1e-6)
    relaxation = model.relax(x, minimizer=synchronous)
    assert relaxation.omega == 1
    assert relaxation.residual.max() < model.relax(x, minimizer=replace(synchronous, tolerance=None)).residual.max()
    assert model.relax(x, minimizer=Minimizer(sweeps=500, tolerance=1e-6)).omega == Minimizer.omega[-1]


def test_the_most_sweeps_end_a_relaxation_that_does_not_converge(make_dchn, batch):
    model, (x, _) = make_dchn(), batch
    relaxation = model.relax(x, minimizer=Minimizer(sweeps=2, tolerance=1e-12))
    assert relaxation.sweeps == 2
    assert not relaxation.converged.any()


def test_the_residual_is_the_relative_size_of_the_last_update(make_dchn, batch):
    model, (x, _) = make_dchn(), batch
    before = model.relax(x, minimizer=Minimizer(sweeps=3)).state
    after = model.relax(x, minimizer=Minimizer(sweeps=4))
    flat = [torch.cat([layer.flatten(1) for layer in state], 1) for state in (before, after.state)]
    expected = (flat[1] - flat[0]).norm(dim=1) / flat[1].norm(dim=1)
    torch.testing.assert_close(after.residual, expected, rtol=1e-9, atol=0)
    assert (relative_change(after.state, after.state) == 0).all()


def test_each_sample_has_its_own_residual_and_converges_on_its_own(make_dchn, batch):
    model, (x, _) = make_dchn(), batch
    scales = torch.tensor([0.0, 0.01, 0.1, 1.0, 3.0, 10.0], dtype=torch.float64).view(-1, 1, 1, 1)
    x = x * scales
    minimizer = Minimizer(sweeps=9)
    whole = model.relax(x, minimizer=minimizer)
    alone = torch.cat([model.relax(image[None], minimizer=minimizer).residual for image in x])
    torch.testing.assert_close(whole.residual, alone, rtol=1e-6, atol=0)
    for tolerance, bound in ((None, 1e-3), (float(alone.median()), float(alone.median()))):
        converged = replace(whole, tolerance=tolerance).converged
        assert torch.equal(converged, whole.residual <= bound)
    assert converged.any()
    assert not converged.all()


@pytest.mark.parametrize("phase", PHASES)
def test_at_convergence_every_layer_is_at_its_minimum(make_dchn, batch, phase):
    model, (x, _) = make_dchn(), batch
    perturbation, equivalent = PHASES[phase]
    relaxation = model.relax(x, None, perturbation, Minimizer(sweeps=2000, tolerance=1e-12))
    for layer, value in enumerate(relaxation.state):
        expected = twin.minimum(twin.parameters(model), x, relaxation.state, layer, **equivalent)
        torch.testing.assert_close(value, expected, atol=1e-9, rtol=0)


def test_a_feed_forward_start_makes_no_convolution_twice(make_dchn, batch, monkeypatch):
    model, (x, _) = make_dchn(), batch
    calls = record_calls(monkeypatch, type(model.layers[0]), ("drive",), lambda layer, _: layer)
    model.relax(x, minimizer=Minimizer(sweeps=10))
    counts = [calls.count(layer) for layer in model.layers]
    # The input's drive once; the others once a sweep, but for one more to start and, for layer 3, to end with.
    assert counts == [1, 11, 11, 11]


def test_a_minimiser_that_goes_further_ends_where_one_of_all_the_sweeps_does(make_dchn, batch):
    model, (x, _) = make_dchn(), batch
    few = Minimizer(sweeps=3, omega=(1.9, 1.8, 1.7, 1.6, 1.5))
    first = model.relax(x, minimizer=few)
    for more in (1, 4):
        found = model.relax(x, first, minimizer=few.further(more))
        assert distance(found.state, model.relax(x, minimizer=replace(few, sweeps=3 + more)).state) <= 1e-14


def test_16_bits_stay_near_32(make_dchn):
    model = make_dchn(dtype=torch.float32, gains=1.0, sweeps=8, omega=1.5)
    x = torch.randn(6, 2, 16, 16, generator=torch.Generator().manual_seed(1))
    expected = model.relax(x)
    for start in Start:
        with torch.autocast("cpu", torch.bfloat16):
            relaxation = model.relax(x, start)
        assert relaxation.energy.dtype == torch.float32
        assert (relative_change(relaxation.state, expected.state) < 0.05).all()
