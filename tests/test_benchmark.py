"""The benchmark measures what it says."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from golden import make
from safetensors.torch import load_file

from timm_ebl import PAPER, Minimizer, create_rule
from timm_ebl.errors import ConfigError
from timm_ebl.rules.rule import rule_class
from timm_ebl.tools import benchmark
from timm_ebl.tools import gradients as gradients_command
from timm_ebl.tools.benchmark import main, print_errors
from timm_ebl.tools.gradients import gradients, true_gradient
from timm_ebl.tools.procedures import plain_procedure, procedures, study
from timm_ebl.tools.throughput import sweep_flops
from timm_ebl.training.memory import peak_memory

CPU = torch.device("cpu")
KEYS = [f"{k}.{kind}" for k in range(5) for kind in ("weight", "bias")]


@pytest.mark.parametrize("free", [PAPER, replace(PAPER, order="synchronous", sweeps=40)])
@pytest.mark.parametrize("options", [{}, {"pooling": "average"}, {"pool": 3, "widths": (4, 5), "gains": (1.5, 1.5, 1)}])
def test_the_plain_free_phase_walks_the_engines_trajectory(make_dchn, batch, free, options):
    model, (x, _) = make_dchn(**options), batch
    state = plain_procedure(model, "paper", free, 20, beta=0.25).predict(x)
    torch.testing.assert_close(state, model.relax(x, minimizer=free).state, atol=1e-12, rtol=0)


@pytest.mark.parametrize("pooling", ["max", "average"])
def test_the_plain_step_has_the_gradient_of_the_rule_under_the_papers_settings(make_dchn, batch, pooling):
    model, (x, y) = make_dchn(pooling=pooling), batch
    found = gradients(model, partial(plain_procedure(model, "paper", PAPER, 15, beta=0.25).step, x, y))
    options = {"perturbed": Minimizer(sweeps=15, omega=1.0), "settle": False, "damped": True}
    rule = create_rule("c-ep", free=PAPER, linear_response=False, **options)
    torch.testing.assert_close(found, gradients(model, lambda: rule(model, x, y).loss.backward()), atol=1e-10, rtol=0)


def test_the_plain_step_leaves_the_golden_gradient(make_dchn):
    model, golden = make_dchn(), load_file(make.FILE)
    for parameter, name in zip(model.parameters(), KEYS, strict=True):
        parameter.data.copy_(golden[f"input.{name}"])
    plain_procedure(model, "paper", PAPER, 15, beta=0.25).step(golden["input.x"], golden["input.y"].argmax(1))
    for parameter, name in zip(model.parameters(), KEYS, strict=True):
        torch.testing.assert_close(parameter.grad, golden[f"gradient.c-ep.{name}"], atol=1e-12, rtol=1e-12)


def test_a_network_that_is_none_of_the_papers_is_not_compared_with_its_procedure(make_dchn):
    with pytest.raises(ConfigError, match="convolutions, each pooled, and a dense read-out"):
        procedures(make_dchn(num_classes=0), 0.25, laborieux=False)


def test_the_true_gradient_does_not_depend_on_how_the_batch_is_cut(make_dchn, batch):
    model, (x, y) = make_dchn(gains=0.5), batch
    x, y = x.repeat(4, 1, 1, 1), y.repeat(4)
    torch.testing.assert_close(true_gradient(model, x, y), true_gradient(model, x[:6], y[:6]), atol=1e-5, rtol=1e-4)


def test_operations_are_counted_from_the_shapes(make_dchn, batch):
    # Forward and transposed, two operations a product; channels 4-5-6-7 at 8x8, 4x4, 2x2 places; 7 inputs, 3 outputs.
    products = 4 * 5 * 9 * 8 * 8 + 5 * 6 * 9 * 4 * 4 + 6 * 7 * 9 * 2 * 2 + 7 * 3
    assert sweep_flops(make_dchn(), batch[0]) == 4 * products


def test_memory_is_what_lives_at_once():
    megabyte = 2**18
    assert peak_memory(lambda: [torch.zeros(megabyte) for _ in range(4)], CPU) == pytest.approx(4, abs=0.1)
    assert peak_memory(lambda: [float(torch.zeros(megabyte).sum()) for _ in range(4)], CPU) == pytest.approx(1, abs=0.1)


def test_the_memory_of_a_contrastive_step_does_not_grow_with_the_sweeps(make_dchn, batch):
    model, (x, y) = make_dchn(), batch

    def memory(name, sweeps):
        minimizer = Minimizer(sweeps=sweeps)
        rule = create_rule(name, free=minimizer, **{rule_class(name).second_field: minimizer})
        return peak_memory(lambda: rule(model, x, y).loss.backward(), CPU)

    for name in ("cl", "n-ep", "c-ep", "c-cpl"):
        assert memory(name, 40) == memory(name, 4)
    assert memory("tbp", 40) > 3 * memory("tbp", 4)


def test_every_row_of_the_table_takes_a_step(make_dchn, batch):
    model, (x, y) = make_dchn(), batch
    rows = procedures(model, 0.25, laborieux=True)
    assert len({row.name for row in rows}) == len(rows) == 6
    settings = study(model, 0.25)
    assert len({(row.name, row.sweeps) for row in settings}) == len(settings)
    for row in (*rows, *settings):
        assert all(gradient.norm() > 0 for gradient in gradients(model, partial(row.step, x, y)))


def test_the_errors_are_those_of_both_predictions(make_dchn, batch, capsys):
    model, (x, _) = make_dchn(), batch
    answers = model.relax(x, minimizer=PAPER).output.argmax(1)
    answers[0] = (answers[0] + 1) % 3
    print_errors(model, x, answers, batch_size=4)
    ours = float((model.answer(x, Minimizer()).argmax(1) != answers).double().mean()) * 100
    expected = f"error in 6 test images: 16.67 % after the paper's 60 sweeps, {ours:.2f} % after our 7 sweeps"
    assert capsys.readouterr().out.strip() == expected


@pytest.mark.slow
def test_the_command_prints_a_table(capsys, images):
    sizes = ["--batch-size", "2", "--batches", "2", "--repeats", "1", "--threads", "1"]
    data = ["--dataset", str(images), "--test-images", "4"]
    main(["--models", "dchn_tiny_cifar10", *sizes, *data, "--precisions", "bf16"])
    table = capsys.readouterr().out
    assert "c-ep, paper" in table
    assert "c-ep, ours" in table
    assert "GFLOP/s" in table
    assert "error in 4 test images: " in table


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--test-images", "4"], "--test-images asks for a --dataset."),
        (["--beta", "1"], "A negative nudge needs beta below 1"),
        (["--repeats", "0"], "argument --repeats: a whole number of at least 1 is asked for, not '0'"),
        (["--batch-size", "many"], "argument --batch-size: a whole number of at least 1 is asked for, not 'many'"),
    ],
)
def test_options_out_of_range_are_refused(capsys, arguments, sentence):
    with pytest.raises(SystemExit):
        main(arguments)
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("command", [benchmark, gradients_command])
@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("resnet18", "'resnet18' is no network of timm_ebl: choose one of dchn_cifar10, "),
        ("dchn_tiny", "'dchn_tiny' is no network of timm_ebl: choose one of dchn_cifar10, "),
        ("dchn_tiny_cifar10.none", "dchn_tiny_cifar10.none: Invalid pretrained tag (none)"),
        ("local-dir:nowhere", "local-dir:nowhere: nowhere/config.json cannot be read"),
        ("hf-hub:nobody/nothing", "hf-hub:nobody/nothing: config.json of nobody/nothing cannot be loaded"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_said_in_a_sentence(capsys, command, model, sentence):
    with pytest.raises(SystemExit, match="1"):
        command.main(["--models", "dchn_tiny_cifar10", model])
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith(f"error: {sentence}")


def test_images_that_do_not_fit_a_model_are_said_in_a_sentence(images, capsys):
    with pytest.raises(SystemExit, match="1"):
        main(["--models", "dchn_tiny_mnist", "--dataset", str(images)])
    sentence = "error: dchn_tiny_mnist: the images have 3 channels but the statistics have 1"
    assert capsys.readouterr().err.splitlines()[-1].startswith(sentence)
