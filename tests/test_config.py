"""Settings of a run: precedence, types and refusals."""

import dataclasses
from pathlib import Path

import pytest
from runs import network_for

from timm_ebl import PAPER, Minimizer, create_rule
from timm_ebl.errors import ConfigError
from timm_ebl.training.command_line import parse_config
from timm_ebl.training.config import TrainConfig, read_recipe, resolve
from timm_ebl.training.rule import build_rule
from timm_ebl.training.yaml12 import dump_yaml

RECIPES = sorted(Path(__file__).parents[1].glob("hub_configs/*.yaml"))


def test_the_command_line_comes_before_the_file_and_the_file_before_the_defaults(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("epochs: 3\nbatch_size: 7\n")
    config = parse_config(["--config", str(recipe), "--epochs", "5"])
    assert (config.epochs, config.batch_size, config.seed) == (5, 7, TrainConfig().seed)


def test_an_explicit_default_on_the_command_line_overrides_the_file(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("epochs: 3\nwarm_start: true\n")
    config = parse_config(["--config", str(recipe), "--epochs", str(TrainConfig().epochs), "--no-warm-start"])
    assert config.epochs == TrainConfig().epochs
    assert not config.warm_start


def test_values_have_their_types(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("lr: [1e-3, 2.0e-3]\nweight_decay: 3e-4\nmodel_kwargs: {gains: [0.5, 0.4]}\nbeta: 1\n")
    config = resolve(read_recipe(recipe))
    assert config.lr == (1e-3, 2e-3)
    assert config.weight_decay == 3e-4
    assert config.model_kwargs == {"gains": [0.5, 0.4]}
    assert isinstance(config.beta, float)
    pairs = ["gains=[0.5, 0.4]", "widths=(8, 16)", "tolerance=1e-3", "pooling=average", "pool=2", "backward=None"]
    given = parse_config(["--model-kwargs", *pairs, "compiled=False", "--lr", "1", "2"])
    assert given.model_kwargs == {
        "gains": [0.5, 0.4],
        "widths": (8, 16),
        "tolerance": 1e-3,
        "pooling": "average",
        "pool": 2,
        "backward": None,
        "compiled": False,
    }
    assert given.lr == (1.0, 2.0)


def test_the_resolved_settings_are_a_recipe(tmp_path):
    config = parse_config(["--algo", "n-ep", "--lr", "0.1", "0.2", "--output-dir", "1e5", "--model-kwargs", "pool=3"])
    path = tmp_path / "args.yaml"
    path.write_text(dump_yaml(config.to_dict()))
    assert parse_config(["--config", str(path)]) == config


def test_the_configuration_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().epochs = 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--algo", "ep"], ["'ep'", "c-ep", "rbp"]),
        (["--algo", "cl", "--beta", "0.5"], ["cl", "no use for --beta"]),
        (["--algo", "tbp", "--nudged-omega", "1.5"], ["tbp", "no use for --nudged-omega"]),
        (["--algo", "rbp", "--nudged-order", "forward"], ["rbp", "no use for --nudged-order"]),
        (["--algo", "tbp", "--linear-response"], ["tbp", "linear"]),
        (["--algo", "cl", "--linear-response"], ["cl", "linear"]),
        (["--epochs", "0"], ["--epochs", "at least 1"]),
        (["--epochs", "2.5"], ["epochs", "whole number"]),
        (["--epochs", "many"], ["epochs", "whole number", "many"]),
        (["--randaugment", "3"], ["--randaugment", "two numbers", "0 to 20", "0 to 30", "(3,)"]),
        (["--randaugment", "3", "31"], ["--randaugment", "0 to 30", "(3, 31)"]),
        (["--randaugment", "-1", "9"], ["--randaugment", "0 to 20", "(-1, 9)"]),
        (["--randaugment", "3", "9", "1"], ["--randaugment", "two numbers"]),
        (["--randaugment", "3", "9.5"], ["--randaugment", "whole number", "9.5"]),
        (["--cutout", "-1"], ["--cutout", "at least 0", "-1"]),
        (["--no-aug", "--cutout", "8"], ["--no-aug", "leave out --randaugment and --cutout"]),
        (["--no-aug", "--randaugment", "3", "9"], ["--no-aug", "leave out --randaugment and --cutout"]),
        (["--model-ema", "--model-ema-decay", "1"], ["--model-ema-decay", "at least 0 and below 1", "1.0"]),
        (["--model-ema", "--model-ema-decay", "-0.1"], ["--model-ema-decay", "at least 0 and below 1", "-0.1"]),
        (["--model-ema-decay", "0.99"], ["--model-ema-decay goes with --model-ema"]),
        (["--no-model-ema-warmup"], ["--model-ema-warmup goes with --model-ema"]),
        (["--omega", "2"], ["--omega", "below 2"]),
        (["--omega", "1.9", "2"], ["--omega", "below 2"]),
        (["--order", "random"], ["--order", "asynchronous"]),
        (["--holdout", "0.6"], ["--holdout", "between 0 and 0.5"]),
        (["--algo", "c-ep", "--companion"], ["c-ep", "--companion", "damped"]),
        (["--algo", "p-cpl", "--damped"], ["p-cpl", "--damped", "companion"]),
        (["--mean", "0.5"], ["--mean and --std go together"]),
        (["--mean", "0.5", "--std", "0"], ["--std", "above 0"]),
        (["--lr", "-1"], ["lr", "-1"]),
        (["--mixed-precision", "fp8"], ["--mixed-precision", "bf16"]),
        (["--resume"], ["--resume", "--output-dir"]),
        (["--force"], ["--force", "--resume"]),
        (["--log-with", "paper"], ["--log-with", "tensorboard", "wandb", "all"]),
        (["--checkpoint-minutes", "0"], ["--checkpoint-minutes", "above 0"]),
        (["--keep-checkpoints", "0"], ["--keep-checkpoints", "at least 1"]),
        (["--grad-accum-steps", "0"], ["--grad-accum-steps", "at least 1"]),
        (["--nonsense", "1"], ["--nonsense", "--algo"]),
        (["--config", "missing.yaml"], ["missing.yaml", "cannot be read"]),
        (["--config", ""], ["cannot be read"]),
        (["--config", "/dev/zero"], ["/dev/zero", "cannot be read"]),
        (["--config", "a\0b"], ["cannot be read"]),
        (["--model-kwargs", "sweeps"], ["--model-kwargs", "KEY=VALUE"]),
        (["--model-kwargs", "a b=1"], ["--model-kwargs", "KEY=VALUE", "a b"]),
        (["--model-kwargs", "gains=1", "gains=2"], ["--model-kwargs", "twice"]),
        (["--model-kwargs", "pretrained=false"], ["pretrained=false", "True, False"]),
        (["--model-kwargs", "compiled=no"], ["compiled=no", "True, False"]),
        (["--model-kwargs", "widths={1, 2}"], ["widths", "list"]),
        (["--model-kwargs", "gains=1e400"], ["gains", "inf"]),
        (["--epochs", "99999999999999999999999"], ["--epochs", "1,000,000"]),
        (["--epochs", "inf"], ["--epochs", "whole number", "inf"]),
        (["--epochs", "1e400"], ["--epochs", "whole number"]),
        (["--epochs", "9" * 5000], ["--epochs", "whole number"]),
        (["--seed", str(2**32)], ["--seed", "2^32"]),
        (["--omega", "1e-300"], ["--omega", "1e-30"]),
        (["--beta", "nan"], ["--beta", "a number", "nan"]),
        (["--lr", "1e-3", "inf"], ["--lr", "inf"]),
        (["--weight-decay", "1e300"], ["--weight-decay", "1e+30"]),
        (["--dataset", ""], ["--dataset", "not empty"]),
        (["--output-dir", " "], ["--output-dir", "not empty"]),
        (["--dataset", "a/" + "ö" * 128], ["--dataset", "255 bytes"]),
        (["--output-dir", "a\0b"], ["--output-dir", "one line"]),
        (["--push-to-hub", "a\nb"], ["--push-to-hub", "one line"]),
        (["--output-dir", "\udcff"], ["--output-dir", "one line"]),
    ],
)
def test_a_wrong_command_line_is_refused_in_one_sentence(arguments, words, capsys):
    with pytest.raises(SystemExit) as refusal:
        parse_config(arguments)
    assert refusal.value.code == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words), message
    assert message.count("\n") == 1


def test_what_decides_a_result_leaves_out_where_and_how_it_is_kept():
    config = TrainConfig()
    aside = {
        "output_dir",
        "push_to_hub",
        "resume",
        "force",
        "checkpoint_minutes",
        "keep_checkpoints",
        "watch_every",
        "log_with",
    }
    assert set(config.to_dict()) - set(config.decisive()) == aside


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epoch: 3\n", ["'epoch'", "epochs", "batch_size"]),
        ("- epochs\n", ["option: value"]),
        ("epochs: {a: 1}\n", ["epochs", "whole number"]),
        ("warm_start: 1\n", ["warm_start", "true or false"]),
        ("a: [\n", ["cannot be read", "line 2"]),
        ("epochs: 3\nepochs: 4\n", ["cannot be read", "'epochs'", "2 times"]),
        ("model_kwargs: {gains: 1, gains: 2}\n", ["'gains'", "2 times"]),
        ("lr: &rate [1]\nomega: *rate\n", ["line 2", "written out"]),
        ("lr: " + "[" * 5000, ["nested too deeply"]),
        ("lr: [[1]]\n", ["lr", "a number", "[1]"]),
        ("epochs: 1:30\n", ["epochs", "whole number", "'1:30'"]),
        ("epochs: true\n", ["epochs", "whole number", "True"]),
        ("lr: true\n", ["lr", "a number", "True"]),
        ("lr: [0.1, .inf]\n", ["lr", "a number", "inf"]),
        ("lr: []\n", ["lr", "empty"]),
        ("log_with: []\n", ["log_with", "empty"]),
        ("lr: null\n", ["lr", "a number", "None"]),
        ("warm_start: yes\n", ["warm_start", "true or false", "'yes'"]),
        ("dataset: ''\n", ["dataset", "not empty"]),
        ("dataset_revision: 1e5\n", ["dataset_revision", "in quotes", "100000.0"]),
        ("model_kwargs: {compiled: yes}\n", ["compiled=yes", "true"]),
        ("model_kwargs: {1: 2}\n", ["model_kwargs", "KEY=VALUE", "1"]),
        ("model_kwargs: []\n", ["model_kwargs", "KEY=VALUE", "[]"]),
        ("false\n", ["option: value"]),
        ("0\n", ["option: value"]),
        ("''\n", ["option: value"]),
        ("[]\n", ["option: value"]),
        ("preset: [paper]\n", ["preset", "a text"]),
        ("#" * 1_000_001, ["cannot be read", "1,000,000 letters"]),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_sentence(text, words, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as refusal:
        read_recipe(path)
    assert all(word in str(refusal.value) for word in words), refusal.value


def test_the_preset_is_the_papers_procedure_under_recipe_and_command_line(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("free_sweeps: 30\nnudged_sweeps: 5\n")
    config = parse_config(["--preset", "paper", "--config", str(recipe), "--nudged-sweeps", "6"])
    assert (config.free_sweeps, config.nudged_sweeps, config.start) == (30, 6, "zero")
    recipe.write_text("preset: paper\nnudged_sweeps: 5\n")
    config = parse_config(["--config", str(recipe), "--algo", "n-ep"])
    assert (config.free_sweeps, config.nudged_sweeps, config.companion) == (60, 5, True)
    assert parse_config([]) == parse_config(["--preset", "fast"])
    assert parse_config(["--opt", "adamw"]) == parse_config(["--preset", "fast", "--opt", "adamw"]) == TrainConfig()
    with pytest.raises(ConfigError, match="Unknown preset 'slow': choose one of fast, paper"):
        resolve({"preset": "slow"})


@pytest.mark.parametrize("algo", ["cl", "tbp", "rbp"])
def test_another_rule_takes_from_a_recipe_what_it_has_a_use_for(algo, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "algo: c-ep\nbeta: 0.1\nlinear_response: true\ndamped: true\nnudged_sweeps: 4\nnudged_omega: 1.5\n"
    )
    config = parse_config(["--config", str(recipe), "--algo", algo])
    assert build_rule(config, network_for(config)).second_phase.sweeps == config.nudged_sweeps == 4
    assert (config.beta, config.linear_response, config.damped) == (None, None, None)
    assert config.nudged_omega == ((1.5,) if algo == "cl" else None)
    recipe.write_text(recipe.read_text().replace("c-ep", algo))
    with pytest.raises(ConfigError, match=f"'{algo}' has no use for --beta"):
        resolve(read_recipe(recipe))


FIFTEEN = Minimizer(sweeps=15, omega=1.0)
PAPERS = {"free": PAPER, "perturbed": FIFTEEN}
FOLLOWED = {**PAPERS, "settle": False, "linear_response": False}


@pytest.mark.parametrize(
    ("algo", "options"),
    [
        ("cl", {**PAPERS, "settle": False, "companion": True}),
        ("p-ep", {**FOLLOWED, "companion": True, "damped": True}),
        ("n-ep", {**FOLLOWED, "companion": True, "damped": True}),
        ("c-ep", {**FOLLOWED, "damped": True}),
        ("r-ep", {**FOLLOWED, "companion": True, "damped": True}),
        ("p-cpl", {**FOLLOWED, "companion": True}),
        ("n-cpl", {**FOLLOWED, "companion": True}),
        ("c-cpl", FOLLOWED),
        ("r-cpl", {**FOLLOWED, "companion": True}),
        ("tbp", {"free": PAPER, "unrolled": FIFTEEN}),
        ("rbp", {"free": PAPER, "adjoint": Minimizer(sweeps=15, omega=1.0, order="synchronous")}),
    ],
)
def test_under_the_preset_and_in_table_1_every_rule_is_the_released_codes(algo, options):
    config = parse_config(["--preset", "paper", "--algo", algo])
    expected = create_rule(algo, **options).fitted(network_for(config))
    assert build_rule(config, network_for(config)) == expected
    for recipe in RECIPES:
        if recipe.stem.startswith("table1"):
            config = parse_config(["--config", str(recipe), "--algo", algo])
            assert build_rule(config, network_for(config)) == expected
