"""The published procedures, simulated plainly, walk the trajectories of the package and find its gradients."""

from dataclasses import replace
from functools import partial

import pytest
import timm
import torch
from graphs import GraphNetwork, residual_graph
from oracles import gradient
from predictive import LAYERS, forward_pass, modified_update, small_network
from torch.utils.flop_counter import FlopCounterMode

import timm_ebl.tools.distance
from timm_ebl import PAPER, HopfieldResNet, Minimizer, create_rule, register_order
from timm_ebl.errors import ConfigError
from timm_ebl.relaxation import order
from timm_ebl.tools import benchmark
from timm_ebl.tools.benchmark import main, print_errors
from timm_ebl.tools.distance import approach, print_distances
from timm_ebl.tools.gradients import gradients, rule_gradients, true_gradient
from timm_ebl.tools.procedures import plain_procedure, procedures, study
from timm_ebl.tools.simulation import family, simulation
from timm_ebl.tools.throughput import sweep, sweep_flops

LABELS = torch.tensor([0, 1, 2, 0])
TARGET = torch.eye(3, dtype=torch.float64)[LABELS]
CLOSE = {"atol": 1e-10, "rtol": 0}
PLAIN = {"settle": False, "damped": True, "linear_response": False}
"""Equilibrium propagation as it was published, with the nudged output's step of the released code."""


def resnet(gains=1.0, widths=(4, 5, 6, 7)):
    """A narrow Hopfield-ResNet; at a gain of 3, units lie at both ends of [0, 6]."""
    model = HopfieldResNet(widths, 3, 2, 16, gains=gains, bias_gain=1.5, dtype=torch.float64)
    model.init_weights(torch.Generator().manual_seed(0))
    return model


@pytest.fixture
def x(generator):
    return torch.randn(4, 2, 16, 16, generator=generator, dtype=torch.float64)


@pytest.fixture
def even_first(monkeypatch):
    """An order of the package: the layers 2, 4, .. together, then 1, 3, .."""
    monkeypatch.setattr(order._ORDERS, "_entries", dict(order._ORDERS._entries))

    @register_order
    def even_then_odd(neighbours):
        return tuple(range(1, len(neighbours), 2)), tuple(range(0, len(neighbours), 2))

    return "even_then_odd"


def graph_networks():
    """Networks with skips, strides and bounds, and an input of each."""
    x = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [(GraphNetwork(residual_graph(bounds=bounds)), x) for bounds in ((0.0, 6.0), (-0.1, 0.2))]


# --------------------------------------------------------------------------------------- Hopfield networks with skips


@pytest.mark.parametrize("order", ["asynchronous", "synchronous"])
def test_the_plain_free_phase_on_a_graph_walks_the_engines_trajectory(x, order):
    for model, images in [*graph_networks(), (resnet(), x), (resnet(3.0), x)]:
        free = Minimizer(order=order, sweeps=8, omega=1.0, start="zero")
        plain = simulation(model, order).free(images, 8)
        torch.testing.assert_close(plain, model.relax(images, minimizer=free).state, **CLOSE)


def test_the_plain_step_on_a_graph_has_the_gradient_of_the_rule_under_the_published_settings(x):
    free, perturbed = Minimizer(sweeps=9, omega=1.0, start="zero"), Minimizer(sweeps=6, omega=1.0)
    rule = create_rule("c-ep", free=free, perturbed=perturbed, beta=0.1, **PLAIN)
    for model, images in [*graph_networks(), (resnet(), x), (resnet(3.0), x)]:
        model.num_classes = 3
        expected = gradient(model, rule(model, images, LABELS).loss)
        plain_procedure(model, "published", free, 6, beta=0.1).step(images, LABELS)
        assert expected.norm() > 0
        torch.testing.assert_close(torch.cat([p.grad.flatten() for p in model.parameters()]), expected, **CLOSE)


# ----------------------------------------------------------------------------------------- predictive coding networks


def test_the_plain_forward_pass_and_nudged_phases_are_the_textbooks_and_the_engines(x, even_first):
    model = small_network(img_size=16)
    plain, published = simulation(model), Minimizer(order=even_first, sweeps=4, omega=1.0)
    free = plain.free(x, 1)
    torch.testing.assert_close(free, forward_pass(model, x), **CLOSE)
    state = list(free)
    for _ in range(4):
        for group in ((1, 3, 5), (0, 2, 4)):
            moved = {k: modified_update(model, x, state, k, lambda o: 0.3 * (o - TARGET)) for k in group}
            for k, layer in moved.items():
                state[k] = layer.detach()
    torch.testing.assert_close(plain.relax(x, free, 4, TARGET, 0.3), tuple(state), **CLOSE)
    rule = create_rule("c-ep", perturbed=published, beta=0.3, **PLAIN)
    plain_procedure(model, "published", model.unrolled, 4, beta=0.3).step(x, LABELS)
    found = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    torch.testing.assert_close(found, gradient(model, rule(model, x, LABELS).loss), **CLOSE)


def test_the_plain_gradient_of_predictive_coding_is_backpropagation_up_to_beta_squared():
    model = small_network()
    x = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = gradient(model, ((forward_pass(model, x)[-1] - TARGET) ** 2).sum(1).mean() / 2)
    errors = []
    for beta in (4e-3, 1e-3):
        plain_procedure(model, "published", model.unrolled, LAYERS, beta).step(x, LABELS)
        errors.append((torch.cat([p.grad.flatten() for p in model.parameters()]) - expected).norm() / expected.norm())
    assert errors[0] < 1e-4
    assert errors[0] / errors[1] == pytest.approx(16, rel=0.1)


def test_the_true_gradient_of_a_forward_pass_is_backpropagation(x):
    model = small_network(img_size=16)
    expected = gradients(model, lambda: (((forward_pass(model, x)[-1] - TARGET) ** 2).sum(1).mean() / 2).backward())
    torch.testing.assert_close(true_gradient(model, x, LABELS), expected, atol=1e-12, rtol=1e-9)


# -------------------------------------------------------------------------------------------------- rows of the table


def test_the_published_sweeps_and_strengths_are_those_of_the_family():
    for name, sweeps, beta in [
        ("dchn_tiny_cifar10", "60 + 2 x 20", 0.25),
        ("hopfield_resnet13_tiny_cifar10", "120 + 2 x 50", 0.1),
        ("pcn_vgg5_tiny_cifar10", "1 + 2 x 5", 0.02),
        ("pcn_vgg10", "1 + 2 x 10", 0.05),
    ]:
        model = timm.create_model(name, device="meta")
        assert family(model).beta == beta
        assert procedures(model, None, laborieux=False)[0].sweeps == sweeps


def test_our_free_phase_is_the_familys_default_whatever_the_network_was_built_with():
    tiny = "hopfield_resnet13_tiny_cifar10"
    built = timm.create_model(tiny, sweeps=3, omega=1.0, device="meta")
    assert family(built).ours == timm.create_model(tiny, device="meta").minimizer != built.minimizer


def test_every_row_of_every_family_takes_a_step(x):
    x, hopfield, predictive = x[:2], resnet(widths=(4,)), small_network(img_size=16)
    tables = [(model, procedures(model, None, laborieux=False)) for model in (hopfield, predictive)]
    assert [row.name.partition(",")[0] for row in tables[1][1]] == ["c-ep", "c-ep", "c-ep", "tbp", "rbp"]
    for model, rows in (*tables, (hopfield, study(hopfield, None))):
        assert len({(row.name, row.sweeps) for row in rows}) == len(rows)
        for row in rows:
            row.predict(x)
            assert all(found.norm() > 0 for found in gradients(model, partial(row.step, x, LABELS[:2])))


def test_operations_on_a_graph_are_counted_from_the_shapes(x):
    # Forward and transposed, two operations a product: of each block in-a, a-b and the skip, without the input's.
    products = 4 * 4 * 9 * 8 * 8
    products += 4 * 5 * 9 * 8 * 8 + 5 * 5 * 9 * 4 * 4 + 4 * 5 * 4 * 4
    products += 5 * 6 * 9 * 4 * 4 + 6 * 6 * 9 * 2 * 2 + 5 * 6 * 2 * 2
    products += 6 * 7 * 9 * 2 * 2 + 7 * 7 * 9 * 1 * 1 + 6 * 7 * 1 * 1
    assert sweep_flops(resnet(), x) == 4 * (products + 7 * 3)


@pytest.mark.parametrize("build", [resnet, lambda: small_network(img_size=16)])
def test_one_sweep_makes_the_products_that_it_is_said_to(x, build):
    model = build()
    call = sweep(model, x)
    for _ in range(3):  # what is known of the free state is used up
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            call()
    assert counter.get_total_flops() == sweep_flops(model, x) * len(x)


def test_the_errors_are_those_of_the_familys_predictions(x, capsys):
    model = small_network(img_size=16)
    wrong = (forward_pass(model, x)[-1].argmax(1) + torch.tensor([1, 0, 0, 0])) % 3
    print_errors(model, x, wrong, batch_size=2)
    assert capsys.readouterr().out == "error in 4 test images: 25.00 % after the forward pass\n"
    print_errors(resnet(), x, LABELS, batch_size=4)
    assert "% after the paper's 120 sweeps, " in capsys.readouterr().out


def test_distances_are_printed_of_networks_with_skips(x, capsys, monkeypatch):
    calls = []
    monkeypatch.setattr(timm_ebl.tools.distance, "median_seconds", lambda each, turns: calls.extend(each) or [1.0] * 3)
    model = resnet(0.3, widths=(4,))
    print_distances(model, x, 4, 1)
    assert "after the paper's 120 sweeps: " in capsys.readouterr().out
    found = approach(model, x, replace(PAPER, sweeps=120)).sweeps
    expected = model.relax(x, minimizer=replace(PAPER, sweeps=found)).state
    torch.testing.assert_close(calls[0](), expected, **CLOSE)


@pytest.mark.slow
def test_the_command_prints_a_table_of_a_mixture(capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "median_seconds", lambda calls, turns: [(call(), 6e-3)[1] for call in calls])
    monkeypatch.setattr(benchmark, "true_gradient", lambda model, x, y, free: rule_gradients(model, x, y, "tbp"))
    models = ["dchn_tiny_mnist", "pcn_vgg5_tiny_mnist", "hopfield_resnet13_tiny_mnist"]
    main(["--models", *models, "--batch-size", "1", "--batches", "1", "--repeats", "1", "--threads", "1"])
    _, *tables = capsys.readouterr().out.split("\n\n")
    for model, table, row, nudge in zip(
        models,
        tables,
        ("c-ep, paper", "c-ep, published", "c-ep, published"),
        ("", "", ", nudge of 0.1, of 0.25 in ours"),
        strict=True,
    ):
        title, _, first, ours, *_ = table.splitlines()
        assert title == f"{model}, 1 images, milliseconds per image{nudge}"
        assert first.startswith(row)
        assert ours.startswith("c-ep, ours")
        assert "one sweep: " in table


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("build", [resnet, small_network])
def test_a_network_that_no_procedure_was_published_for_is_refused(build):
    model = build()
    model.reset_classifier(0)
    with pytest.raises(ConfigError, match="there is nothing to compare it with"):
        simulation(model)


def test_tables_of_different_kinds_are_not_asked_for_at_once(capsys):
    with pytest.raises(SystemExit):
        main(["--study", "--equilibrium", "4"])
    assert "argument --equilibrium: not allowed with argument --study" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "option", "sentence"),
    [
        ("pcn_vgg5_tiny_cifar10", ["--study"], "--study is about the sweeps of a free phase"),
        (
            "pcn_vgg5_tiny_cifar10",
            ["--equilibrium", "4"],
            "--equilibrium is about the sweeps of a free phase",
        ),
        (
            "pcn_vgg5_tiny_cifar10",
            ["--laborieux"],
            "--laborieux is the procedure of Laborieux et al. (2021)",
        ),
        ("hopfield_resnet13_tiny_cifar10", ["--laborieux"], "--laborieux is the procedure of Laborieux et al. (2021)"),
    ],
)
def test_an_option_that_does_not_apply_is_refused_before_anything_is_measured(capsys, model, option, sentence):
    with pytest.raises(SystemExit, match="1"):
        main(["--models", "dchn_tiny_cifar10", model, *option])
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith(f"error: {model}: {sentence}")
    assert line.endswith("this network out.")
