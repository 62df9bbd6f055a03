"""The README says what is so: its Python runs, its commands and links exist."""

import os
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import timm
import torch
from oracles import CONVERGED

import timm_ebl
from timm_ebl.training.command_line import parse_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_examples_run_one_after_the_other(capsys, monkeypatch):
    readme = types.ModuleType("readme")
    monkeypatch.setitem(sys.modules, "readme", readme)
    monkeypatch.setattr(timm_ebl.rules.contrastive, "_RULES", dict(timm_ebl.rules.contrastive._RULES))
    for block in blocks("python"):
        exec(block, readme.__dict__)
    assert readme.output.shape == (8, 10)
    assert all(parameter.grad is not None for parameter in readme.model.parameters())
    assert "up_and_down" in timm_ebl.list_orders()
    assert "ce-ep" in timm_ebl.list_rules()
    assert readme.backbone.feature_info.reduction() == [2, 4, 8]
    own = timm.create_model("dchn_shallow")
    torch.nn.functional.cross_entropy(own(readme.images), readme.labels).backward()
    assert all(parameter.grad.any() for parameter in own.parameters())


def test_the_new_rule_descends_the_cross_entropy(make_dchn, batch):
    model, (x, y) = make_dchn(seed=3, gains=0.5, bias_gain=1.5), batch
    readme = {"timm_ebl": timm_ebl, "__name__": "readme"}
    exec(
        next(block for block in blocks("python") if "ContrastiveRule" in block).split("timm_ebl.register_rule")[0],
        readme,
    )
    model.minimizer, model.backward = CONVERGED, timm_ebl.create_backward("ep", beta=0.1, perturbed=CONVERGED)
    rule = readme["CrossEntropyPropagation"](beta=0.1, perturbed=CONVERGED)
    found = torch.autograd.grad(rule(model, x, y).loss, list(model.parameters()))
    expected = torch.autograd.grad(torch.nn.functional.cross_entropy(model(x), y), list(model.parameters()))
    for a, b in zip(found, expected, strict=True):
        assert torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.99


def test_every_line_about_timm_names_a_test():
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    table = README.split("## With timm")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 20
    for row in rows:
        (name,) = re.findall(r"`(test_\w+)` \|$", row)
        assert f"def {name}(" in tests


def test_timms_scripts_start_with_the_plugin(tmp_path):
    """A script that knows timm alone finds the models when the README's command starts it."""
    (command,) = [line for block in blocks("bash") for line in block.splitlines() if "SCRIPT" in line]
    script = tmp_path / "validate.py"
    script.write_text("import sys, timm; print(sys.argv, timm.is_model('dchn_mnist'), __name__)")
    words = [sys.executable, *shlex.split(command)[1:]]
    words[words.index("SCRIPT") :] = [str(script), "--model", "dchn_mnist"]
    environment = {**os.environ, "OMP_DISPLAY_ENV": "VERBOSE"}
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        environment.pop(name, None)
    ran = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    assert ran.stdout.split("\n")[0] == f"['{script}', '--model', 'dchn_mnist'] True __main__"
    if "GOMP_SPINCOUNT" in ran.stderr:  # GNU's OpenMP says how its threads wait
        assert "GOMP_SPINCOUNT = '3000'" in ran.stderr


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
