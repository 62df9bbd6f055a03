"""The recipes of the paper's tables: none is missing, each has the released settings, and their overview lists them."""

import re
import shlex
from pathlib import Path

import pytest
import timm
from readmes import RESULTS, commands, words_of

from timm_ebl.data.paper import SPLIT_SIZES, TABLE_1, TABLE_2, paper_error
from timm_ebl.models.weights import list_shipped
from timm_ebl.training.build import build_optimizer, check_config
from timm_ebl.training.command_line import parse_config
from timm_ebl.training.config import read_recipe, resolve
from timm_ebl.training.finding import RECIPES
from timm_ebl.training.trained import TrainedModel

ROOT = Path(__file__).parents[1]
OVERVIEW = (RECIPES / "README.md").read_text(encoding="utf-8")
FILES = sorted(RECIPES.glob("table*.yaml"))
RESNETS = sorted(RECIPES.glob("resnet13_*.yaml"))
OURS = RECIPES / "gpu_cifar10.yaml"
PCNS = sorted(RECIPES.glob("pcn_vgg5_*.yaml"))
PUBLISHED = {"resnet13_cifar10": 6.08, "pcn_vgg5_mnist": 0.32, "pcn_vgg5_cifar10": 7.8, "pcn_vgg5_cifar100": 30.1}

# The released code: gains, learning rates, beta, free and nudged sweeps, weight decay.
RELEASED = {
    "table1": (0.5, (0.0625, 0.0375, 0.025, 0.02, 0.0125), None, 60, 15, 3e-4),
    "table1_svhn_gain_0.7": (0.7, (0.0625, 0.0375, 0.025, 0.02, 0.0125), None, 60, 15, 3e-4),
    "table2_cifar10": ([0.4, 0.7, 0.6, 0.3, 0.4], (0.03,) * 5, 0.1, 60, 20, 2.5e-4),
    "table2_cifar100": ([0.5, 0.4, 0.5, 0.8, 0.5], (0.03, 0.04, 0.04, 0.04, 0.025), 0.25, 60, 15, 3.5e-4),
}


def test_no_data_set_of_the_papers_tables_lacks_a_recipe():
    # MNIST has the settings of Table 1 in Table 2 too.
    expected = {f"table1_{dataset.replace('-', '_')}" for dataset in SPLIT_SIZES} | {"table1_svhn_gain_0.7"}
    assert {path.stem for path in FILES} == expected | {
        f"table2_{dataset}" for dataset in TABLE_2 if dataset != "mnist"
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_recipe_is_complete_and_has_the_released_settings(path):
    recipe = resolve(read_recipe(path))
    check_config(recipe)
    gains, rates, beta, free, nudged, decay = RELEASED.get(path.stem, RELEASED["table1"])
    assert (recipe.model_kwargs["gains"], recipe.lr, recipe.beta) == (gains, rates, beta)
    assert (recipe.free_sweeps, recipe.nudged_sweeps, recipe.weight_decay) == (free, nudged, decay)
    assert (recipe.algo, recipe.opt, recipe.momentum, recipe.min_lr) == ("c-ep", "momentum", 0.9, 2e-6)
    assert (recipe.epochs, recipe.batch_size, recipe.holdout, recipe.warm_start) == (100, 128, 0.0, True)
    assert (recipe.omega, recipe.start, recipe.order) == ((1.0,), "zero", "asynchronous")
    assert recipe.dataset in path.stem.replace("_", "-")
    assert recipe.model == f"dchn_{recipe.dataset.replace('-', '_')}"
    error = TABLE_2[recipe.dataset] if path.stem.startswith("table2") else TABLE_1["c-ep"][recipe.dataset]
    shown = "not given" if "gain" in path.stem else f"{error} %"
    sweeps = f"{free} + 2 x {nudged}"
    assert f"| [`{path.stem}`]({path.name}) | {shown} | {sweeps} |" in OVERVIEW


@pytest.mark.parametrize("path", RESNETS, ids=lambda path: path.stem)
def test_a_recipe_of_a_network_with_skips_has_the_published_settings(path):
    recipe = resolve(read_recipe(path))
    check_config(recipe)
    assert recipe.dataset.replace("-", "_") == path.stem.removeprefix("resnet13_")
    assert recipe.model == f"hopfield_{path.stem}"
    assert (recipe.free_sweeps, recipe.nudged_sweeps, recipe.omega, recipe.start) == (120, 50, (1.0,), "zero")
    assert recipe.beta == (0.15 if recipe.dataset in ("fashion-mnist", "cifar100") else 0.1)
    assert recipe.weight_decay == (2.5e-4 if recipe.dataset == "cifar10" else 3.5e-4)
    assert recipe.randaugment == (3, 4 if recipe.dataset == "cifar100" else 9)
    assert (recipe.opt, recipe.momentum, recipe.lr, recipe.min_lr) == ("sgd", 0.9, (0.03,), 2e-6)
    assert build_optimizer(recipe, timm.create_model(recipe.model, device="meta")).defaults["nesterov"]
    assert (recipe.algo, recipe.epochs, recipe.batch_size, recipe.holdout) == ("c-ep", 300, 128, 0.0)
    assert (recipe.model_kwargs, recipe.mean) == ({}, None)


def test_our_recipe_for_a_gpu_has_our_states_and_is_in_the_overview():
    recipe, default = resolve(read_recipe(OURS)), resolve({})
    check_config(recipe)
    assert (recipe.dataset, recipe.model, recipe.algo) == ("cifar10", "dchn_cifar10", "c-ep")
    states = ("omega", "order", "start", "warm_start", "beta", "nudged_sweeps", "linear_response")
    assert all(getattr(recipe, name) == getattr(default, name) for name in states)
    assert (recipe.epochs, recipe.batch_size, recipe.free_sweeps, recipe.mixed_precision) == (100, 128, 11, "bf16")
    assert f"| [`{OURS.stem}`]({OURS.name}) | 11 + 2 + 2 x 3 |" in OVERVIEW


@pytest.mark.parametrize("path", PCNS, ids=lambda path: path.stem)
def test_a_recipe_of_a_predictive_coding_network_has_the_published_settings(path):
    recipe = resolve(read_recipe(path))
    check_config(recipe)
    assert recipe.dataset.replace("-", "_") == path.stem.removeprefix("pcn_vgg5_")
    assert (recipe.model, recipe.algo, recipe.cost) == (path.stem, "c-ep", None)
    assert (recipe.nudged_sweeps, recipe.beta, recipe.nudged_omega, recipe.damped) == (5, 0.02, (1.0,), True)
    assert (recipe.opt, recipe.momentum, recipe.lr, recipe.min_lr) == ("sgd", 0.9, (0.04,), 1e-6)
    assert (recipe.epochs, recipe.batch_size, recipe.weight_decay, recipe.holdout) == (100, 16, 3e-4, 0.0)
    assert (recipe.model_kwargs, recipe.mean, recipe.randaugment) == ({}, None, (0, 0))
    assert recipe.aug == (recipe.dataset != "mnist")


@pytest.mark.parametrize("paths", [RESNETS, PCNS], ids=["resnet13", "pcn_vgg5"])
def test_no_data_set_lacks_a_recipe_of_another_family_and_the_overview_has_its_error(paths):
    assert len(paths) == len(SPLIT_SIZES)
    for path in paths:
        error = f"{PUBLISHED[path.stem]:g} %" if path.stem in PUBLISHED else "not given"
        sweeps = "120 + 2 x 50" if paths is RESNETS else "1 + 2 x 5"
        assert f"| [`{path.stem}`]({path.name}) | {error} | {sweeps} |" in OVERVIEW


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_fits_into_120_columns(path):
    assert max(map(len, path.read_text(encoding="utf-8").splitlines())) <= 120


def test_the_overview_has_the_papers_errors():
    for rule, errors in TABLE_1.items():
        assert f"| `{rule}` | " + " | ".join(f"{error:g}" for error in errors.values()) + " |" in OVERVIEW


@pytest.mark.parametrize("name", list_shipped())
def test_the_overview_has_the_figures_of_every_checkpoint(name):
    shipped = TrainedModel.open(name)
    network, dataset = shipped.config["architecture"], shipped.summary["dataset"]
    if network.startswith("dchn"):
        published = paper_error(shipped.summary["algo"], dataset)
    else:
        published = PUBLISHED.get(network.replace("_small", "").replace("_tiny", ""))
    assert (
        f"| [`{name}`]({name}) | {shipped.evaluation.error:.2f} % | {shipped.evaluation.images:,} | "
        f"{shipped.summary['epochs']} | {'-' if published is None else f'{published:g} %'} |"
    ) in OVERVIEW


def test_the_commands_of_the_guide_to_the_models_trained_its_checkpoints():
    trained = {path.parent.name: resolve(read_recipe(path), {}) for path in RECIPES.glob("*/args.yaml")}
    found = []
    for words in (words_of(command)[0] for command in commands(ROOT / "timm_ebl/models/README.md")):
        if "train_ebl.py" in words and {"cifar10", "cifar100"} & {*words}:
            config = parse_config(words[words.index("train_ebl.py") + 1 :])
            name = next(key for key, run in trained.items() if (run.model, run.epochs) == (config.model, config.epochs))
            said = {key: value for key, value in config.decisive().items() if value is not None}
            assert said == {key: trained[name].decisive()[key] for key in said}, name
            found.append(name)
    assert found == [
        "pcn_vgg5_small_cifar10.c_ep",
        "dchn_small_cifar10.c_ep",
        "dchn_tiny_cifar10.c_ep",
        "pcn_vgg5_small_cifar100.c_ep",
        "dchn_small_cifar100.c_ep",
    ]


def test_every_link_of_the_overview_leads_somewhere():
    links = re.findall(r"\]\(([^)]+)\)", OVERVIEW)
    results = [f"{folder.name}/README.md" for folder in RESULTS]
    recipes = [path.name for path in [*FILES, *RESNETS, *PCNS, OURS]]
    assert sorted(links) == sorted([*recipes, *list_shipped(), *results])
    assert all((RECIPES / link).exists() for link in links)


def test_the_commands_are_those_of_the_script():
    commands = [line for line in OVERVIEW.replace("\\\n", " ").splitlines() if line.startswith("accelerate launch")]
    assert len(commands) == 2
    for command in commands:
        words = shlex.split(command)
        arguments = words[words.index("train_ebl.py") + 1 :]
        config = parse_config([str(ROOT / word) if word.startswith("hub_configs/") else word for word in arguments])
        processes = int(words[words.index("--num_processes") + 1])
        assert config.batch_size * processes == 128
