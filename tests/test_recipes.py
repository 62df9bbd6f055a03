"""The overview of the recipes: its commands, its figures, and that it is up to date."""

import re
import shlex
from pathlib import Path

import pytest
import timm

from timm_ebl.errors import ConfigError
from timm_ebl.hub.recipes import RECIPES, paper_rate, render_overview, run_flops, step_flops
from timm_ebl.models.weights import list_shipped
from timm_ebl.training.command_line import parse_config
from timm_ebl.training.config import TrainConfig, read_recipe, resolve

ROOT = Path(__file__).parents[1]
OVERVIEW = (RECIPES / "README.md").read_text(encoding="utf-8")


def test_the_overview_is_up_to_date():
    assert render_overview() == OVERVIEW, "run python -m timm_ebl.hub.recipes"


def test_every_recipe_and_checkpoint_is_listed_and_every_link_leads_somewhere():
    links = re.findall(r"\]\(([^)]+)\)", OVERVIEW)
    names = [path.name for path in RECIPES.glob("table*.yaml")]
    assert sorted(links) == sorted([*names, *list_shipped()])
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


def test_operations_of_a_step_are_those_counted_by_hand():
    model = timm.create_model("dchn_cifar10", widths=(8, 16), gains=0.5, img_size=8, num_classes=10)
    recipe = TrainConfig(algo="c-ep", free_sweeps=60, nudged_sweeps=20)
    first, second, head = 8 * 3 * 9 * 64, 16 * 8 * 9 * 16, 16 * 4 * 10
    sweep = 4 * (second + head)  # forward and transposed, a multiplication and an addition each
    assert step_flops(model, recipe) == 100 * sweep + 2 * first + 4 * (first + second + head)


def test_the_estimate_returns_the_papers_time_for_the_papers_procedure():
    recipe = resolve(read_recipe(RECIPES / "table2_cifar10.yaml"))
    hours = run_flops(recipe) / paper_rate(recipe) / 3600
    assert hours == pytest.approx(3.3 / 1.5)  # a third fewer convolutions
    assert f"| {hours:.1f} h |" in OVERVIEW


def test_only_contrastive_rules_are_counted():
    with pytest.raises(ValueError, match="'tbp'"):
        step_flops(timm.create_model("dchn_tiny_mnist"), TrainConfig(algo="tbp"))


def test_without_the_recipes_there_is_no_overview(tmp_path):
    with pytest.raises(ConfigError, match=r"has no table2_.*\.yaml: the overview is written in a clone"):
        render_overview(tmp_path)
