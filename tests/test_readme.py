"""The README says what is so: its Python runs, its commands and links exist."""

import re
import shlex
from pathlib import Path

import timm

import timm_ebl
from timm_ebl.config import parse_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_examples_run_one_after_the_other(capsys):
    namespace = {}
    for block in blocks("python"):
        exec(block, namespace)
    assert namespace["output"].shape == (8, 10)
    assert all(parameter.grad is not None for parameter in namespace["model"].parameters())
    assert "up_and_down" in timm_ebl.list_orders()


def test_every_training_command_has_known_options():
    commands = [line for block in blocks("bash") for line in block.splitlines() if "train_ebl.py" in line]
    assert len(commands) >= 5
    for command in commands:
        words = shlex.split(command)
        arguments = words[words.index("train_ebl.py") + 1 :]
        parse_config([str(ROOT / word) if word.startswith("hub_configs/") else word for word in arguments])


def test_every_rule_and_model_is_in_its_table():
    assert all(f"| `{name}` |" in README for name in timm_ebl.list_rules())
    named = set(re.findall(r"`(dchn_\w+)`", README))
    assert named <= set(timm.list_models("dchn*"))


def test_local_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    headings = {f"#{heading.lower().replace(' ', '-')}" for heading in re.findall(r"^#+ (.+)$", README, re.MULTILINE)}
    assert links
    assert [link for link in links if link not in headings and not (ROOT / link).exists()] == []


def test_parameter_counts_are_right():
    for size in ("", "small_", "tiny_"):
        count = sum(parameter.numel() for parameter in timm.create_model(f"dchn_{size}cifar10").parameters())
        assert f"{count:,}" in README
