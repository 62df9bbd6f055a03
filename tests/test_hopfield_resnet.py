"""Hopfield networks with skips: the published graph, its energy, a slow twin in float64, and every rule."""

import pytest
import timm
import torch
import torch.nn.functional as F
from graphs import random_state, slow_energy
from oracles import distance, error, gradient, signs_for

from timm_ebl import (
    FREE,
    Clamped,
    HopfieldResNet,
    Minimizer,
    Nudged,
    create_backward,
    create_rule,
    list_rules,
    register_order,
)
from timm_ebl.errors import WeightsError
from timm_ebl.kernels.packed import Packed
from timm_ebl.models.factory import family_of
from timm_ebl.relaxation import order
from timm_ebl.tools.gradients import layer_cosines, rule_gradients

DATASETS = ("mnist", "fashion_mnist", "svhn", "cifar10", "cifar100")
NAMES = [f"hopfield_resnet13_{size}{dataset}" for size in ("", "small_", "tiny_") for dataset in DATASETS]
LABELS = torch.tensor([0, 1, 2, 0])
TARGET = torch.eye(3, dtype=torch.float64)[LABELS]
CONVERGED = Minimizer(order="backward", sweeps=5000, tolerance=1e-13, omega=1.2)
GROUPS = ((0, 2, 4, 6, 8), (1, 5), (3, 7))
"""Layers that are updated together, counted from 0: {1, 3, 5, 7, o}, {2, 6} and {4, 8} of the drawing below."""


@pytest.fixture
def make():
    """Builds a narrow network with units inside, and at a larger gain at both ends of, [0, 6]."""

    def make(gains=1.0, dtype=torch.float64, **kwargs):
        options = {"widths": (4, 5, 6, 7), "num_classes": 3, "in_chans": 2, "img_size": 16, "bias_gain": 1.5} | kwargs
        model = HopfieldResNet(**options, gains=gains, dtype=dtype)
        model.init_weights(torch.Generator().manual_seed(0))
        return model

    return make


@pytest.fixture
def x(generator):
    return torch.randn(4, 2, 16, 16, generator=generator, dtype=torch.float64)


def slow_sweep(model, x, state, omega):
    """One sweep, layer by layer of each colour: ``s <- clip(s + omega (h - s))``, the field of autograd's energy."""
    for group in GROUPS:
        leaves = [layer.clone().requires_grad_() for layer in state]
        gradients = torch.autograd.grad(slow_energy(model.graph, x, leaves).sum(), leaves)
        state = list(state)
        for k in group:
            step = 1.0 if k == 8 else omega
            state[k] = (state[k] - step * gradients[k]).detach()
            if k < 8:
                state[k] = state[k].clamp(0, 6)
    return state


# ----------------------------------------------------------------------------------------------- the published network


def test_the_published_network_has_9_742_858_parameters_and_the_others_its_fractions():
    def by_hand(widths, classes=10):
        total, below = 0, 3
        for width in widths:
            total += (below * width * 9 + width) + (width * width * 9 + width) + below * width
            below = width
        return total + below * 4 * classes + classes

    counts = {
        size: sum(p.numel() for p in timm.create_model(f"hopfield_resnet13_{size}cifar10").parameters())
        for size in ("", "small_", "tiny_")
    }
    assert counts == {"": 9_742_858, "small_": by_hand((32, 64, 128, 128)), "tiny_": by_hand((16, 32, 64, 64))}


def test_the_graph_is_the_published_one():
    # x 3@32 | h1 128@32 | h2 128@16 | h3 256@16 | h4 256@8 | h5 512@8 | h6 512@4 | h7 512@4 | h8 512@2 | o
    model = timm.create_model("hopfield_resnet13_cifar10", device="meta")
    graph = model.graph
    joins = [(1 + (-1 if lower is None else lower), 1 + upper) for _, lower, upper in graph.edges]
    assert joins == [
        (0, 1),
        (1, 2),
        (0, 2),
        (2, 3),
        (3, 4),
        (2, 4),
        (4, 5),
        (5, 6),
        (4, 6),
        (6, 7),
        (7, 8),
        (6, 8),
        (8, 9),
    ]
    assert [layer.bounds for layer in graph.layers] == [(0.0, 6.0)] * 8 + [None]
    maps = [(128, 32), (128, 16), (256, 16), (256, 8), (512, 8), (512, 4), (512, 4), (512, 2)]
    shapes = model.state_shapes(torch.empty(5, 3, 32, 32, device="meta"))
    assert [tuple(shape) for shape in shapes] == [(5, width, side, side) for width, side in maps] + [(5, 10)]
    assert model.gains == (0.6, 0.6, 0.7) * 4 + (0.8,)
    assert graph.interactions == (*model.layers, model.head)
    assert [layer.bias is None for layer in model.layers] == [False, False, True] * 4


def test_three_colours_are_found(make):
    model = make()
    assert model.minimizer.groups(model.graph.neighbours) == GROUPS


def test_every_name_is_registered_and_fits_its_data_set():
    assert sorted(timm.list_models("hopfield_resnet13*")) == sorted(NAMES)
    for name in NAMES:
        config = timm.get_pretrained_cfg(name)
        assert family_of(name) is HopfieldResNet
        assert timm.model_entrypoint(name).__name__ == name
        assert config.num_classes == (100 if name.endswith("cifar100") else 10)
        assert config.input_size == (1 if name.endswith("mnist") else 3, 32, 32)
        with pytest.raises(WeightsError, match=f"no pretrained weights for {name}; there are for "):
            timm.create_model(name, pretrained=True)


def test_arguments_out_of_range_are_refused(make):
    for options, words in [
        ({"widths": ()}, "widths is a non-empty sequence"),
        ({"gains": (0.5,) * 12}, "gains is one positive number or 13 of them"),
        ({"drop_rate": 0.1}, "A HopfieldResNet has no dropout"),
        ({"omega": 2.0}, "omega lies between 0 and 2"),
    ]:
        with pytest.raises(ValueError, match=words):
            make(**options)
    with pytest.raises(TypeError, match="pooling"):
        timm.create_model("hopfield_resnet13_tiny_mnist", pooling="max")


# ----------------------------------------------------------------------------------------------------------- relaxation


@pytest.mark.parametrize("gains", [0.5, 1.0, 3.0])
def test_the_energy_never_rises(make, x, generator, gains):
    model = make(gains)
    for omega in (0.7, 1.0, 1.9):
        for perturbation in (FREE, Nudged(TARGET, 0.5), Nudged(TARGET, -0.8), Clamped(TARGET)):
            *hidden, output = random_state(model, x, generator)
            state = (*hidden, perturbation.start(output))
            energies = [model.energy(x, state) + perturbation.cost(state)]
            for _ in range(6):
                state = model.relax(x, state, perturbation, Minimizer(sweeps=1, omega=omega)).state
                energies.append(model.energy(x, state) + perturbation.cost(state))
            energies = torch.stack(energies).detach()
            assert (energies.diff(dim=0) <= 1e-11 * (1 + energies.abs().max())).all()


def test_two_colours_let_it_rise(make, x, generator, monkeypatch):
    monkeypatch.setattr(order._ORDERS, "_entries", dict(order._ORDERS._entries))

    @register_order
    def odd_and_even(neighbours):
        return tuple(range(0, len(neighbours), 2)), tuple(range(1, len(neighbours), 2))

    model, rises = make(3.0, order="odd_and_even", sweeps=1, omega=1.0), False
    with torch.no_grad():  # the skip from h2 to h4, which are updated together
        model.layers[5].weight.mul_(-4)
    state = random_state(model, x, generator)
    for _ in range(20):
        before = model.energy(x, state)
        state = model.relax(x, state).state
        rises |= bool((model.energy(x, state) > before + 1e-9).any())
    assert rises


@pytest.mark.parametrize("gains", [1.0, 3.0])
def test_the_trajectory_is_that_of_the_slow_twin(make, x, generator, gains):
    model = make(gains)
    begun = state = random_state(model, x, generator)
    omegas = (1.9, 1.7, 1.0, 0.6)
    for sweeps, omega in enumerate(omegas, 1):
        state = slow_sweep(model, x, state, omega)
        found = model.relax(x, begun, minimizer=Minimizer(sweeps=sweeps, omega=omegas))
        assert distance(found.state, state) < 1e-11
        torch.testing.assert_close(found.energy, slow_energy(model.graph, x, state).detach(), rtol=1e-12, atol=1e-11)
    assert gains == 1.0 or any(bool((layer == 6).any()) for layer in state[:-1])


def test_the_linear_response_is_exact_between_the_bounds(make, x):
    model = make(0.6)
    free, nudge = model.relax(x, minimizer=CONVERGED), Nudged(TARGET, 0.3)
    response = model.respond(free, nudge, Minimizer(sweeps=400, omega=1.2))
    assert distance(response.state, model.relax(x, free, nudge, CONVERGED).state) < 1e-9


# ---------------------------------------------------------------------------------------------------------------- rules


def test_both_baselines_and_equilibrium_propagation_agree_at_equilibrium(make, x):
    model, long = make(0.6), Minimizer(sweeps=400, omega=1.0)
    truncated = gradient(model, create_rule("tbp", free=CONVERGED, unrolled=long)(model, x, LABELS).loss)
    adjoint = Minimizer(sweeps=400, omega=1.0, order="synchronous")
    recurrent = gradient(model, create_rule("rbp", free=CONVERGED, adjoint=adjoint)(model, x, LABELS).loss)
    assert error(recurrent, truncated) < 1e-9
    centred = create_rule("c-ep", free=CONVERGED, perturbed=Minimizer(sweeps=400, omega=1.2), beta=1e-3)
    assert error(gradient(model, centred(model, x, LABELS).loss), truncated) < 1e-5


@pytest.mark.parametrize("name", list_rules())
def test_every_rule_has_a_gradient_in_every_parameter(make, x, name):
    model = make(1.0)
    rule = create_rule(name)
    rule(model, x, LABELS, **signs_for(rule, x)).loss.backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in model.parameters())


def test_a_loss_has_its_gradient_by_equilibrium_propagation(make, x):
    found = {}
    for name, options in {
        "ep": {"beta": 1e-3, "perturbed": Minimizer(sweeps=300, omega=1.2)},
        "tbp": {"unrolled": Minimizer(sweeps=300, omega=1.0)},
    }.items():
        model = make(0.6, sweeps=400, omega=1.2, backward=create_backward(name, **options))
        found[name] = gradient(model, F.cross_entropy(model(x), LABELS))
    assert error(found["ep"], found["tbp"]) < 1e-6


def test_16_bits_keep_the_digits_of_a_contrast(generator):
    torch.manual_seed(0)
    model = timm.create_model("hopfield_resnet13_tiny_cifar10")
    x, y = torch.randn(8, 3, 32, 32, generator=generator), torch.arange(8)
    exact = rule_gradients(model, x, y, "c-ep")
    expected = rule_gradients(model.double(), x.double(), y, "c-ep")
    assert min(layer_cosines(exact, expected)) > 1 - 1e-5
    model.float()
    for precision in (torch.bfloat16, torch.float16):
        cosines = layer_cosines(rule_gradients(model, x, y, "c-ep", precision), expected)
        assert min(cosines) > 0.9, cosines


def test_winograds_algorithm_serves_the_wide_layers_of_stride_1_alone():
    model = timm.create_model("hopfield_resnet13_cifar10")
    with torch.no_grad():
        operators = model.graph.operators(torch.Size([32, 3, 32, 32]))
    engines = [type(operator.engine).__name__ for operator in operators[:-1]]
    assert [k for k, engine in enumerate(engines) if engine == "Winograd"] == [3, 6, 9]
    assert all(isinstance(operators[k].engine, Packed) for k in range(12) if k not in (3, 6, 9))
