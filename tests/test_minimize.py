"""Minimisers against the slow reference, and the properties that they promise."""

from dataclasses import replace

import pytest
import responses
import torch
from oracles import distance, record_products

from timm_ebl import FREE, PAPER, Clamped, Minimizer, Nudged, Start, create_rule
from timm_ebl.relaxation.descent import SWEEPS_BETWEEN_LOOKS, relative_change
from timm_ebl.relaxation.minimizer import LEAST_TOLERANCE
from timm_ebl.rules import reference

TARGET = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0, 1, 2]]
PHASES = {
    "free": (FREE, {}),
    "nudged towards": (Nudged(TARGET, 0.3), {"beta": 0.3, "y": TARGET}),
    "nudged away": (Nudged(TARGET, -0.3), {"beta": -0.3, "y": TARGET}),
    "damped": (Nudged(TARGET, -0.3, damped=True), {"beta": -0.3, "y": TARGET, "damped": True}),
    "clamped": (Clamped(TARGET), {"clamp": TARGET}),
}
STARTS = {Start.ZERO: reference.zero_state, Start.FEEDFORWARD: responses.feedforward_state}


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


def relax_all(model, x, phase, minimizer, hold_routes=False):
    """A phase from its usual start, or, its routes held, of two copies of a free state, towards and away."""
    if not hold_routes:
        return model.relax(x, None, phase, minimizer)
    return model.respond(model.relax(x, minimizer=Minimizer(sweeps=20)).twice(), phase, minimizer)


def select(phase, rows):
    """The perturbation of some samples."""
    match phase:
        case Nudged(target, beta, damped):
            return Nudged(target[rows], beta[rows] if isinstance(beta, torch.Tensor) else beta, damped)
        case Clamped(target):
            return Clamped(target[rows])
    return phase


TWO = Nudged(TARGET.repeat(2, 1), torch.tensor([-0.3] * 6 + [0.3] * 6, dtype=torch.float64)[:, None])
ALONE = {name: (phase, False) for name, (phase, _) in PHASES.items()} | {"routes held, two copies": (TWO, True)}


@pytest.mark.parametrize("name", ALONE)
def test_a_sample_ends_where_it_would_alone_whatever_else_is_in_its_batch(make_dchn, batch, name):
    model, (x, _) = make_dchn(), batch
    # Images that are far apart in size are far apart in the sweeps that they need.
    x = x * torch.tensor([0.01, 0.3, 1.0, 3.0, 0.1, 10.0], dtype=torch.float64).view(-1, 1, 1, 1)
    phase, held = ALONE[name]
    minimizer = Minimizer(tolerance=1e-7, omega=1.7)
    whole = relax_all(model, x, phase, minimizer, held)
    assert whole.converged.all()
    sweeps = set()
    for chosen in ([0], [2], [5], [4, 1, 5, 0, 3, 2]):
        rows = torch.tensor([block + index for block in range(0, len(whole.input), 6) for index in chosen])
        some = relax_all(model, x[chosen], select(phase, rows), minimizer, held)
        sweeps.add(some.sweeps)
        for found, expected in zip(whole.state, some.state, strict=True):
            torch.testing.assert_close(found[rows], expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(whole.residual[rows], some.residual, rtol=1e-3, atol=1e-15)
        if not held:
            torch.testing.assert_close(whole.energy[rows], some.energy, rtol=1e-12, atol=1e-14)
    assert len(sweeps) > 1
    assert whole.sweeps == max(sweeps)
    if not held:
        assert whole.input is x
        torch.testing.assert_close(model.energy(x, whole), model.energy(x, whole.state), rtol=1e-12, atol=0)


def test_a_sample_that_is_done_stays_as_it_was_then(make_dchn, batch):
    model, (x, _) = make_dchn(), batch
    minimizer = Minimizer(tolerance=1e-6)
    whole, left = model.relax(x, minimizer=minimizer), set(range(len(x)))
    for sweeps in range(SWEEPS_BETWEEN_LOOKS, whole.sweeps + 1, SWEEPS_BETWEEN_LOOKS):
        then = model.relax(x, minimizer=replace(minimizer, sweeps=sweeps, tolerance=None))
        for index in sorted(left):
            if then.residual[index] <= minimizer.tolerance:
                left.remove(index)
                assert distance([s[index] for s in whole.state], [s[index] for s in then.state]) <= 1e-12
    assert not left


def test_a_growing_residual_takes_the_over_relaxation_back_in_its_sample_alone(make_dchn, batch):
    model, (x, _) = make_dchn(gains=0.5), batch
    minimizer = Minimizer(order="synchronous", omega=1.4, tolerance=1e-3)
    whole, fell_back = model.relax(x, minimizer=minimizer), []
    assert whole.converged.all()
    for index, image in enumerate(x.split(1)):
        omega = 1.4
        relaxation = first = model.relax(image, minimizer=replace(minimizer, sweeps=4, tolerance=None))
        while relaxation.residual > minimizer.tolerance:
            further = replace(minimizer, sweeps=4, tolerance=None, omega=omega)
            relaxation = model.relax(image, relaxation, minimizer=further)
            omega = 1.0 if relaxation.residual > first.residual else omega
        fell_back.append(omega == 1)
        assert distance([s[index] for s in whole.state], [s[0] for s in relaxation.state]) <= 1e-12
    assert any(fell_back)
    assert not all(fell_back)


def test_a_tolerance_has_a_generous_number_of_sweeps_of_its_own(make_dchn, batch):
    assert Minimizer().sweeps == 7
    assert Minimizer(tolerance=1e-3).sweeps == 1000
    assert Minimizer(tolerance=1e-3, sweeps=9).sweeps == 9
    model, (x, _) = make_dchn(tolerance=1e-3), batch
    assert model.relax(x).converged.all()
    assert torch.equal(model(x), model.relax(x).output)


def test_a_relaxation_that_ends_before_its_tolerance_says_so(make_dchn, batch):
    model, (x, _) = make_dchn(), batch
    with pytest.warns(RuntimeWarning, match="not come to the tolerance of 1e-12 in 2 sweeps .* allow more sweeps"):
        relaxation = model.relax(x, minimizer=Minimizer(sweeps=2, tolerance=1e-12))
    assert relaxation.sweeps == 2
    assert not relaxation.converged.any()


@pytest.mark.parametrize(
    ("tolerance", "dtype", "autocast", "sentence"),
    [
        (1e-16, torch.float64, False, "1e-16 is below the rounding of float64: give at least 1.8e-15"),
        (1e-7, torch.float32, False, "1e-07 is below the rounding of float32: give at least 9.5e-07"),
        (1e-3, torch.float32, True, "0.001 is below the rounding of bfloat16: give at least 6.2e-02"),
    ],
)
def test_a_tolerance_below_rounding_is_refused(make_dchn, batch, tolerance, dtype, autocast, sentence):
    model, x = make_dchn(dtype=dtype), batch[0].to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), pytest.raises(ValueError, match=sentence):
        model.relax(x, minimizer=Minimizer(tolerance=tolerance))


def test_an_over_relaxation_that_is_0_in_32_bits_is_refused():
    with pytest.raises(ValueError, match="between 0 and 2"):
        Minimizer(omega=1e-300)


@pytest.mark.parametrize(("rule", "phase"), [("tbp", "unrolled"), ("rbp", "adjoint")])
def test_backpropagation_refuses_a_tolerance(make_dchn, batch, rule, phase):
    model, (x, y) = make_dchn(), batch
    with pytest.raises(ValueError, match=rf"fixed number of sweeps, not a tolerance \(0.001\): .* of `{phase}` out"):
        create_rule(rule, **{phase: Minimizer(tolerance=1e-3)})(model, x, y)


@pytest.mark.parametrize("order", ["asynchronous", "forward", "backward"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_least_tolerance_is_met(make_dchn, batch, order, dtype):
    wide = torch.promote_types(dtype, torch.float32)
    model, x = make_dchn(dtype=wide), batch[0].to(wide)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        tolerance = LEAST_TOLERANCE * torch.finfo(dtype).eps
        assert model.relax(x, minimizer=Minimizer(order=order, tolerance=tolerance)).converged.all()


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


def test_16_bits_stay_near_32(make_dchn):
    model = make_dchn(dtype=torch.float32, gains=1.0, sweeps=8, omega=1.5)
    x = torch.randn(6, 2, 16, 16, generator=torch.Generator().manual_seed(1))
    expected = model.relax(x)
    for start in Start:
        with torch.autocast("cpu", torch.bfloat16):
            relaxation = model.relax(x, start)
        assert relaxation.energy.dtype == torch.float32
        assert (relative_change(relaxation.state, expected.state) < 0.05).all()
