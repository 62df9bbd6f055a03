"""Records of a relaxation: going on from them, several as one, and what they hold."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from oracles import distance

from timm_ebl import Minimizer, Nudged, create_rule
from timm_ebl.relaxation.record import Relaxation

TARGET = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0, 1, 2]]


def test_going_on_from_a_relaxation_is_going_on_from_its_state(make_dchn, batch):
    model, (x, _) = make_dchn(), batch
    first = model.relax(x, minimizer=Minimizer(sweeps=3, omega=1.7))
    whole = model.relax(x, minimizer=Minimizer(sweeps=7, omega=1.7))
    for start in (first, first.state):
        assert distance(model.relax(x, start, minimizer=Minimizer(sweeps=4, omega=1.7)).state, whole.state) <= 1e-14


def test_settling_is_going_on_without_a_measure_of_it(make_dchn, batch):
    model, (x, _) = make_dchn(), batch
    minimizer = Minimizer(sweeps=3, omega=(1.9, 1.8, 1.7, 1.6, 1.5))
    free = model.relax(x, minimizer=minimizer)
    settled, expected = model.settle(free, minimizer), model.relax(x, minimizer=replace(minimizer, sweeps=5))
    assert distance(settled.state, expected.state) <= 1e-14
    assert distance(settled._cache.potentials, expected._cache.potentials) <= 1e-14
    assert settled.energy is None
    assert settled.residual is None
    with pytest.raises(ValueError, match="Settling measures no residual"):
        settled.converged  # noqa: B018
    further = Minimizer(sweeps=2)
    going_on = [model.relax(x, start, minimizer=further) for start in (settled, expected)]
    assert distance(*(relaxation.state for relaxation in going_on)) <= 1e-14


def test_a_repeated_relaxation_holds_every_sample_again_block_after_block(make_dchn, batch):
    model, (x, _) = make_dchn(), batch
    once = model.relax(x, minimizer=Minimizer(tolerance=1e-2))
    twice = once.twice()
    for name in ("input", "energy", "residual", "output", "converged"):
        for block in getattr(twice, name).chunk(2):
            assert torch.equal(block, getattr(once, name))
    for repeated, layer in zip(twice.state, once.state, strict=True):
        assert all(torch.equal(block, layer) for block in repeated.chunk(2))
    assert (twice.sweeps, twice.tolerance) == (once.sweeps, once.tolerance)

    further = Minimizer(sweeps=2)
    continued, expected = model.relax(twice.input, twice, minimizer=further), model.relax(x, once, minimizer=further)
    for repeated, layer in zip(continued.state, expected.state, strict=True):
        for block in repeated.chunk(2):
            torch.testing.assert_close(block, layer, atol=1e-13, rtol=0)


def test_two_phases_in_one_batch_are_the_two_phases(make_dchn, batch):
    model, (x, _) = make_dchn(), batch
    free = model.relax(x)
    pair = free.twice()
    beta = torch.tensor([-0.2] * 6 + [0.2] * 6, dtype=torch.float64)[:, None]
    both = model.relax(pair.input, pair, Nudged(TARGET.repeat(2, 1), beta))
    for half, sign in zip((0, 1), (-1, 1), strict=True):
        alone = model.relax(x, free, Nudged(TARGET, sign * 0.2))
        assert distance([layer.chunk(2)[half] for layer in both.state], alone.state) <= 1e-13


def test_a_relaxation_leaves_nothing_behind(make_dchn, batch):
    model, (x, _) = make_dchn(), batch
    keys = set(vars(model))
    first = model.relax(x)
    model.relax(-x)
    assert all(torch.equal(a, b) for a, b in zip(model.relax(x).state, first.state, strict=True))
    assert set(vars(model)) == keys
    assert not any(layer.requires_grad for layer in first.state)


def test_two_batches_can_be_relaxed_in_alternation(make_dchn, batch):
    model, (x, _) = make_dchn(), batch
    batches, one = (x, 1 - 2 * x), Minimizer(sweeps=1, omega=1.7)
    under_way = [model.relax(images, minimizer=one) for images in batches]
    for _ in range(6):
        under_way = [model.relax(r.input, r, minimizer=one) for r in under_way]
    for images, found in zip(batches, under_way, strict=True):
        assert distance(found.state, model.relax(images, minimizer=Minimizer(sweeps=7, omega=1.7)).state) <= 1e-13


def test_a_state_changed_in_place_is_not_taken_for_the_one_that_was_found(make_dchn, batch):
    model, (x, _) = make_dchn(), batch
    for change in (lambda layer: layer.mul_(0.5), lambda layer: layer.zero_()):
        free = model.relax(x)
        change(free.state[1])
        fresh = tuple(layer.clone() for layer in free.state)
        torch.testing.assert_close(model.energy(x, free), model.energy(x, fresh))
        for made in (free, free.twice()):
            alike = model.relax(made.input, tuple(layer.clone() for layer in made.state))
            assert distance(model.relax(made.input, made).state, alike.state) <= 1e-14
        with pytest.raises(ValueError, match="changed in place: relax anew"):
            model.contrast(free, torch.ones(6))
        with pytest.raises(ValueError, match="as it ended"):
            model.respond(free, Nudged(TARGET, 0.1), Minimizer())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_copies_and_pickles_of_a_relaxation_hold_what_it_found(make_dchn, batch, dtype):
    model, x = make_dchn(dtype=dtype), batch[0].to(dtype)
    free = model.relax(x, minimizer=Minimizer(sweeps=5)).twice()
    for copied in (copy.deepcopy(free), copy.copy(free), pickle.loads(pickle.dumps(free))):
        assert all(torch.equal(a, b) for a, b in zip(copied.state, free.state, strict=True))
        assert torch.equal(copied.converged, free.converged)
        assert copied.sweeps == 5
        torch.testing.assert_close(model.energy(copied.input, copied), free.energy)
    assert len(pickle.dumps(free)) < 1.5 * sum(t.nbytes for t in (free.input, *free.state)) + 5000


def routes(relaxation):
    """The pooling routes of the convolutions."""
    return [drive.route for drive in relaxation._cache.drives[:-1]]


def test_held_routes_stay_those_of_the_start(make_dchn, batch):
    model, (x, _) = make_dchn(), batch
    free = model.relax(x)
    nudge = Nudged(TARGET, 5.0)
    held = model.respond(free, nudge, Minimizer())
    followed = model.relax(x, free, nudge)
    assert all(torch.equal(a, b) for a, b in zip(routes(free), routes(held), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(routes(free), routes(followed), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_answer_is_the_same_by_every_way_of_asking(make_live, batch, dtype):
    model, x = make_live(dtype=dtype, sweeps=2).eval(), batch[0].to(dtype)
    free = model.relax(x)
    same = {"atol": 1e-6 if dtype == torch.float32 else 1e-13, "rtol": 0}
    assert not torch.allclose(free.output, free.state[-1])
    torch.testing.assert_close(free.output, model.head(free.state[-2].flatten(1)), **same)
    with torch.no_grad():
        torch.testing.assert_close(model(x), free.output, **same)
    torch.testing.assert_close(model(x).detach(), free.output, **same)
    torch.testing.assert_close(model.answer(x), free.output, **same)
    labels = torch.zeros(len(x), dtype=torch.int64)
    torch.testing.assert_close(create_rule("c-ep")(model, x, labels).output, free.output, **same)
    assert torch.equal(pickle.loads(pickle.dumps(free)).output, free.output)


def test_copies_of_an_input_that_was_changed_in_place_know_nothing_of_it(make_dchn, batch):
    model, x = make_dchn(), batch[0].clone()
    free = model.relax(x)
    x.add_(1)
    twice = free.twice()
    torch.testing.assert_close(model.energy(twice.input, twice), model.energy(twice.input, twice.state))
    alike = model.relax(twice.input, twice.state)
    torch.testing.assert_close(model.relax(twice.input, twice).energy, alike.energy)
    with pytest.raises(ValueError, match="relax anew"):
        model.respond(twice, Nudged(TARGET.repeat(2, 1), 0.1), Minimizer())


def test_a_pair_of_other_inputs_or_parameters_knows_nothing_of_them(make_dchn, batch):
    model, (x, _) = make_dchn(), batch
    first = model.relax(x)
    for second in (model.relax(x + 1), make_dchn(seed=1).relax(x), pickle.loads(pickle.dumps(first))):
        for pair in (Relaxation.pair(first, second), Relaxation.pair(second, first)):
            torch.testing.assert_close(model.energy(pair.input, pair), model.energy(pair.input, pair.state))
            with pytest.raises(ValueError, match="relax anew"):
                model.contrast(pair, torch.ones(12))


def test_an_empty_name_is_no_start(make_dchn, batch):
    with pytest.raises(ValueError, match="Unknown start ''"):
        make_dchn().relax(batch[0], "")


def test_in_inference_mode_a_changed_input_has_new_drives(make_dchn, batch):
    model, x = make_dchn(), batch[0]
    with torch.inference_mode():
        x = x.clone()
        free = model.relax(x)
        x.mul_(0.5)
        again, expected = model.relax(x, free), model.relax(x, free.state)
        assert distance(again.state, expected.state) == 0


def test_a_network_of_another_type_has_other_drives(make_dchn, batch):
    model, (x, _) = make_dchn(), batch
    free = model.relax(x)
    model.float()
    state = tuple(layer.float() for layer in free.state)
    again, expected = model.relax(x, free).state, model.relax(x.float(), state).state
    assert distance(again, expected) <= 1e-5
    with pytest.raises(ValueError, match="under the same parameters"):
        model.respond(free, Nudged(TARGET, 0.1), Minimizer())
