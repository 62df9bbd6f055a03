"""Energies over graphs of layers: colourings, the energy that never rises, autograd, skips through every rule."""

from dataclasses import replace

import pytest
import torch
from dense import DenseHopfield
from graphs import GraphNetwork, random_graph, random_state, residual_graph, slow_energy
from oracles import distance, record_calls, signs_for

from timm_ebl import (
    FREE,
    Clamped,
    Interaction,
    Minimizer,
    Nudged,
    create_backward,
    create_rule,
    equilibrium,
    list_rules,
    register_order,
)
from timm_ebl.energy.graph import Edge, Graph, Layer
from timm_ebl.models.interactions import ConvInteraction, DenseInteraction
from timm_ebl.relaxation import order
from timm_ebl.relaxation.order import asynchronous
from timm_ebl.relaxation.response import ResponsePhase

TARGET = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0]]


@pytest.fixture
def x(generator):
    return torch.randn(4, 2, 8, 8, generator=generator, dtype=torch.float64)


def test_a_chain_is_coloured_as_in_the_paper():
    graph = Graph.chain([ConvInteraction(1, 1)] * 4 + [DenseInteraction(1, 1)])
    assert asynchronous(graph.neighbours) == ((0, 2, 4), (1, 3))


@pytest.mark.parametrize("seed", range(40))
def test_no_two_neighbours_share_a_colour_and_the_energy_never_rises(seed):
    generator = torch.Generator().manual_seed(seed)
    model = GraphNetwork(random_graph(seed), gain=float(torch.rand((), generator=generator)) * 4, seed=seed)
    for group in asynchronous(model.graph.neighbours):
        assert not any(set(group) & model.graph.neighbours[layer] for layer in group)
    x = torch.randn(4, 2, 12, 12, generator=generator, dtype=torch.float64)
    omega = 0.05 + 1.9 * float(torch.rand((), generator=generator))
    for name in ("asynchronous", "backward"):
        for perturbation in (FREE, Nudged(TARGET, 0.5), Nudged(TARGET, -0.8), Clamped(TARGET)):
            *hidden, output = random_state(model, x, generator)
            state = (*hidden, perturbation.start(output))
            energies = [model.energy(x, state) + perturbation.cost(state)]
            for _ in range(8):
                state = model.relax(x, state, perturbation, Minimizer(order=name, sweeps=1, omega=omega)).state
                energies.append(model.energy(x, state) + perturbation.cost(state))
            energies = torch.stack(energies).detach()
            assert (energies.diff(dim=0) <= 1e-11 * (1 + energies.abs().max())).all()


def test_two_colours_let_the_energy_of_a_residual_network_rise(x, generator, monkeypatch):
    monkeypatch.setattr(order._ORDERS, "_entries", dict(order._ORDERS._entries))

    @register_order
    def odd_and_even(neighbours):
        return tuple(range(0, len(neighbours), 2)), tuple(range(1, len(neighbours), 2))

    # The skip joins the layers 1 and 3, which are updated together.
    model, rises = GraphNetwork(residual_graph()), False
    with torch.no_grad():
        model.graph.interactions[5].weight.mul_(-20)
    state = random_state(model, x, generator)
    for _ in range(20):
        before = model.energy(x, state)
        state = model.relax(x, state, minimizer=Minimizer(order="odd_and_even", sweeps=1, omega=1.0)).state
        rises |= bool((model.energy(x, state) > before + 1e-9).any())
    assert rises


@pytest.mark.parametrize("seed", range(10))
def test_energy_and_field_are_those_of_the_edges(seed, generator):
    model = GraphNetwork(random_graph(seed), seed=seed)
    x = torch.randn(4, 2, 12, 12, generator=generator, dtype=torch.float64)
    state = tuple(layer.requires_grad_() for layer in random_state(model, x, generator))
    expected = slow_energy(model.graph, x, state)
    torch.testing.assert_close(model.energy(x, state), expected, atol=1e-11, rtol=1e-11)
    # At the minimum over one layer, -dE/ds is 0 or points beyond the bound.
    gradients = torch.autograd.grad(expected.sum(), state)
    swept = model.sweep(x, state, Minimizer(order="synchronous", sweeps=1, omega=1.0))
    for layer, s, gradient, new in zip(model.graph.layers, state, gradients, swept, strict=True):
        torch.testing.assert_close(new, layer.clip(s - gradient), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("copies", [1, 2])
def test_the_contrast_has_the_gradient_of_the_energies(x, generator, copies):
    model = GraphNetwork(residual_graph())
    free = model.relax(x)
    free = free.twice() if copies == 2 else free
    nudge = Nudged(
        TARGET.repeat(copies, 1), torch.tensor([[-0.5], [0.5]], dtype=torch.float64)[:copies].repeat_interleave(4, 0)
    )
    relaxation = model.relax(free.input, free, nudge)
    weights = torch.randn(4 * copies, generator=generator, dtype=torch.float64)
    inputs = [free.input.requires_grad_(), *model.parameters()]
    found = torch.autograd.grad(model.contrast(relaxation, weights), inputs)
    expected = torch.autograd.grad((weights * slow_energy(model.graph, free.input, relaxation.state)).sum(), inputs)
    torch.testing.assert_close(found, expected, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("rule", list_rules())
def test_every_rule_trains_a_network_with_skips(x, rule):
    model = GraphNetwork(residual_graph(bounds=(0.0, 1.0)), gain=0.7)
    y = torch.tensor([0, 1, 2, 0])
    rule = create_rule(rule)
    rule(model, x, y, **signs_for(rule, x)).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in model.parameters())


def test_the_linear_response_of_a_network_without_pooling_is_exact_between_the_bounds(x):
    model = GraphNetwork(residual_graph(), gain=0.5)
    converged = Minimizer(tolerance=1e-13, sweeps=5000, omega=1.2)
    free, nudge = model.relax(x, minimizer=converged), Nudged(TARGET, 0.3)
    response = model.respond(free, nudge, Minimizer(sweeps=400, omega=1.2))
    assert distance(response.state, model.relax(x, free, nudge, converged).state) <= 1e-9


def test_a_response_leaves_out_at_first_the_layers_that_the_input_alone_drives(x, monkeypatch):
    model = GraphNetwork(residual_graph())
    free = model.relax(x)
    updates = record_calls(monkeypatch, ResponsePhase, ("replace",), lambda _, layer: layer)
    model.respond(free, Nudged(TARGET, 0.1), Minimizer(order="forward", sweeps=2))
    assert updates == [1, 2, 3, 4, 0, 1, 2, 3, 4]  # layer 1 has a skip from the input, but is driven by layer 0 too


@pytest.mark.parametrize("order", ["asynchronous", "synchronous", "backward"])
def test_an_answer_of_a_network_with_skips_is_the_relaxations(order, generator):
    for seed in range(10):
        model = GraphNetwork(random_graph(seed), seed=seed)
        x = torch.randn(4, 2, 12, 12, generator=generator, dtype=torch.float64)
        minimizer = Minimizer(order=order, sweeps=2)
        torch.testing.assert_close(
            model.answer(x, minimizer), model.relax(x, minimizer=minimizer).output, atol=1e-13, rtol=0
        )


def test_a_loss_is_differentiated_through_skips(x):
    model = GraphNetwork(residual_graph(), gain=0.5)
    model.minimizer = Minimizer(tolerance=1e-13, sweeps=5000, omega=1.2)
    labels = torch.tensor([0, 1, 2, 0])
    found = {}
    for name, options in {
        "ep": {"beta": 1e-3, "perturbed": Minimizer(sweeps=400, omega=1.2)},
        "tbp": {"unrolled": Minimizer(sweeps=400, omega=1.0)},
    }.items():
        (output,) = equilibrium(model, x, create_backward(name, **options))
        loss = torch.nn.functional.cross_entropy(output, labels)
        found[name] = torch.autograd.grad(loss, list(model.parameters()))
    for one, other in zip(*found.values(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("bounds", [(1.0, 0.0), (0.0, float("nan")), (0.0,), "ab", (0.0, 0.0)])
def test_bounds_that_are_none_are_refused(bounds):
    with pytest.raises(ValueError, match="two numbers, the lower one first, or None"):
        Layer(bounds)


def test_a_graph_that_is_none_is_refused():
    part = DenseInteraction(3, 3)
    hidden, output = Layer(), Layer(None)
    for layers, edges, words in [
        ((hidden, output), (Edge(part, None, 0),), "layer 1 is not"),
        ((hidden, output), (Edge(part, None, 0), Edge(part, 1, 0), Edge(part, 0, 1)), "leads from 1 to 0"),
        ((hidden, output), (Edge(part, None, 0), Edge(part, 0, 2)), "leads from 0 to 2"),
        ((hidden, output), (Edge(part, -1, 0), Edge(part, 0, 1)), "leads from -1 to 0"),
        ((hidden, hidden), (Edge(part, None, 0), Edge(part, 0, 1)), "output layer has no bounds"),
        ((), (), "layer 0 is not"),
    ]:
        with pytest.raises(ValueError, match=words):
            Graph(layers, edges)
    edges = (Edge(part, None, 0), Edge(DenseInteraction(3, 2), None, 1), Edge(part, 0, 1))
    with pytest.raises(ValueError, match="make it of shapes"):
        Graph((hidden, output), edges).shapes(torch.Size([5, 3]))


class Automatic(DenseInteraction):
    """A dense interaction that leaves its operator to autograd."""

    def operator(self, lower_shape):
        return Interaction.operator(self, lower_shape)


@pytest.mark.parametrize("rule", list_rules())
@pytest.mark.parametrize("order", ["asynchronous", "forward", "backward"])
def test_every_rule_has_the_same_gradient_where_autograd_makes_the_operators(generator, rule, order):
    x = torch.randn(4, 8, generator=generator, dtype=torch.float64)
    y, found = torch.tensor([0, 1, 2, 0]), []
    for kind in (DenseInteraction, Automatic):
        parts = [kind(*sizes, dtype=torch.float64) for sizes in ((8, 6), (6, 5), (5, 3))]
        model, made = GraphNetwork(Graph.chain(parts)), create_rule(rule)
        made = create_rule(rule, **{made.second_field: replace(made.fitted(model).second_phase, order=order)})
        made(model, x, y, **signs_for(made, x)).loss.backward()
        found.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*found, atol=1e-12, rtol=1e-10)


class Saturating(Interaction, torch.nn.Module):
    """A dense interaction whose drive is ``tanh(W s)``."""

    def __init__(self, lower, upper):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(upper, lower, dtype=torch.float64))

    def shape(self, lower):
        return torch.Size([len(self.weight)])

    def drive(self, lower):
        return torch.tanh(lower.flatten(1) @ self.weight.T)

    def initialise(self, gain, bias_gain, generator=None):
        with torch.no_grad():
            self.weight.uniform_(-gain, gain, generator=generator)


def saturating():
    return GraphNetwork(Graph.chain([DenseInteraction(6, 5, dtype=torch.float64), Saturating(5, 3)]), gain=0.4)


@pytest.mark.parametrize("algo", ["p-ep", "n-ep", "c-ep", "p-cpl"])
@pytest.mark.parametrize("build", [saturating, DenseHopfield])
def test_a_model_without_a_linear_response_is_relaxed_beside_its_companion(build, algo, generator):
    model = build()
    x = torch.rand(4, next(model.parameters()).shape[1], generator=generator, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 0])
    assert not model.responds
    found, expected = (
        torch.autograd.grad(rule(model, x, y).loss, list(model.parameters()))
        for rule in (create_rule(algo), create_rule(algo, linear_response=False))
    )
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert create_rule(algo).fitted(model).accompanies == (algo != "c-ep")
    with pytest.raises(NotImplementedError, match="has no linear response"):
        model.respond(model.relax(x), FREE, Minimizer())


def test_a_network_with_a_drive_that_is_not_linear_relaxes_where_others_respond(generator):
    model, converged = saturating(), Minimizer(sweeps=400, omega=1.0)
    x, y = torch.rand(4, 6, generator=generator, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    rule = create_rule("c-ep", beta=1e-3, free=converged, perturbed=converged)
    exact = create_rule("tbp", free=converged, unrolled=Minimizer(sweeps=100, omega=1.0))
    found, expected = (torch.autograd.grad(each(model, x, y).loss, list(model.parameters())) for each in (rule, exact))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
