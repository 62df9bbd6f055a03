"""A run that starts from a checkpoint: what it takes from it, what it learns anew, what it says of it."""

import json
import os
from dataclasses import replace
from statistics import fmean

import pytest
import timm
import torch
from accelerate import Accelerator
from oracles import signs_for
from runs import SMALL, arguments, assert_same_run, results, train
from safetensors.torch import load_file, save_file

from timm_ebl import create_rule, list_rules
from timm_ebl.data.loader import build_train_loader
from timm_ebl.errors import ConfigError
from timm_ebl.hub.package import package
from timm_ebl.training.build import build_model, build_optimizer, build_transform
from timm_ebl.training.command_line import parse_config
from timm_ebl.training.config import TrainConfig
from timm_ebl.training.engine import train_epoch
from timm_ebl.training.origin import Origin, settle_config
from timm_ebl.training.progress import Progress
from timm_ebl.training.schedule import Schedule
from timm_ebl.training.splits import load_splits
from timm_ebl.training.task import RuleTask
from timm_ebl.training.trained import TrainedModel

GREY, COLOUR = "dchn_tiny_mnist.c_ep", "dchn_tiny_cifar10.c_ep"


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """A run with a normalisation of its own, to start from."""
    out = tmp_path_factory.mktemp("runs") / "trained"
    train(*arguments(folder, out, "--mean", 0.4, "--std", 0.2, "--epochs", 1))
    return out


def start(folder, *options):
    """Settled configuration, checkpoint and model of a command line."""
    config, origin = settle_config(parse_config(["--dataset", str(folder), *map(str, options)]))
    return config, origin, build_model(config, load_splits(config).train, origin)


# What it takes from the checkpoint.


def test_a_run_starts_from_the_weights_of_another_with_its_normalisation(folder, trained, tmp_path, capsys):
    train("--dataset", folder, "--pretrained", f"local-dir:{trained}", "--lr", 0, "--min-lr", 0, "--epochs", 1,
          "--batch-size", 9, "--output-dir", tmp_path / "run", "--threads", 1)  # fmt: skip
    said = capsys.readouterr().out
    assert f"the weights and the free phase of local-dir:{trained}; grey images less 0.4, divided by 0.2" in said
    before, after = results(trained), results(tmp_path / "run")
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    assert before[2]["test_error"] == after[2]["test_error"]
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (stored["pretrained_cfg"]["mean"], stored["pretrained_cfg"]["std"]) == ([0.4], [0.2])
    assert stored["model_args"]["widths"] == [4, 4, 4, 4]


def test_the_read_out_alone_is_new_where_the_classes_are_others(folder):
    config, origin, model = start(folder, "--pretrained", GREY)
    source = timm.create_model(GREY, pretrained=True)
    assert all(torch.equal(a, b) for a, b in zip(model.layers.parameters(), source.layers.parameters(), strict=True))
    assert (model.num_classes, config.model, config.channels) == (3, "dchn_tiny_mnist", "grey")
    assert "new read-out of 3 classes" in origin.describe(config, ("left", "right", "dark"))


def test_as_many_classes_of_other_names_have_a_new_read_out(folder, trained):
    config, origin = settle_config(TrainConfig(pretrained=str(trained), dataset=str(folder)))
    data = load_splits(config).train
    kept = build_model(config, data, origin)
    anew = build_model(config, replace(data, classes=("a", "b", "c")), origin)
    unnamed = replace(origin, config={key: value for key, value in origin.config.items() if key != "label_names"})
    weight = results(trained)[0]["head.weight"]
    assert torch.equal(kept.head.weight, weight)
    assert not torch.equal(anew.head.weight, weight)
    assert torch.equal(anew.layers[0].weight, kept.layers[0].weight)
    assert torch.equal(build_model(config, replace(data, classes=("a", "b", "c")), unnamed).head.weight, weight)


def test_images_are_read_as_the_checkpoint_takes_them(folder):
    config, _, model = start(folder, "--pretrained", COLOUR)
    assert (config.channels, config.img_size, model.in_chans) == ("colour", 32, 3)
    assert config.mean == (0.4914, 0.4822, 0.4465)
    config, _ = settle_config(TrainConfig(pretrained=COLOUR, mean=(0.5,) * 3, std=(0.1,) * 3, img_size=48))
    assert (config.mean, config.std, config.img_size) == ((0.5,) * 3, (0.1,) * 3, 48)


def test_a_grey_network_sees_the_mean_of_the_channels_of_colour_images():
    """``w/3 sum_c (x_c - m)/s = w (mean_c x_c - m)/s``: the drive of a colour image is that of its mean."""
    config, origin = settle_config(TrainConfig(pretrained=GREY, channels="colour"))
    (mean,), (std,) = (origin.config["pretrained_cfg"][key] for key in ("mean", "std"))
    assert (config.mean, config.std) == ((mean,) * 3, (std,) * 3)
    model = timm.create_model(f"local-dir:{origin.folder}", pretrained=True, in_chans=3)
    source, pixels = timm.create_model(GREY, pretrained=True), torch.rand(4, 3, 32, 32)
    drives = [
        network.layers[0].drive((images - mean) / std)
        for network, images in ((model, pixels), (source, pixels.mean(1, keepdim=True)))
    ]
    torch.testing.assert_close(*drives, rtol=0, atol=1e-3)  # 16 bits of each weight are stored


def test_a_colour_checkpoint_is_normalised_by_its_mean_for_grey_images():
    config, origin = settle_config(TrainConfig(pretrained=COLOUR, channels="grey"))
    assert config.mean == (fmean(origin.config["pretrained_cfg"]["mean"]),)


def test_a_short_name_is_recorded_whole():
    config, origin = settle_config(TrainConfig(pretrained="dchn_tiny_mnist"))
    assert config.pretrained == origin.name == GREY
    assert settle_config(config)[0] == config


def test_folders_are_recorded_by_their_whole_paths(trained, tmp_path, monkeypatch):
    """So that a run is resumed and published from any folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("garments", "mnist", "copies"):
        (tmp_path / name).mkdir()
    near = os.path.relpath(trained)
    config, _ = settle_config(TrainConfig(dataset="garments", data_root="copies", pretrained=f"local-dir:{near}"))
    assert (config.dataset, config.data_root) == (str(tmp_path / "garments"), str(tmp_path / "copies"))
    assert config.pretrained == f"local-dir:{trained}"
    assert settle_config(TrainConfig(pretrained=near))[0].pretrained == str(trained)
    for name in ("mnist", "owner/name", None):
        assert settle_config(TrainConfig(dataset=name))[0].dataset == name


def test_without_a_checkpoint_nothing_but_the_size_is_settled():
    assert settle_config(TrainConfig()) == (TrainConfig(img_size=32), None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pretrained": "resnet18"}, ["--pretrained resnet18", GREY]),
        ({"pretrained": "local-dir:/nowhere"}, ["/nowhere", "neither a folder"]),
        ({"model": "dchn_small_mnist"}, ["dchn_tiny_mnist", "--model dchn_small_mnist", "leave"]),
        ({"model_kwargs": {"widths": [8, 8, 8, 8]}}, ["decides widths", "--model-kwargs"]),
        ({"model_kwargs": {"pooling": "average"}}, ["decides pooling", "--model-kwargs"]),
    ],
)
def test_what_contradicts_the_checkpoint_is_refused_in_one_sentence(change, words):
    with pytest.raises(ConfigError) as refusal:
        settle_config(TrainConfig(**{"pretrained": GREY, **change}))
    assert all(word in str(refusal.value) for word in words), refusal.value
    assert "\n" not in str(refusal.value)


def test_damaged_weights_end_a_run_before_its_data_are_loaded(trained, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    content = bytearray((tmp_path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match=r"--pretrained .*damaged"):
        train("--dataset", "/nowhere", "--pretrained", tmp_path, *SMALL)


# What it says of it.


def test_a_finetuned_model_is_packaged_with_where_it_comes_from(folder, trained, tmp_path):
    out = tmp_path / "run"
    train("--dataset", folder, "--pretrained", trained, "--freeze", 2, "--warmup-epochs", 1, "--clip-grad", 1.0,
          "--epochs", 2, "--batch-size", 9, "--output-dir", out, "--threads", 1)  # fmt: skip
    digest = Origin.open(str(trained)).sha256
    assert json.loads((out / "summary.json").read_text())["pretrained_sha256"] == digest
    (tmp_path / "records").mkdir()
    name = package(TrainedModel.open(out), weights=tmp_path / "weights", records=tmp_path / "records")
    records = tmp_path / "records" / name
    card, recipe = ((records / file).read_text() for file in ("README.md", "args.yaml"))
    assert (
        f"| started from | `trained` (SHA-256 {digest[:16]}..); the lowest 2 interactions keep their weights |" in card
    )
    assert "after a rise from 0 over epochs 1 to 1" in card
    assert "gradients of norm 1.0 at most" in card
    assert "pretrained: trained\n" in recipe
    for path in records.glob("*.[jmy]*"):
        assert str(tmp_path.parent) not in path.read_text(), path


def test_a_run_from_other_weights_is_not_resumed(folder, trained, tmp_path):
    copy = tmp_path / "origin"
    copy.mkdir()
    for name in ("config.json", "model.safetensors"):
        (copy / name).write_bytes((trained / name).read_bytes())
    command = ["--dataset", folder, "--pretrained", copy, "--epochs", 1, "--batch-size", 27, "--output-dir",
               tmp_path / "run", "--threads", 1]  # fmt: skip
    train(*command)
    again = results(tmp_path / "run")
    train(*command, "--resume")
    assert results(tmp_path / "run")[1:] == again[1:]
    config = json.loads((copy / "config.json").read_text())
    save_file({name: 2 * weight for name, weight in load_file(copy / "model.safetensors").items()},
              copy / "model.safetensors", {"format": "pt"})  # fmt: skip
    (copy / "config.json").write_text(json.dumps({key: value for key, value in config.items() if key != "sha256"}))
    with pytest.raises(ConfigError, match="pretrained_sha256 was"):
        train(*command, "--resume")


# What it learns.


@pytest.mark.parametrize("algo", list_rules())
def test_frozen_interactions_keep_their_weights_under_every_rule(folder, algo):
    config, _, model = start(folder, "--algo", algo, "--pretrained", GREY, "--freeze", 2, "--weight-decay", 0.1)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = build_optimizer(config, model)
    x = torch.rand(6, 1, 32, 32)
    rule = create_rule(algo)
    rule(model, x, torch.tensor([0, 1, 2] * 2), **signs_for(rule, x)).loss.backward()
    assert [parameter.grad is None for parameter in model.parameters()] == [True] * 4 + [False] * 6
    optimizer.step()
    same = [torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert same[:4] == [True] * 4
    assert not any(same[-2:])
    assert len(optimizer.param_groups) == 3


def test_the_gradient_of_the_layers_that_learn_is_the_same_with_frozen_ones_below(folder):
    found = []
    for freeze in (0, 2):
        torch.manual_seed(0)
        _, _, model = start(folder, "--pretrained", GREY, "--freeze", freeze)
        x = torch.rand(6, 1, 32, 32, generator=torch.Generator().manual_seed(0))
        create_rule("c-ep")(model, x, torch.tensor([0, 1, 2] * 2)).loss.backward()
        found.append([parameter.grad for parameter in model.parameters()][4:])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_rates_rise_from_zero_batch_by_batch_and_then_follow_the_cosine():
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [w], "lr": r} for w, r in zip(weights, (0.1, 0.4), strict=True)])
    schedule, progress, found = Schedule(optimizer, 4, 0.01, warmup_epochs=2), Progress(), []
    for progress.epoch in range(1, 5):
        for progress.step in range(5):
            schedule.follow(progress, 5)
            found.append([group["lr"] for group in optimizer.param_groups])
    cosine = [0.5 * (1 + torch.tensor(torch.pi * t / 4).cos().item()) for t in (2, 3)]
    for group, rate in enumerate((0.1, 0.4)):
        rise = [rate * (batch + 1) / 10 for batch in range(9)]
        fall = [0.01 + (rate - 0.01) * value for value in cosine]
        expected = rise + [fall[0]] * 6 + [fall[1]] * 5
        assert [rates[group] for rates in found] == pytest.approx(expected)


def test_a_gradient_is_scaled_down_to_the_norm_that_it_may_have(folder):
    """A step of plain SGD with rate 1 moves the weights by the gradient."""
    moves = []
    for bound in (None, 0.05, 1e6):
        torch.manual_seed(0)
        config, _, model = start(folder, "--pretrained", GREY, "--freeze", 1)
        data, accelerator = load_splits(config).train, Accelerator(cpu=True)
        before = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
        task, optimizer = accelerator.prepare(
            RuleTask(model, create_rule("c-ep")), torch.optim.SGD(model.parameters(), 1.0)
        )
        loader, transform = build_train_loader(data, 54, 0, accelerator), build_transform(config, data)
        train_epoch(accelerator, task, loader, optimizer, transform, Progress(), clip_grad=bound)
        moves.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]) - before)
    free, bound, unbound = moves
    assert float(bound.norm()) == pytest.approx(0.05, rel=1e-3)
    assert torch.nn.functional.cosine_similarity(free, bound, dim=0) > 0.999
    assert torch.equal(free, unbound)


def test_a_finetuned_run_that_is_stopped_in_its_warm_up_goes_on_exactly(folder, trained, tmp_path, train_until):
    command = ["--dataset", folder, "--pretrained", trained, "--freeze", 1, "--warmup-epochs", 2, "--clip-grad", 0.1,
               "--epochs", 3, "--batch-size", 9, "--threads", 1, "--output-dir"]  # fmt: skip
    train(*command, tmp_path / "whole")
    train_until(8, *command, tmp_path / "stopped")
    train(*command, tmp_path / "stopped", "--resume")
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
