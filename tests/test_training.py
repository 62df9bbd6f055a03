"""End to end: the script, its parts and what it leaves behind."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import timm
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from runs import SCRIPT, SMALL, arguments, last_weights, results, train, train_ebl, write_images

import timm_ebl
from timm_ebl.data.dataset import load_dataset
from timm_ebl.data.loader import build_eval_loader, build_train_loader
from timm_ebl.errors import ConfigError
from timm_ebl.tools import plots
from timm_ebl.training.build import build_model, build_optimizer, build_transform
from timm_ebl.training.command_line import parse_config
from timm_ebl.training.config import TrainConfig
from timm_ebl.training.engine import evaluate, train_epoch
from timm_ebl.training.progress import Progress
from timm_ebl.training.rule import build_rule
from timm_ebl.training.splits import load_splits
from timm_ebl.training.task import RuleTask


def run(*arguments, **streams):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", str(SCRIPT), *map(str, arguments)]
    environment = {**os.environ, "OMP_DISPLAY_ENV": "VERBOSE"}
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        environment.pop(name, None)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return subprocess.run(command, text=True, env=environment, **streams)


def test_one_command_trains_and_leaves_the_results(folder, tmp_path):
    out = tmp_path / "run"
    result = run("--dataset", folder, "--epochs", 12, "--batch-size", 6, "--output-dir", out, "--lr", 4e-3, *SMALL)
    assert result.returncode == 0, result.stderr
    if "GOMP_SPINCOUNT" in result.stderr:  # GNU's OpenMP says how its threads wait; the script's is the last one
        assert result.stderr.rpartition("GOMP_SPINCOUNT = ")[2].startswith("'3000'")
    summary = json.loads((out / "summary.json").read_text())
    epochs = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    settings = yaml.safe_load((out / "args.yaml").read_text())

    assert sorted(path.name for path in out.iterdir()) == [
        ".lock",
        "args.yaml",
        "checkpoints",
        "config.json",
        "curves.png",
        "metrics.jsonl",
        "model.safetensors",
        "predictions.safetensors",
        "summary.json",
    ]
    assert summary["test_error"] <= 20
    assert (summary["algo"], summary["epochs"], summary["seed"]) == ("c-ep", 12, 0)
    assert summary["held_out_error"] == min(epoch["held_out_error"] for epoch in epochs)
    assert epochs[summary["best_epoch"] - 1]["held_out_error"] == summary["held_out_error"]
    assert settings["algo"] == "c-ep"
    assert settings["batch_size"] == 6
    assert Image.open(out / "curves.png").size[0] > 600
    assert f"test error {summary['test_error']:.2f} %" in result.stdout

    # The weights are the selected epoch's: measured anew from the folder, they have the error that was reported.
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    test = load_dataset(str(folder), "test")
    transform = build_transform(TrainConfig(), load_splits(TrainConfig(dataset=str(folder))).train)
    error = (model(transform.eval(test.images)).argmax(1) != test.labels).double().mean() * 100
    assert float(error) == pytest.approx(summary["test_error"])


def test_the_first_lines_say_that_the_embedded_sample_is_used(tmp_path):
    arguments = ["--epochs", 1, "--batch-size", 500, "--free-sweeps", 1, "--nudged-sweeps", 1]
    result = run(*arguments, "--output-dir", tmp_path / "run", *SMALL)
    assert result.returncode == 0, result.stderr
    assert "fashion-mnist-sample (embedded" in result.stdout.splitlines()[0]


@pytest.mark.parametrize("algo", timm_ebl.list_rules())
def test_every_rule_runs_from_the_parts(folder, algo):
    config = parse_config(["--algo", algo, "--dataset", str(folder), *SMALL])
    data = load_splits(config)
    accelerator = Accelerator(cpu=True)
    model = build_model(config, data.train)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    task, optimizer = accelerator.prepare(RuleTask(model, build_rule(config, model)), build_optimizer(config, model))
    loader, progress = build_train_loader(data.train, 16, 0, accelerator), Progress()
    transform = build_transform(config, data.train)
    metrics = train_epoch(accelerator, task, loader, optimizer, transform, progress, warm_start=True)
    assert progress.step == len(loader) == 3
    assert all(torch.isfinite(torch.tensor(value)) for value in metrics.values())
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert len(progress.state) == 5
    assert not any(layer.requires_grad for layer in progress.state)


def test_the_same_seed_gives_the_same_weights(folder, tmp_path):
    weights = []
    for name in ("one", "two"):
        arguments = [
            "--dataset",
            folder,
            "--epochs",
            1,
            "--batch-size",
            8,
            "--seed",
            5,
            "--output-dir",
            tmp_path / name,
        ]
        assert run(*arguments, *SMALL).returncode == 0
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


@pytest.mark.parametrize("algo", ["c-ep", "n-ep", "cl", "tbp", "rbp"])
def test_warm_start_goes_on_from_the_second_phase_within_an_epoch(folder, algo):
    config = parse_config(["--algo", algo, "--dataset", str(folder), "--warm-start", *SMALL])
    data = load_splits(config)
    starts, ends = [], []

    class Recorder(RuleTask):
        def forward(self, input, target, start=None):
            result = super().forward(input, target, start)
            starts.append(start)
            ends.append(result["last"])
            return result

    model, accelerator, progress = build_model(config, data.train), Accelerator(cpu=True), Progress()
    loader = build_train_loader(data.train, 27, 0, accelerator)
    parts = (loader, build_optimizer(config, model), build_transform(config, data.train))
    for _ in range(2):
        train_epoch(
            accelerator, Recorder(model, build_rule(config, model)), *parts, progress, warm_start=config.warm_start
        )
        progress.finish_epoch({"held_out_error": 0.0}, model.state_dict())
    assert starts[0] is starts[2] is None
    assert all(torch.equal(start, end) for start, end in zip(starts[1], ends[0], strict=True))
    assert [len(layer) for layer in starts[1]] == [27] * 5
    starts.clear()
    train_epoch(accelerator, Recorder(model, build_rule(config, model)), *parts, Progress())
    assert starts == [None, None]


def test_without_a_held_out_part_all_images_train_and_the_last_epoch_counts(folder, tmp_path, capsys):
    train(*arguments(folder, tmp_path / "run", "--holdout", 0, "--lr", 0.05))
    said = capsys.readouterr().out
    weights, metrics, summary = results(tmp_path / "run")
    assert "60 to train, 0 held out" in said
    assert "held-out" not in said
    assert f"test error {summary['test_error']:.2f} % after epoch 3, the last one" in said
    assert (summary["best_epoch"], summary["held_out_error"], summary["training_images"]) == (3, None, 60)
    assert [epoch["held_out_error"] for epoch in metrics] == [None] * 3
    last = last_weights(tmp_path / "run")
    assert all(torch.equal(weights[name], last[name]) for name in weights)
    plots.main([str(tmp_path / "run"), str(tmp_path / "run")])


def test_the_normalisation_may_be_chosen_and_travels_with_the_weights(folder, tmp_path):
    train(*arguments(folder, tmp_path / "run", "--mean", 0.4, "--std", 0.2, "--epochs", 1))
    config = timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True).pretrained_cfg
    assert (tuple(config["mean"]), tuple(config["std"])) == ((0.4,), (0.2,))
    colour = ("--mean", 0.4, 0.4, 0.4, "--std", 0.2, 0.2, 0.2)
    with pytest.raises(ConfigError, match="1 channel, and so many values go with --mean and --std; got 3 and 3"):
        train(*arguments(folder, tmp_path / "other", *colour))


def test_a_square_larger_than_the_images_is_refused(folder, tmp_path):
    train_set = load_dataset(str(folder), "train")
    side = max(train_set.images.shape[2:])
    assert build_transform(TrainConfig(cutout=side), train_set).cutout == side
    with pytest.raises(ConfigError, match=f"--cutout {side + 1} is larger than .* take a smaller square"):
        train(*arguments(folder, tmp_path / "run", "--cutout", side + 1))


def test_the_held_out_part_comes_from_the_training_split(folder):
    config = TrainConfig(dataset=str(folder), holdout=0.25)
    data = load_splits(config)
    train = {image.numpy().tobytes() for image in load_dataset(str(folder), "train").images}
    test = {image.numpy().tobytes() for image in load_dataset(str(folder), "test").images}
    held_out = {image.numpy().tobytes() for image in data.held_out.images}
    assert (len(data.train), len(data.held_out), len(data.test)) == (45, 15, 15)
    assert held_out < train
    assert not held_out & test
    assert not held_out & {image.numpy().tobytes() for image in data.train.images}


def test_evaluation_counts_every_image_once(folder):
    config = TrainConfig(dataset=str(folder), model_kwargs={"widths": [4, 4, 4, 4]})
    data = load_splits(config)
    model, transform = build_model(config, data.train), build_transform(config, data.train)
    accelerator = Accelerator(cpu=True)
    measured = evaluate(accelerator, model, build_eval_loader(data.test, 4, accelerator), transform)
    output = model(transform.eval(data.test.images))
    wrong = output.argmax(1) != data.test.labels
    target = torch.eye(3)[data.test.labels]
    assert measured["error"] == pytest.approx(float(wrong.double().mean() * 100))
    assert torch.equal(measured["predicted"], output.argmax(1))
    assert measured["cost"] == pytest.approx(float(((output - target) ** 2).sum(1).mean() / 2), rel=1e-5)


def test_the_script_refuses_before_it_works_and_without_a_traceback(folder, tmp_path):
    (tmp_path / "args.yaml").touch()
    result = run("--dataset", folder, "--output-dir", tmp_path, *SMALL)
    assert result.returncode == 1
    assert "holds a run already" in result.stderr
    assert "Traceback" not in result.stderr.split("error:")[0]


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["n-ep", "c-ep"])
def test_the_readmes_command_learns_fashion_mnist(algo, tmp_path):
    out = tmp_path / "run"
    with open(
        "/dev/full" if os.path.exists("/dev/full") else os.devnull, "w"
    ) as unread:  # a print that fails ends no run
        result = run("--algo", algo, "--epochs", 3, "--output-dir", out, stdout=unread)
    assert result.returncode == 0, result.stderr
    assert json.loads((out / "summary.json").read_text())["test_error"] < 50


def test_accumulated_gradients_are_those_of_the_whole_batch(folder, tmp_path):
    for name, options in (("whole", ["--batch-size", 18]), ("parts", ["--batch-size", 9, "--grad-accum-steps", 2])):
        train(*arguments(folder, tmp_path / name, "--algo", "tbp", "--opt", "momentum", *options))
    whole, parts = results(tmp_path / "whole"), results(tmp_path / "parts")
    for name, weight in whole[0].items():
        torch.testing.assert_close(parts[0][name], weight, rtol=1e-4, atol=1e-6)
    for first, second in zip(whole[1], parts[1], strict=True):
        assert first == pytest.approx(second, rel=1e-4)


def test_too_small_a_data_set_is_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"A step takes 60 images .* there are 54 to train on.*--batch-size"):
        train(*arguments(folder, tmp_path / "run", "--batch-size", 30, "--grad-accum-steps", 2))


def test_batches_follow_from_the_seed_and_the_epoch_alone(folder):
    data = load_splits(TrainConfig(dataset=str(folder))).train
    state = torch.random.get_rng_state()

    def rows(seed, epoch):
        loader = build_train_loader(data, 12, seed, Accelerator(cpu=True))
        loader.set_epoch(epoch)
        return [batch[2].tolist() for batch in loader]

    assert rows(0, 1) == rows(0, 1)
    assert len({str(rows(seed, epoch)) for seed in (0, 1) for epoch in (1, 2)}) == 4
    assert [len(batch) for batch in rows(0, 1)] == [12] * 4
    assert len({row for batch in rows(0, 1) for row in batch}) == 48
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_class_without_training_images_is_warned_of(folder, tmp_path, capsys):
    copy = write_images(tmp_path / "images")
    (copy / "train" / "right").rename(tmp_path / "gone")
    train(*arguments(copy, tmp_path / "run"))
    assert "warning: the class 'right' has no image to train on." in capsys.readouterr().err


@pytest.mark.slow
def test_a_compiled_run_has_the_metrics_of_a_plain_one(folder, tmp_path):
    """Traced by dynamo, as ``accelerate launch --dynamo_backend eager`` does; code generation needs a compiler."""
    command = arguments(folder, tmp_path / "plain", "--epochs", 1)
    train(*command)
    AcceleratorState._reset_state(True)
    config = train_ebl.parse_config([*command, "--output-dir", str(tmp_path / "compiled")])
    accelerator = Accelerator(cpu=True, dynamo_backend="eager")
    train_ebl.train(replace(config, mixed_precision="no"), accelerator)
    AcceleratorState._reset_state(True)
    plain, compiled = (results(tmp_path / name)[1][0] for name in ("plain", "compiled"))
    assert compiled == pytest.approx(plain, rel=1e-4)


def test_a_run_in_bfloat16_keeps_float32_weights(folder, tmp_path):
    AcceleratorState._reset_state(True)
    config = train_ebl.parse_config(arguments(folder, tmp_path / "run"))
    train_ebl.train(replace(config, mixed_precision="bf16"), Accelerator(cpu=True, mixed_precision="bf16"))
    AcceleratorState._reset_state(True)
    weights, metrics, _ = results(tmp_path / "run")
    assert all(weight.dtype == torch.float32 and bool(weight.isfinite().all()) for weight in weights.values())
    assert all(epoch["residual"] < 0.5 for epoch in metrics)
