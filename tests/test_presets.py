"""The presets of a run are those of the family of its network."""

import json
import re

import pytest
import timm
import torch
from hub_server import Repo
from runs import network_for

from timm_ebl import Minimizer, create_rule
from timm_ebl.models.factory import family_of, list_networks
from timm_ebl.training.build import build_rule, free_phase
from timm_ebl.training.command_line import parse_config
from timm_ebl.training.origin import settle_config
from timm_ebl.training.presets import preset, useless_for
from timm_ebl.training.yaml12 import dump_yaml


def test_a_run_relaxes_by_default_as_the_network_does_by_itself():
    config = parse_config(["--model", "hopfield_resnet13_tiny_mnist"])
    assert Minimizer(**free_phase(config)) == timm.create_model(config.model).minimizer
    assert config.lr == (1e-3,)
    assert parse_config(["--model", "hopfield_resnet13_tiny_mnist", "--lr", "0.01"]).lr == (0.01,)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], ("muon", (1e-3,), 0.3)),
        (["--model", "dchn_small_cifar10"], ("muon", (3e-4,), 0.3)),
        (["--model", "dchn_cifar10"], ("muon", (1.5e-4,), 0.6)),
        (["--lr", "0.5", "--weight-decay", "0"], ("muon", (0.5,), 0.0)),
        (["--opt", "adamw"], ("adamw", (2e-3,), 0.0)),
        (["--opt", "muon", "--lr", "0.5"], ("muon", (0.5,), 0.3)),
        (["--preset", "paper"], ("adamw", (2e-3,), 0.0)),
        (["--model", "pcn_vgg5_tiny_mnist"], ("adamw", (2e-3,), 0.0)),
        (["--model", "hopfield_resnet13_tiny_mnist", "--opt", "sgd"], ("sgd", (1e-3,), 0.0)),
    ],
)
def test_a_dchn_learns_by_muon_at_a_rate_for_its_width_unless_another_optimiser_is_named(options, expected):
    config = parse_config(options)
    assert (config.opt, config.lr, config.weight_decay) == expected


def test_a_network_of_the_users_own_has_the_narrow_ones_rate_whatever_its_name():
    assert preset("fast", "dchn_of_mine", None) == preset("fast", "dchn_tiny_mnist", None)


@pytest.mark.parametrize(
    ("dataset", "beta"),
    [
        ("mnist", 0.1),
        ("fashion-mnist", 0.15),
        ("zalando-datasets/fashion_mnist", 0.15),
        (None, 0.15),
        ("cifar10", 0.1),
        ("cifar100", 0.15),
    ],
)
def test_the_preset_of_the_paper_is_that_of_the_family(dataset, beta):
    options = ["--dataset", dataset] if dataset else []
    config = parse_config(["--preset", "paper", "--model", "hopfield_resnet13_small_cifar10", *options])
    plain = Minimizer(sweeps=50, omega=1.0)
    expected = create_rule(
        "c-ep",
        free=Minimizer(sweeps=120, omega=1.0, start="zero"),
        perturbed=plain,
        beta=beta,
        linear_response=False,
        settle=False,
        damped=True,
    )
    assert build_rule(config, network_for(config, config.model)) == expected
    assert (config.mean, config.warm_start) == (None, False)
    assert parse_config(["--preset", "paper", *options]).free_sweeps == 60


@pytest.mark.parametrize(("network", "sweeps", "beta"), [("pcn_vgg5_tiny_mnist", 5, 0.02), ("pcn_vgg10", 10, 0.05)])
def test_a_predictive_coding_network_has_the_procedure_of_its_own_publication(network, sweeps, beta):
    config = parse_config(["--preset", "paper", "--model", network, "--dataset", "cifar10"])
    rule = build_rule(config, timm.create_model(network, device="meta"))
    plain = Minimizer(sweeps=sweeps, omega=1.0)
    assert (rule.perturbed, rule.beta, rule.linear_response, rule.damped) == (plain, beta, False, True)
    assert (config.mean, config.warm_start) == (None, False)


def test_the_baselines_reach_the_first_layer_of_a_predictive_coding_network():
    config = parse_config(["--preset", "paper", "--model", "pcn_vgg5_tiny_mnist", "--algo", "rbp"])
    model = timm.create_model(config.model)
    assert build_rule(config, model).second_phase == model.adjoint
    assert model.adjoint.sweeps == 6


FAMILIES = {
    "hopfield_resnet13_tiny_mnist": {"fast": (15, (1.8,), (1e-3,), None), "paper": (120, (1.0,), (2e-3,), 50)},
    "dchn_tiny_mnist": {"fast": (7, Minimizer.omega, (1e-3,), None), "paper": (60, (1.0,), (2e-3,), 15)},
}


@pytest.mark.parametrize("network", FAMILIES)
@pytest.mark.parametrize("where", ["local-dir:{}", "{}", "hf-hub:me/net", "me/net"])
def test_the_preset_is_that_of_the_checkpoint_however_it_is_called(network, where, tmp_path, hub):
    torch.manual_seed(0)
    timm.models.save_for_hf(timm.create_model(network, widths=[2]), tmp_path / "net", safe_serialization=True)
    hub.repos["models", "me/net"] = Repo(
        commits=[{name: (tmp_path / "net" / name).read_bytes() for name in ("config.json", "model.safetensors")}]
    )
    for name, expected in FAMILIES[network].items():
        config = parse_config(["--preset", name, "--pretrained", where.format(tmp_path / "net")])
        assert (config.free_sweeps, config.omega, config.lr, config.nudged_sweeps) == expected
    plain = parse_config(["--pretrained", where.format(tmp_path / "net")])
    assert (plain.free_sweeps, plain.omega, plain.lr) == FAMILIES[network]["fast"][:3]


def test_a_checkpoint_that_is_not_there_is_refused_before_its_preset_is_asked_for(capsys):
    with pytest.raises(SystemExit):
        parse_config(["--preset", "paper", "--pretrained", "local-dir:runs/some"])
    assert "--pretrained local-dir:runs/some: runs/some is neither a folder nor" in capsys.readouterr().err


OWN = {"order": "backward", "sweeps": 11, "omega": [1.5, 1.2], "start": "zero"}
TAKEN = (11, (1.5, 1.2), "backward", "zero")


@pytest.mark.parametrize(
    ("saved", "options", "expected"),
    [
        (OWN, [], TAKEN),
        (OWN, ["--model", "dchn_tiny_mnist"], TAKEN),
        (OWN, ["--free-sweeps", "5"], (5, *TAKEN[1:])),
        (OWN, ["--preset", "fast"], (7, Minimizer.omega, "asynchronous", "feedforward")),
        (OWN, ["--preset", "paper"], (60, (1.0,), "asynchronous", "zero")),
        ({"sweeps": 11}, [], (11, Minimizer.omega, "asynchronous", "feedforward")),
        (OWN | {"sweeps": 1000, "tolerance": 1e-3}, [], (7, *TAKEN[1:])),
    ],
)
def test_a_run_has_the_free_phase_of_its_checkpoint_below_what_it_is_told(saved, options, expected, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("dchn_tiny_mnist", widths=[2], **saved)
    timm.models.save_for_hf(model, tmp_path / "net", safe_serialization=True)
    (tmp_path / "recipe.yaml").write_text("batch_size: 9\n")
    command = ["--config", str(tmp_path / "recipe.yaml"), "--pretrained", str(tmp_path / "net"), *options]
    config, origin = settle_config(parse_config(command))
    assert (config.free_sweeps, config.omega, config.order, config.start) == expected
    told = {"--free-sweeps", "--preset"} & {*options} or "tolerance" in saved  # which no run has
    assert ("and the free phase of" in origin.describe(config, "0123456789")) != bool(told)
    (tmp_path / "recipe.yaml").write_text(dump_yaml(config.to_dict()))
    assert settle_config(parse_config(command[:2])) == (config, origin)


def test_a_free_phase_that_is_none_is_refused(net, capsys):
    config = json.loads((net / "config.json").read_text())
    config["model_args"]["omega"] = "fast"
    (net / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit):
        parse_config(["--pretrained", str(net)])
    assert "omega of the checkpoint is a number" in capsys.readouterr().err


PCN = "pcn_vgg5_tiny_fashion_mnist"


@pytest.mark.parametrize("where", [["--model", PCN], ["--pretrained", "pcn_vgg5_small_cifar10"]])
@pytest.mark.parametrize(
    "option", ["--free-sweeps 99", "--omega 0.5", "--order synchronous", "--start zero", "--warm-start"]
)
def test_what_a_forward_pass_has_no_use_for_is_refused(where, option, capsys):
    with pytest.raises(SystemExit):
        parse_config([*where, *option.split()])
    flag = option.split()[0]
    assert re.search(f"Model 'pcn_.*' has no use for {flag}: its free phase is a forward pass", capsys.readouterr().err)


def test_a_recipe_of_old_has_what_a_forward_pass_has_no_use_for_and_means_the_same(tmp_path):
    command = ["--preset", "paper", "--model", PCN]
    config = parse_config(command)
    old = {"free_sweeps": 7, "omega": [1.0], "order": "asynchronous", "start": "zero", "warm_start": False}
    assert not old.keys() & config.to_dict().keys()
    for settings in (config.to_dict(), config.to_dict() | old):
        (tmp_path / "args.yaml").write_text(dump_yaml(settings))
        again = parse_config(["--config", str(tmp_path / "args.yaml")])
        assert (again, again.decisive()) == (config, config.decisive())
    assert old.keys() <= parse_config(["--model", "dchn_tiny_mnist"]).to_dict().keys()


def test_the_free_phases_that_are_forward_passes_are_those_of_networks_that_rest():
    for name in list_networks():
        assert bool(useless_for(name)) == family_of(name).rests, name
