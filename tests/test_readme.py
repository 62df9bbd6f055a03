"""The guides say what is so: their Python runs, their commands, files, links and figures exist."""

import importlib
import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import types

import pytest
import timm
import torch
from oracles import CONVERGED
from readmes import FOLDERS, GUIDES, README, ROOT, blocks, commands, words_of
from runs import results, train, write_images

import timm_ebl
from timm_ebl.arguments import Parser
from timm_ebl.training.command_line import parse_config

RULES, MODELS, TRAINING = (ROOT / "timm_ebl" / name / "README.md" for name in ("rules", "models", "training"))
pytestmark = pytest.mark.usefixtures("forgotten")
WITH_PYTHON = [guide for guide in GUIDES if blocks(guide, "python")]


def name_of(path):
    return str(path.relative_to(ROOT))


def run_examples(guide, monkeypatch):
    """The namespace in which all Python of a guide ran, one block after the other."""
    readme = types.ModuleType("readme")
    monkeypatch.setitem(sys.modules, "readme", readme)
    for block in blocks(guide, "python"):
        exec(block, readme.__dict__)
    return readme


@pytest.mark.parametrize("guide", WITH_PYTHON, ids=name_of)
def test_the_python_examples_run_one_after_the_other(guide, monkeypatch, capsys):
    run_examples(guide, monkeypatch)


def test_examples_of_every_kind_are_there():
    folders = {guide.parent.name for guide in WITH_PYTHON}
    assert {"energy", "relaxation", "rules", "models", "training"} <= folders


def test_the_readmes_examples_end_where_they_say(monkeypatch, capsys):
    readme = run_examples(README, monkeypatch)
    assert readme.output.shape == (8, 10)
    assert all(parameter.grad is not None for parameter in readme.model.parameters())


def test_the_graph_with_a_skip_and_the_new_interaction_learn(monkeypatch, capsys):
    """The skip has a gradient, that of the new interaction is the definition's, and the energy never rises."""
    readme = run_examples(ROOT / "timm_ebl" / "energy" / "README.md", monkeypatch)
    assert all(parameter.grad.any() for parameter in readme.model.parameters())
    part, state = readme.model.parts[2], readme.model.relax(readme.images).state
    (found,) = torch.autograd.grad(readme.model.energy(readme.images, state).sum(), part.weight)
    expected = -torch.autograd.grad((state[2] * part.drive(state[1])).sum(), part.weight)[0]
    assert torch.allclose(found, expected, atol=1e-4)
    order = timm_ebl.Minimizer(order="asynchronous", omega=1.7, sweeps=1)
    energies = []
    for _ in range(12):
        relaxation = readme.model.relax(readme.images, state, minimizer=order)
        state = relaxation.state
        energies.append(relaxation.energy)
    assert (torch.stack(energies).diff(dim=0) < 1e-3).all()


def test_the_new_order_and_the_new_network_are_found_by_name(monkeypatch, capsys):
    run_examples(ROOT / "timm_ebl" / "relaxation" / "README.md", monkeypatch)
    assert "up_and_down" in timm_ebl.list_orders()
    readme = run_examples(MODELS, monkeypatch)
    assert readme.backbone.feature_info.reduction() == [2, 4, 8]
    own = timm.create_model("dchn_shallow")
    torch.nn.functional.cross_entropy(own(readme.images), torch.tensor([1, 2])).backward()
    assert all(parameter.grad.any() for parameter in own.parameters())


@pytest.fixture
def new():
    """What the guide to rules defines: a rule and a cost of one's own."""
    found = {"timm_ebl": timm_ebl, "__name__": "readme"}
    for block in blocks(RULES, "python"):
        if "@dataclass" in block:
            exec(block.split("timm_ebl.register_")[0], found)
    return found


def test_the_new_cost_is_descended_by_rule_and_baseline_alike(new, make_dchn, batch):
    model, (x, y) = make_dchn(seed=3, gains=0.5, bias_gain=1.5), batch
    free = {"cost": new["Hinge"](), "free": CONVERGED}
    rules = (
        timm_ebl.create_rule("c-ep", beta=0.01, perturbed=CONVERGED, **free),
        timm_ebl.create_rule("tbp", unrolled=timm_ebl.Minimizer(sweeps=100, omega=1.0), **free),
    )
    found, expected = (torch.autograd.grad(rule(model, x, y).loss, list(model.parameters())) for rule in rules)
    for a, b in zip(found, expected, strict=True):
        assert torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.99


def test_the_new_rule_descends_the_cross_entropy(new, make_dchn, batch):
    model, (x, y) = make_dchn(seed=3, gains=0.5, bias_gain=1.5), batch
    model.minimizer, model.backward = CONVERGED, timm_ebl.create_backward("ep", beta=0.1, perturbed=CONVERGED)
    rule = new["CrossEntropyPropagation"](beta=0.1, perturbed=CONVERGED)
    found = torch.autograd.grad(rule(model, x, y).loss, list(model.parameters()))
    expected = torch.autograd.grad(torch.nn.functional.cross_entropy(model(x), y), list(model.parameters()))
    for a, b in zip(found, expected, strict=True):
        assert torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.99


def test_the_script_trains_the_model_of_the_example_by_its_rule(my_module):
    (command,) = [command for command in commands(TRAINING) if "--import" in command]
    given = shlex.split(command)[2:]
    folder, out = write_images(my_module / "images"), my_module / "run"
    train(*given, "--dataset", folder, "--epochs", 2, "--batch-size", 9, "--threads", 1, "--output-dir", out)
    _, metrics, summary = results(out)
    assert (summary["model"], summary["algo"]) == ("my_model", "my-rule")
    assert metrics[-1]["train_cost"] < metrics[0]["train_cost"]


# ------------------------------------------------------------------------------------------------------------ commands


class Parsed(BaseException):
    """A command line was understood; nothing that follows it is done."""


@pytest.mark.parametrize("guide", [guide for guide in GUIDES if blocks(guide, "bash")], ids=name_of)
def test_every_command_is_there_and_has_known_options(guide, my_module, monkeypatch):
    parse = Parser.parse_args

    def parse_and_stop(parser, arguments=None, namespace=None):
        raise Parsed(parse(parser, arguments, namespace))

    for words in (words for command in commands(guide) for words in words_of(command)):
        if "train_ebl.py" in words:
            arguments = words[words.index("train_ebl.py") + 1 :]
            parse_config([str(ROOT / word) if word.startswith("hub_configs/") else word for word in arguments])
        elif words[:2] == ["python", "-m"] and words[2].startswith("timm_ebl"):
            package = importlib.util.find_spec(words[2]).submodule_search_locations is not None
            module = importlib.import_module(words[2] + ".__main__" * package)
            with monkeypatch.context() as patch:
                patch.setattr(Parser, "parse_args", parse_and_stop)
                with pytest.raises(Parsed):
                    module.main(words[3:])
        elif words[0] == "pytest":
            assert [word for word in words[1:] if word.startswith("tests/") and not (ROOT / word).exists()] == []
        elif words[0] == "python" and words[1].startswith("tests/"):
            assert (ROOT / words[1]).is_file()
        else:
            assert words[0] in {".", ".ci/gpu", ".ci/run", "cd", "git", "pip", "pre-commit", "python", "ruff"}, words


def test_pytest_knows_every_marker_that_is_named(pytestconfig):
    known = {line.partition(":")[0] for line in pytestconfig.getini("markers")}
    asked = re.findall(r'pytest.* -m "?([\w ]+)"?', "\n".join(commands(*GUIDES)))
    assert asked
    assert {word for words in asked for word in words.split()} - {"not", "and", "or"} <= known


def test_timms_scripts_start_with_the_plugin(tmp_path):
    """A script that knows timm alone finds the models when the guide's command starts it."""
    (command,) = [command for command in commands(MODELS) if "SCRIPT" in command]
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


# ------------------------------------------------------------------------------------------------- tables, links, size


def test_the_readme_is_read_in_five_minutes():
    assert len(README.read_text().splitlines()) <= 180


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_a_guide_lists_the_files_of_its_folder(folder):
    linked = set(re.findall(r"\]\((\w+\.py)\)", (folder / "README.md").read_text()))
    assert linked == {path.name for path in folder.glob("*.py")} - {"__init__.py"}


def test_every_line_about_timm_names_a_test():
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    table = MODELS.read_text().split("## What works of timm")[1]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 20
    for row in rows:
        (name,) = re.findall(r"`(test_\w+)` \|$", row)
        assert f"def {name}(" in tests


def test_the_guide_to_the_tests_names_every_file_and_tests_that_are_there():
    guide = (ROOT / "tests" / "README.md").read_text()
    files = {path.name for path in (ROOT / "tests").glob("*.py")} - {"conftest.py"}
    assert set(re.findall(r"`(\w+\.py)`", guide)) - {"make.py", "train_ebl.py"} == files
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    assert [name for name in re.findall(r"`(test_\w+)`", guide) if f"def {name}(" not in tests] == []


def test_every_rule_and_model_is_in_its_table():
    text = README.read_text()
    assert all(f"| `{name}` |" in text for name in timm_ebl.list_rules())
    named = set(re.findall(r"`(dchn_\w+)[`.]", text))
    assert named <= set(timm.list_models("dchn*"))


def test_the_errors_of_the_checkpoints_are_those_that_were_measured():
    rows = re.findall(r"^\| `(\w+\.\S+)`.*? \| ([\d.]+) % \| ([\d,]+) \|", README.read_text(), re.MULTILINE)
    folders = {path.parent.name: path for path in (ROOT / "timm_ebl" / "pretrained").glob("*/config.json")}
    assert {name for name, *_ in rows} == folders.keys()
    for name, error, images in rows:
        found = json.loads(folders[name].read_text())["evaluation"]
        assert (error, images) == (f"{found['error']:.2f}", f"{found['images']:,}")


def anchors(guide):
    headings = re.findall(r"^#+ (.+)$", guide.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("guide", GUIDES, ids=name_of)
def test_local_links_lead_somewhere(guide):
    for link in re.findall(r"\]\(([^)\s]+)\)", guide.read_text()):
        if not link.startswith("http"):
            path, _, anchor = link.partition("#")
            target = (guide.parent / path).resolve() if path else guide
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_what_is_named_by_its_path_in_the_package_is_there():
    """Modules and names such as `timm_ebl.tools.predict` in code, guides and cards; the changelog is history."""
    texts = [ROOT / "train_ebl.py", *GUIDES, *(ROOT / "hub_configs").rglob("*.md"), *(ROOT / "timm_ebl").rglob("*.py")]
    found = {name for path in texts for name in re.findall(r"(?<![\w./])timm_ebl(?:\.[A-Za-z_]\w*)+", path.read_text())}
    assert {"timm_ebl.tools.predict", "timm_ebl.hub", "timm_ebl.EnergyModel"} <= found
    missing = []
    for name in found:
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            missing.append(name)
    assert missing == []


def test_parameter_counts_are_right():
    for name in (f"{family}_{size}cifar10" for family in ("dchn", "pcn_vgg5") for size in ("", "small_", "tiny_")):
        count = sum(parameter.numel() for parameter in timm.create_model(name, device="meta").parameters())
        assert f"{count:,}" in README.read_text()
