"""The paper's procedure in numbers (tests/golden): found by the reference, by numpy loops and by the package."""

from dataclasses import replace
from pathlib import Path

import loops
import numpy as np
import pytest
import timm
import torch
from golden import make
from safetensors import safe_open
from safetensors.torch import load_file
from timm.scheduler import CosineLRScheduler

from timm_ebl import DCHN, Minimizer
from timm_ebl.rules import reference
from timm_ebl.training.build import build_optimizer
from timm_ebl.training.command_line import parse_config
from timm_ebl.training.rule import build_rule, free_phase

GOLDEN = load_file(make.FILE)
CONTRASTIVE = [*reference.CONTRASTS]
RECIPES = sorted((Path(__file__).parents[1] / "hub_configs").glob("table1_*.yaml"))
STEP = 1e-7
"""A change of parameters and states that takes no unit across a bound."""
SETTINGS = {"preset": ["--preset", "paper"], "recipe": ["--config", str(RECIPES[0])]}


def in_layers(name):
    return [GOLDEN[f"{name}.{k}.{kind}"] for k in range(5) for kind in ("weight", "bias")]


def state(sweeps):
    return [GOLDEN[f"state.{sweeps}.{k}"] for k in range(5)]


def assert_close(found, expected, tolerance):
    torch.testing.assert_close(
        [torch.as_tensor(f) for f in found], list(expected), atol=tolerance, rtol=tolerance, check_dtype=True
    )


# ------------------------------------------------------------------------------------------------------- the reference


def test_the_reference_gives_the_golden_numbers():
    found = make.numbers()
    assert found.keys() == GOLDEN.keys()
    assert_close([found[name] for name in GOLDEN], GOLDEN.values(), 1e-12)


def test_the_golden_file_says_how_it_was_made():
    with safe_open(make.FILE, "pt") as file:
        assert file.metadata()["about"] == make.__doc__


def test_the_golden_states_lie_inside_and_at_both_ends_and_have_not_settled():
    for layer in state(60)[:-1]:
        assert min((layer == 0).double().mean(), (layer == 1).double().mean()) > 0.15
        assert ((layer > 0) & (layer < 1)).double().mean() > 0.25
    layers, x, _ = make.small()
    after = reference.relax(layers, x, tuple(state(60)), 1)
    assert max(float((a - b).abs().max()) for a, b in zip(after, state(60), strict=True)) > 1e-3


@pytest.mark.parametrize("sweeps", [1, 5, 60])
def test_no_pooling_window_has_two_maxima(small, sweeps):
    layers, x, _, _ = small
    for (weight, _), lower in zip(layers[:-1], [x, *in_numpy(state(sweeps)[:-2])], strict=True):
        second, first = np.sort(loops.winners(loops.convolution(weight, lower))[1], axis=0)[-2:]
        assert (first - second).min() > 1e-6


# ---------------------------------------------------------------------------------------------------------- numpy loops


def in_numpy(tensors):
    return [tensor.numpy() for tensor in tensors]


def paired(parameters):
    return list(zip(parameters[::2], parameters[1::2], strict=True))


@pytest.fixture(scope="module")
def small():
    """``(layers, x, y, free state)`` of the small network in numpy."""
    return (
        paired(in_numpy(in_layers("input"))),
        GOLDEN["input.x"].numpy(),
        GOLDEN["input.y"].numpy(),
        in_numpy(state(60)),
    )


def test_numpy_loops_find_the_golden_states(small):
    layers, x, _, free = small
    found, done = [np.zeros_like(layer) for layer in free], 0
    for sweeps in (1, 5, 60):
        found, done = loops.relax(layers, x, found, sweeps - done, ((0, 2, 4), (1, 3))), sweeps
        assert_close(found, state(sweeps), 1e-12)


@pytest.mark.parametrize("rule", CONTRASTIVE)
def test_numpy_loops_find_the_golden_gradients(small, rule):
    beta = 1.0 if rule == "cl" else 0.25
    assert_close(loops.contrast(rule, *small, beta, 15), in_layers(f"gradient.{rule}"), 1e-11)


def directions(layers, count=3):
    """Random changes of all parameters."""
    generator = np.random.default_rng(0)
    return [[tuple(generator.standard_normal(p.shape) for p in layer) for layer in layers] for _ in range(count)]


def moved(layers, direction, step):
    return [tuple(p + step * d for p, d in zip(*pair, strict=True)) for pair in zip(layers, direction, strict=True)]


def along(rule, direction):
    """The golden gradient's inner product with a change of all parameters."""
    changes = [change for layer in direction for change in layer]
    return sum(float((g.numpy() * d).sum()) for g, d in zip(in_layers(f"gradient.{rule}"), changes, strict=True))


def test_truncated_backpropagation_is_the_finite_difference_of_the_cost_after_15_loops(small):
    layers, x, y, free = small
    for direction in directions(layers):
        costs = []
        for step in (STEP, -STEP):
            output = loops.relax(moved(layers, direction, step), x, free, 15, ((0, 2, 4), (1, 3)))[-1]
            costs.append(((output - y) ** 2).sum(1).mean() / 2)
        assert along("tbp", direction) == pytest.approx((costs[0] - costs[1]) / (2 * STEP), rel=1e-7)


def test_recurrent_backpropagation_is_the_sum_of_what_15_synchronous_loops_pass_on(small):
    """Forwards, without an adjoint: ``u_1 = dF/dtheta d``, ``u_{t+1} = dF/ds u_t``, and ``sum_t <dC/ds, u_t>``."""
    layers, x, y, free = small
    everything = ((0, 1, 2, 3, 4),)

    def difference(two):
        ahead, back = (loops.sweep(*each, everything) for each in two)
        return [(a - b) / (2 * STEP) for a, b in zip(ahead, back, strict=True)]

    for direction in directions(layers):
        change = difference([(moved(layers, direction, sign * STEP), x, free) for sign in (1, -1)])
        total = 0
        for _ in range(15):
            total += ((free[-1] - y) * change[-1]).sum() / len(x)
            near = [[s + sign * STEP * c for s, c in zip(free, change, strict=True)] for sign in (1, -1)]
            change = difference([(layers, x, each) for each in near])
        assert along("rbp", direction) == pytest.approx(total, rel=1e-7)


def optimizer_of(parameters):
    """PyTorch's own optimiser with the rates of Table 1."""
    groups = [{"params": parameters[2 * k : 2 * k + 2], "lr": rate} for k, rate in enumerate(make.RATES)]
    return torch.optim.SGD(groups, momentum=0.9, weight_decay=make.WEIGHT_DECAY)


def test_the_golden_rates_are_those_of_pytorchs_cosine():
    optimizer = optimizer_of([torch.nn.Parameter(p.clone()) for p in in_layers("input")])
    scheduler, rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100, 2e-6), []
    for _ in range(100):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    torch.testing.assert_close(torch.tensor(rates, dtype=torch.float64), GOLDEN["rates"], atol=1e-15, rtol=1e-9)


def test_pytorchs_sgd_takes_the_golden_steps_down_the_gradients_of_numpy_loops(small):
    parameters = [torch.nn.Parameter(p.clone()) for p in in_layers("input")]
    optimizer, (_, x, y, free) = optimizer_of(parameters), small
    for _ in range(5):
        layers = paired(in_numpy([parameter.detach() for parameter in parameters]))
        start = loops.relax(layers, x, [np.zeros_like(layer) for layer in free], 60, ((0, 2, 4), (1, 3)))
        for parameter, gradient in zip(parameters, loops.contrast("c-ep", layers, x, y, start, 0.25, 15), strict=True):
            parameter.grad = torch.as_tensor(gradient)
        optimizer.step()
    assert_close([parameter.detach() for parameter in parameters], in_layers("trained"), 1e-11)


# ---------------------------------------------------------------------------------------------------------- the package


@pytest.fixture
def model():
    network = DCHN((4, 5, 6, 7), num_classes=3, in_chans=2, img_size=16, dtype=torch.float64)
    return filled(network, in_layers("input"))


def filled(network, parameters):
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), parameters, strict=True):
            parameter.copy_(value)
    return network


def paper_rule(model, settings, rule):
    config = parse_config([*SETTINGS[settings], "--algo", rule])
    model.minimizer = Minimizer(**free_phase(config))
    return build_rule(config, model)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("sweeps", [1, 5, 60])
def test_the_packages_free_phase_passes_the_golden_states(model, settings, sweeps):
    free = paper_rule(model, settings, "c-ep").free
    assert free.sweeps == 60
    found = model.relax(GOLDEN["input.x"], minimizer=replace(free, sweeps=sweeps)).state
    assert_close(found, state(sweeps), 1e-9)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("rule", reference.RULES)
def test_the_packages_rules_have_the_golden_gradients(model, settings, rule):
    loss, _, free, _ = paper_rule(model, settings, rule)(model, GOLDEN["input.x"], GOLDEN["input.y"])
    loss.backward()
    assert_close(free.state, state(60), 1e-9)
    assert_close([parameter.grad for parameter in model.parameters()], in_layers(f"gradient.{rule}"), 1e-9)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_table_1_takes_the_golden_steps_at_the_golden_rates(model, recipe):
    config = parse_config(["--config", str(recipe)])
    model.minimizer = Minimizer(**free_phase(config))
    rule, optimizer = build_rule(config, model), build_optimizer(config, model)
    scheduler = CosineLRScheduler(optimizer, config.epochs, config.min_lr)
    rates = []
    for epoch in range(config.epochs):
        scheduler.step(epoch)
        rates.append([group["lr"] for group in optimizer.param_groups])
    torch.testing.assert_close(torch.tensor(rates, dtype=torch.float64), GOLDEN["rates"], atol=1e-9, rtol=0)

    scheduler.step(0)
    for _ in range(5):
        optimizer.zero_grad()
        rule(model, GOLDEN["input.x"], GOLDEN["input.y"]).loss.backward()
        optimizer.step()
    assert_close([parameter.detach() for parameter in model.parameters()], in_layers("trained"), 1e-9)


def test_a_named_model_has_the_golden_sums_of_states_and_norms_of_gradients():
    layers, x, y = make.tiny()
    model = filled(timm.create_model("dchn_tiny_mnist").double(), make.flat(layers))
    loss, _, free, *_ = paper_rule(model, "preset", "c-ep")(model, x, y)
    loss.backward()
    sums = [torch.stack([layer.flatten(1).sum(1), (layer**2).flatten(1).sum(1)], dim=1) for layer in free.state]
    assert_close(sums, [GOLDEN[f"tiny.{k}"] for k in range(5)], 1e-9)
    norms = torch.stack([parameter.grad.norm() for parameter in model.parameters()])
    assert_close([norms], [GOLDEN["tiny.gradient"]], 1e-9)
