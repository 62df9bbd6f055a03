"""The average of the weights: by hand, beside an untouched training, taken up again, and as what a run leaves."""

import pytest
import timm
import torch
from accelerate import Accelerator
from runs import SMALL, arguments, assert_same_run, last_weights, results, train
from torch.nn.utils import parametrizations

from timm_ebl.data.loader import build_train_loader
from timm_ebl.errors import ConfigError
from timm_ebl.hub.package import package
from timm_ebl.training.average import WeightAverage
from timm_ebl.training.build import build_model, build_optimizer, build_transform
from timm_ebl.training.command_line import parse_config
from timm_ebl.training.engine import train_epoch
from timm_ebl.training.progress import Progress
from timm_ebl.training.rule import build_rule
from timm_ebl.training.splits import load_splits
from timm_ebl.training.task import RuleTask
from timm_ebl.training.trained import TrainedModel

FAST = ["--warm-start", "--lr", 0.02]
EMA = ["--model-ema", "--model-ema-decay", 0.8, *FAST]
NETWORKS = {
    "dchn": ["--model", "dchn_tiny_fashion_mnist", *SMALL],
    "frozen": ["--model", "dchn_tiny_fashion_mnist", "--freeze", "2", *SMALL],
    "weight norm": ["--model", "dchn_tiny_fashion_mnist", *SMALL],
    "pcn": ["--model", "pcn_vgg5_tiny_mnist", "--model-kwargs", "widths=[4, 4, 4, 4, 4]"],
    "hopfield_resnet": ["--model", "hopfield_resnet13_tiny_fashion_mnist"],
}


@pytest.fixture(scope="module")
def averaged(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "averaged"
    train(*arguments(folder, out, *EMA))
    return out


def last_average(out):
    *_, last = sorted((out / "checkpoints").iterdir())
    return torch.load(last / "run.pt", weights_only=True)["average"]


# ------------------------------------------------------------------------------------------------------------ by hand


def average_by_hand(weights, decay, warmup):
    """Of the weights after each step, in 64 bits."""
    mean = None
    for step, now in enumerate(weights, 1):
        kept = 0.0 if step == 1 else min(decay, 1 - step ** (-2 / 3)) if warmup else decay
        mean = {name: kept * (mean or now)[name] + (1 - kept) * now[name] for name in now}
    return mean


@pytest.mark.parametrize(("network", "warmup"), [("dchn", False), *((network, True) for network in NETWORKS)])
def test_it_is_that_of_the_weights_after_each_step_and_a_step_that_is_left_out_is_none(folder, network, warmup):
    torch.manual_seed(0)  # a network of four channels may be dead by chance, and learn nothing
    config = parse_config(["--dataset", str(folder), "--nudged-sweeps", "2", *NETWORKS[network]])
    data = load_splits(config)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = build_model(config, data.train)
    if network == "weight norm":
        parametrizations.weight_norm(model.head)
    task, optimizer = accelerator.prepare(RuleTask(model, build_rule(config, model)), build_optimizer(config, model))
    average = WeightAverage(model, 0.6, warmup)
    loader, transform = build_train_loader(data.train, 5, 0, accelerator), build_transform(config, data.train)
    x, steps, batches = torch.rand(3, *data.train.images.shape[1:]), [], 0

    def backward(loss):
        nonlocal batches
        batches += 1
        loss.backward()
        if batches == 6:
            model.head.bias.grad[0] = torch.nan

    def between():
        now = {name: weight.detach().double() for name, weight in model.state_dict().items()}
        if batches % 2 == 0 and batches != 6:
            steps.append(now)
        average.module.answer(x)  # whatever a network keeps of its weights is kept now

    accelerator.backward = backward
    options = {"skip_bad_batches": True, "average": average, "between": between}
    train_epoch(accelerator, task, loader, optimizer, transform, Progress(), **options)
    assert (batches, len(steps), average.steps) == (10, 4, 4)
    expected, found = average_by_hand(steps, 0.6, warmup), average.module.state_dict()
    for name, weight in found.items():
        torch.testing.assert_close(weight.double(), expected[name], rtol=1e-5, atol=1e-6)
        same = config.freeze and name.startswith(("layers.0.", "layers.1."))
        assert torch.equal(weight, model.state_dict()[name]) == bool(same), name

    fresh = build_model(config, data.train)
    if network == "weight norm":
        parametrizations.weight_norm(fresh.head)
    fresh.load_state_dict(found)
    with torch.no_grad():
        assert torch.equal(average.module.eval().answer(x), fresh.eval().answer(x))
        assert not torch.equal(average.module.answer(x), model.eval().answer(x))


def test_a_step_that_a_gradient_scaler_leaves_out_is_none(folder, monkeypatch):
    config = parse_config(["--dataset", str(folder), *SMALL])
    data, accelerator = load_splits(config), Accelerator(cpu=True)
    model = build_model(config, data.train)
    average = WeightAverage(model, 0.6)
    parts = RuleTask(model, build_rule(config, model)), build_train_loader(data.train, 9, 0, accelerator)
    monkeypatch.setattr(Accelerator, "optimizer_step_was_skipped", property(lambda self: progress.step % 2 == 0))
    progress = Progress()
    train_epoch(accelerator, *parts, build_optimizer(config, model), build_transform(config, data.train), progress,
                average=average)  # fmt: skip
    assert (progress.step, average.steps) == (6, 3)


# --------------------------------------------------------------------------------------------------------- end to end


def test_training_is_the_same_to_the_bit_and_both_held_out_errors_are_noted(folder, averaged, tmp_path):
    train(*arguments(folder, tmp_path / "plain", *FAST))
    weights, others = last_weights(averaged), last_weights(tmp_path / "plain")
    assert all(torch.equal(weights[name], others[name]) for name in others)
    for epoch, other in zip(results(averaged)[1], results(tmp_path / "plain")[1], strict=True):
        assert epoch["held_out_cost"] != other["held_out_cost"]
        assert epoch.pop("held_out_error_unaveraged") == other["held_out_error"]
        for own in ("held_out_error", "held_out_cost"):
            epoch.pop(own), other.pop(own)
        assert epoch == other


def test_what_a_run_leaves_is_the_average(folder, tmp_path):
    out = tmp_path / "run"
    train(*arguments(folder, out, *EMA, "--holdout", 0))
    kept, metrics, summary = results(out)
    average = last_average(out)
    assert average["_extra_state"] == 18
    assert all(torch.equal(kept[name], average[f"module.{name}"]) for name in kept)
    assert any(not torch.equal(kept[name], weight) for name, weight in last_weights(out).items())
    assert [epoch["held_out_error"] for epoch in metrics] == [None] * 3

    run = TrainedModel.open(f"local-dir:{out}")
    test = run.test_split()
    assert run.measure(test).error == pytest.approx(summary["test_error"])
    model = timm.create_model(f"local-dir:{out}", pretrained=True)
    assert all(torch.equal(weight, kept[name]) for name, weight in model.state_dict().items())
    (tmp_path / "records").mkdir()
    name = package(run, weights=tmp_path / "weights", records=tmp_path / "records")
    card = (tmp_path / "records" / name / "README.md").read_text()
    assert "weight decay 0.3; moving average of the weights, decay 0.8 at most |" in card


def test_the_best_epoch_is_that_of_the_average_and_the_run_says_what_it_keeps(folder, averaged, capsys):
    _, metrics, summary = results(averaged)
    errors = [epoch["held_out_error"] for epoch in metrics]
    assert (summary["held_out_error"], summary["best_epoch"]) == (min(errors), errors.index(min(errors)) + 1)
    train(*arguments(folder, averaged, *EMA), "--resume")
    assert "keeps:  the moving average of the weights, decay 0.8 at most\n" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------- taken up again


@pytest.mark.parametrize("calls", [7, 8, 13])
def test_a_run_stopped_in_training_or_in_either_evaluation_goes_on_exactly(
    folder, averaged, tmp_path, train_until, calls
):
    command = arguments(folder, tmp_path / "run", *EMA)
    train_until(calls, *command)
    train(*command, "--resume")
    assert_same_run(tmp_path / "run", averaged)
    found, expected = last_average(tmp_path / "run"), last_average(averaged)
    assert found.pop("_extra_state") == expected.pop("_extra_state") == 18
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_asked_for_later_it_begins_with_the_weights_of_then(folder, tmp_path, train_until):
    out = tmp_path / "run"
    train_until(7, *arguments(folder, out, "--epochs", 1))  # all steps are done
    command = [*arguments(folder, out, *EMA, "--epochs", 1), "--resume"]
    with pytest.raises(ConfigError, match="model_ema was False and is True"):
        train(*command)
    train(*command, "--force")
    average = last_average(out)
    assert average["_extra_state"] == 0
    assert all(torch.equal(average[f"module.{name}"], weight) for name, weight in last_weights(out).items())
