"""When a relaxation ends: sweeps, tolerances, residuals."""

from dataclasses import replace

import pytest
import torch
from oracles import distance
from phases import PHASES, TARGET

from timm_ebl import Clamped, Minimizer, Nudged, create_rule
from timm_ebl.relaxation.descent import SWEEPS_BETWEEN_LOOKS, relative_change
from timm_ebl.relaxation.minimizer import LEAST_TOLERANCE


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


def relax_all(model, x, phase, minimizer, linear_response=False):
    """A phase from its usual start, or, its routes held, of two copies of a free state, towards and away."""
    if not linear_response:
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


def test_a_sample_goes_on_until_both_of_its_copies_are_done(make_dchn, batch):
    model, (x, _) = make_dchn(), batch
    minimizer = Minimizer(tolerance=1e-7)
    rest = model.relax(x, minimizer=minimizer).twice()
    strengths = torch.tensor([0.0] * 6 + [0.9] * 6, dtype=torch.float64)[:, None]  # the first copy is done at once
    assert model.relax(rest.input, rest, Nudged(TARGET.repeat(2, 1), strengths), minimizer).converged.all()


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
