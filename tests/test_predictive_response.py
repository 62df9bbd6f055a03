"""The linear response of a predictive coding network: errors go down once, states go up once."""

import pytest
import torch
import torch.nn.functional as F
from predictive import LAYERS, TARGET, images, small_network
from torch import nn

from timm_ebl import Clamped, DenseInteraction, Forced, Minimizer, Nudged
from timm_ebl.energy.graph import Edge, Graph, Layer
from timm_ebl.models.predictive import PredictiveCodingNetwork

ROUND = Minimizer(sweeps=LAYERS, omega=1.0)
LONG = Minimizer(sweeps=20 * LAYERS, omega=1.0)


@pytest.fixture
def model():
    return small_network()


@pytest.fixture
def x():
    return images()


class Skip(PredictiveCodingNetwork):
    """Two hidden layers and an output that both drive."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.ModuleList(DenseInteraction(a, b).double() for a, b in ((128, 6), (6, 5), (5, 3), (6, 3)))
        for part in self.parts:
            part.initialise(1.5, 1.5)

    @property
    def graph(self):
        hidden = Layer((0.0, float("inf")))
        ends = ((None, 0), (0, 1), (1, 2), (0, 2))
        edges = (Edge(part, *pair) for part, pair in zip(self.parts, ends, strict=True))
        return Graph((hidden, hidden, Layer(None)), tuple(edges))


def drives_of(model):
    """The drive into each layer as a function of the layer below, by PyTorch's functions."""

    def hidden(layer):
        return lambda h: F.max_pool2d(F.conv2d(h, layer.weight, layer.bias, padding=1), layer.pool)

    return [*map(hidden, model.layers), lambda h: F.linear(h.flatten(1), model.head.weight, model.head.bias)]


def textbook_round(model, x, free, strength):
    """One round from the free state, under a nudge of the squared error, with autograd's products of Jacobians."""
    drives, below = drives_of(model), (x, *free[:-1])
    before = [drive(h).detach() for drive, h in zip(drives, below, strict=True)]
    error, pulls = strength * (TARGET - before[-1]) / (1 + strength), [None] * LAYERS
    for k in reversed(range(LAYERS - 1)):
        _, pulls[k] = torch.autograd.functional.vjp(drives[k + 1], free[k], error)
        error = (F.relu(before[k] + pulls[k]) - F.relu(before[k])) * (before[k] > 0)
    state = [F.relu(before[0] + pulls[0])]
    for k in range(1, LAYERS):
        change = torch.autograd.functional.jvp(drives[k], free[k - 1], state[-1] - free[k - 1])[1]
        drive = before[k] + change
        last = k == LAYERS - 1
        state.append((drive + strength * TARGET) / (1 + strength) if last else F.relu(drive + pulls[k]))
    return state


def test_a_round_is_that_of_the_textbooks_jacobians(model, x):
    free = model.relax(x)
    found = model.respond(free, Nudged(TARGET, 0.3), ROUND)
    torch.testing.assert_close(list(found.state), textbook_round(model, x, free.state, 0.3), atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize("network", [small_network, Skip])
@pytest.mark.parametrize("kind", ["nudged", "forced"])
def test_its_rounds_end_where_the_asynchronous_sweeps_do(network, kind, x):
    """As long as no unit crosses a bound and no maximum moves to another place."""
    model = network()
    free = model.relax(x)
    forces = [1e-4 * torch.ones_like(layer) for layer in free.state]
    perturbation = Nudged(TARGET, 1e-3) if kind == "nudged" else Forced(forces)
    found, expected = (each(free, perturbation, LONG) for each in (model.respond, relaxed(model)))
    assert not torch.equal(expected.state[0], free.state[0])
    torch.testing.assert_close(found.state, expected.state, atol=1e-11, rtol=1e-9)
    weights = torch.linspace(1, 2, 4, dtype=torch.float64)
    torch.testing.assert_close(model.contrast(found, weights), model.contrast(expected, weights))


def relaxed(model):
    return lambda free, *how: model.relax(free.input, free, *how)


def test_two_responses_differ_as_two_single_ones_do_up_to_beta_cubed(model, x):
    """Their mean moves by the square of beta, which is left out."""
    free = model.relax(x)

    def error(beta):
        strengths = torch.tensor([[-beta]] * 4 + [[beta]] * 4, dtype=torch.float64)
        pair = model.respond(free.twice(), Nudged(TARGET.repeat(2, 1), strengths), ROUND).state
        copies = [layer.chunk(2) for layer in pair]
        single = [model.respond(free, Nudged(TARGET, sign * beta), ROUND).state for sign in (-1, 1)]
        return max((b - a - (q - p)).abs().max() for (a, b), p, q in zip(copies, *single, strict=True))

    assert error(2e-3) / error(1e-3) == pytest.approx(8, rel=0.1)


@pytest.mark.parametrize(("sweeps", "rounds"), [(1, 1), (LAYERS, 1), (LAYERS + 1, 2)])
def test_a_round_stands_for_as_many_sweeps_as_there_are_layers(model, x, sweeps, rounds):
    assert model.respond(model.relax(x), Nudged(TARGET, 0.1), Minimizer(sweeps=sweeps, omega=1.0)).sweeps == rounds


def test_with_a_tolerance_the_rounds_end_at_it(model, x):
    minimizer = Minimizer(sweeps=100 * LAYERS, omega=1.0, tolerance=1e-9)
    found = model.respond(model.relax(x), Nudged(TARGET, 0.1), minimizer)
    assert found.converged.all()
    assert 1 < found.sweeps < 100


def test_under_a_clamp_the_network_relaxes(model, x):
    free = model.relax(x)
    found, expected = (each(free, Clamped(TARGET), ROUND) for each in (model.respond, relaxed(model)))
    assert all(map(torch.equal, found.state, expected.state))


def test_a_response_of_another_state_is_refused(model, x):
    with pytest.raises(ValueError, match="A response starts from a free relaxation of this network"):
        model.respond(model.relax(x).state, Nudged(TARGET, 0.1), ROUND)
