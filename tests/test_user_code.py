"""A user's own model and rule, in a module outside the package: trained, resumed, measured and described by name."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import timm
import torch
import yaml
from published_runs import packaged
from readmes import blocks
from runs import SCRIPT, assert_same_run, network_for, train
from safetensors.torch import load_file
from studies import study_of

from timm_ebl import Forced, Minimizer, register_rule
from timm_ebl.data.transforms import BatchTransform
from timm_ebl.errors import CheckpointError, ConfigError
from timm_ebl.hub import __main__ as hub
from timm_ebl.hub.package import stage
from timm_ebl.hub.verify import verify
from timm_ebl.rules.contrastive import ContrastiveRule
from timm_ebl.tools import benchmark, drift, gradients, plots, predict
from timm_ebl.tools.predict import classify
from timm_ebl.training import finding
from timm_ebl.training.build import build_model, check_config
from timm_ebl.training.command_line import parse_config
from timm_ebl.training.origin import settle_config
from timm_ebl.training.report import describe_rule
from timm_ebl.training.rule import build_rule
from timm_ebl.training.run_folder import RunFolder
from timm_ebl.training.splits import load_splits
from timm_ebl.training.trained import TrainedModel
from timm_ebl.training.user_code import import_modules

pytestmark = pytest.mark.usefixtures("forgotten")
TESTS = Path(__file__).parent
OWN = ["--import", "outside", "--algo", "half-clamping", "--model", "outside_dense"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, folder):
    """The folder of a run of the script, which found the module in its working directory."""
    out = tmp_path_factory.mktemp("run") / "run"
    options = ["--dataset", folder, "--epochs", 3, "--batch-size", 9, "--lr", 0.02, "--threads", 1, "--output-dir", out]
    command = [sys.executable, str(SCRIPT), *map(str, options), *OWN]
    ran = subprocess.run(command, cwd=TESTS, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "rule:   half-clamping; 7 free sweeps, 3 perturbed sweeps\n" in ran.stdout
    return out


@pytest.fixture
def run(tmp_path, trained):
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_the_script_trains_a_model_by_a_rule_of_ones_own(run):
    summary = json.loads((run / "summary.json").read_text())
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert (summary["algo"], summary["model"]) == ("half-clamping", "outside_dense")
    assert epochs[-1]["train_cost"] < 0.7 * epochs[0]["train_cost"]
    assert summary["test_error"] < 40
    assert yaml.safe_load((run / "args.yaml").read_text())["imports"] == ["outside"]


def test_a_run_goes_on_with_what_its_recipe_imports(run, tmp_path):
    whole = Path(shutil.copytree(run, tmp_path / "whole"))
    *_, last = sorted((run / "checkpoints").iterdir())
    shutil.rmtree(last)
    train("--config", run / "args.yaml", "--output-dir", run, "--resume")
    assert_same_run(run, whole)


def test_a_run_starts_from_the_weights_of_a_model_of_ones_own(run, folder, tmp_path):
    """By one of the package's rules; the recipe of the checkpoint tells what is to be imported."""
    out, data = tmp_path / "next", ["--dataset", folder, "--epochs", 1, "--batch-size", 9, "--threads", 1]
    train("--pretrained", run, *data, "--output-dir", out, "--algo", "n-ep", "--lr", 1e-6, "--min-lr", 0)
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["algo"], summary["model"]) == ("n-ep", "outside_dense")
    before, after = (load_file(path / "model.safetensors")["W"] for path in (run, out))
    torch.testing.assert_close(before, after, atol=1e-4, rtol=0)


def test_commands_that_open_a_run_import_what_it_needs(run, folder):
    error = json.loads((run / "summary.json").read_text())["test_error"]
    assert verify(run).error == pytest.approx(error)
    image = next((folder / "test" / "left").iterdir())
    (prediction,) = classify(TrainedModel.open(run), [str(image)])
    assert set(prediction.classes) == {"left", "right", "dark"}


def test_the_card_names_a_rule_and_a_model_of_ones_own(run, folder, tmp_path, monkeypatch, capsys):
    checkpoint, target = TrainedModel.open(run), tmp_path / "staged"
    target.mkdir()
    stage(checkpoint, target, "mine", f"local-dir:{target}", checkpoint.test_split())
    card = (target / "README.md").read_text()
    assert "| rule | `half-clamping` |" in card
    assert "| second phase | 3 sweeps, asynchronous" in card
    for foreign in ("Hopfield network of", "hopfield-network", "backpropagation", "by an energy-based rule", "widths"):
        assert foreign not in card
    assert "An energy model trained by [timm_ebl]" in card
    monkeypatch.chdir(folder.parent)  # where the data set is
    monkeypatch.delitem(sys.modules, "outside")
    monkeypatch.delitem(timm.models._registry._model_entrypoints, "outside_dense")
    exec("".join(blocks(target / "README.md", "python")), {})
    assert "tensor(" in capsys.readouterr().out


def test_a_model_from_outside_the_package_is_published_and_never_packaged(run, tmp_path):
    (tmp_path / "records").mkdir()
    with pytest.raises(CheckpointError, match=r"outside_dense is no model of the package, .*: publish sends such"):
        packaged(tmp_path, run)
    assert not any((tmp_path / "records").iterdir())


def test_fields_of_a_rule_of_ones_own_are_set_and_swept(tmp_path):
    config = parse_config([*OWN, "--rule-kwargs", "share=0.25"])
    assert build_rule(config, network_for(config)).share == 0.25
    for given, words in (("shore=1", "no option 'shore'.*share"), ("perturbed=1", "perturbed has one")):
        with pytest.raises(ConfigError, match=words):
            build_rule(parse_config([*OWN, "--rule-kwargs", given]), network_for(config))
    settings = {"imports": ["outside"], "algo": "half-clamping", "model": "outside_dense"}
    study, _ = study_of(tmp_path, settings=settings, grids=[{"rule_kwargs": [{"share": 0.25}, {"share": 1.0}]}])
    assert [cell.row for cell in study.cells] == [f"half-clamping, rule_kwargs share={share}" for share in (0.25, 1.0)]


@dataclass(frozen=True)
class Rival(ContrastiveRule):
    """Needs two classes, and forces for a network of one layer."""

    def perturbation(self, output, target, beta):
        rival = (output - target * 1e3).topk(2, dim=1).values[:, 1:]
        return Forced([beta * (rival - target)])


@dataclass(frozen=True)
class Mistaken(ContrastiveRule):
    def perturbation(self, output, target, beta):
        return self.nothing


def test_a_rule_of_ones_own_is_tried_with_the_classes_of_the_model():
    register_rule("half-clamping", Rival)  # which the fixture forgets
    config = parse_config(["--algo", "half-clamping"])
    build_rule(config, network_for(config))
    register_rule("half-clamping", Mistaken)
    with pytest.raises(ConfigError, match=r"Rule 'half-clamping' fails \(AttributeError: .*nothing"):
        build_rule(config, network_for(config))


def test_a_model_with_a_minimiser_of_its_own_trains_and_answers_by_it(folder, tmp_path, monkeypatch):
    import_modules(["outside"])
    monkeypatch.setattr(sys.modules["outside"].ImageHopfield, "minimizer", Minimizer(sweeps=3))
    data = ["--dataset", str(folder), "--epochs", "1", "--batch-size", "9", "--output-dir", str(tmp_path / "run")]
    config = parse_config([*OWN, *data])
    model = build_model(config, load_splits(config).train)
    assert build_rule(config, model).free == model.minimizer == Minimizer(sweeps=3)
    for given in (["--free-sweeps", "9"], ["--omega", "1"]):
        with pytest.raises(ConfigError, match=r"^The model 'outside_dense' has a minimiser of its own, .* leave out"):
            train(*OWN, *data, *given)


def test_a_model_without_a_size_has_the_free_phase_of_its_checkpoint(monkeypatch, tmp_path):
    import_modules(["outside"])
    outside = sys.modules["outside"]

    class Sweeping(outside.ImageHopfield):
        num_features = 16

        def __init__(self, num_classes=10, in_chans=3, sweeps=7, omega=1.0, order="asynchronous", start="zero"):
            super().__init__(num_classes, in_chans)

    monkeypatch.setattr(outside, "ImageHopfield", Sweeping)
    model = timm.create_model("outside_dense", sweeps=12)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True, model_args={"sweeps": 12})
    config, origin = settle_config(parse_config([*OWN, "--pretrained", str(tmp_path)]))
    assert config.free_sweeps == build_model(config, load_splits(config).train, origin).minimizer.sweeps == 12


def test_options_of_the_second_phase_reach_the_field_that_a_rule_names():
    config = parse_config([*OWN, "--nudged-sweeps", "4", "--nudged-omega", "1.5", "--free-sweeps", "2"])
    network = network_for(config)
    rule = build_rule(config, network)
    assert (rule.perturbed.sweeps, rule.perturbed.omega, rule.free.sweeps) == (4, 1.5, 2)
    assert describe_rule(config.algo, rule, network) == "half-clamping; 2 free sweeps, 4 perturbed sweeps"
    with pytest.raises(SystemExit):
        parse_config([*OWN, "--beta", "0.1"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--lr", "0.1", "0.2"], "--lr is one rate: the model has no interactions; got 2."),
        (["--freeze", "1"], "--freeze is at most 0, not 1: the model has no interactions."),
        (["--model-kwargs", "widths=[4]"], "'outside_dense' cannot be built .*'widths'"),
        (["--model", "resnet10t"], "'resnet10t' has no energy to relax"),
    ],
)
def test_what_such_a_model_lacks_is_said(options, words):
    with pytest.raises(ConfigError, match=words):
        check_config(parse_config([*OWN, *options]))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("nowhere", None, "--import nowhere: there is no module nowhere on the Python path or in "),
        ("mine.py", None, "such as my_rules for my_rules.py: not 'mine.py'"),
        ("broken", "1 / 0", r"--import broken: the module cannot be imported \(ZeroDivisionError: "),
        ("needy", "import nowhere", r"--import needy: the module cannot be imported \(ModuleNotFoundError: "),
        ("ending", "raise SystemExit(3)", r"--import ending: the module cannot be imported \(SystemExit: 3\)"),
    ],
)
def test_a_module_that_cannot_be_imported_is_said_in_a_sentence(tmp_path, monkeypatch, capsys, name, content, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    if content:
        (tmp_path / f"{name}.py").write_text(content)
    with pytest.raises(SystemExit):
        parse_config(["--import", name])
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(words, line)


def test_a_run_whose_module_is_gone_is_refused_by_name(run):
    recipe = yaml.safe_load((run / "args.yaml").read_text())
    (run / "args.yaml").write_text(yaml.safe_dump(recipe | {"imports": ["gone"]}))
    with pytest.raises(CheckpointError, match=r"args.yaml: imports gone: there is no module gone on the Python path"):
        TrainedModel.open(run)


def test_what_comes_from_the_hub_imports_nothing_unless_it_is_told_to(run, monkeypatch, capsys):
    monkeypatch.setattr(finding, "_download", lambda repo_id: run)
    with pytest.raises(CheckpointError, match=r"args.yaml asks for the module outside: import it first"):
        TrainedModel.open("owner/name")
    assert "outside" not in sys.modules
    hub.main(["verify", "owner/name", "--import", "outside", "--threads", "1"])
    assert "which agrees with its files" in capsys.readouterr().out


@pytest.mark.parametrize("given", [["--models", "local-dir:net"], ["--import", "my_module", "--models", "my_model"]])
@pytest.mark.parametrize(
    ("command", "options"),
    [
        (gradients, ["--rules", "c-ep"]),
        (drift, ["--free-sweeps", "2"]),
        (benchmark, ["--equilibrium", "2", "--repeats", "1"]),
    ],
)
def test_commands_that_measure_networks_import_what_they_need(my_module, monkeypatch, capsys, command, options, given):
    (my_module / "net").mkdir()
    import_modules(["my_module"])
    half = (0.5, 0.5, 0.5)
    model, transform = timm.create_model("my_model"), BatchTransform(half, half, 0, False)
    RunFolder(my_module / "net").write_model(model, transform, "abcdefghij", (3, 32, 32))
    (my_module / "net" / "args.yaml").write_text("imports: [my_module]\n")
    monkeypatch.delitem(sys.modules, "my_module")
    monkeypatch.delitem(timm.models._registry._model_entrypoints, "my_model")
    monkeypatch.setattr(benchmark, "table", lambda model, options: [])
    monkeypatch.setattr(benchmark, "print_distances", lambda *_: None)
    command.main([*given, *options, "--batch-size", "2", "--threads", "1"])
    assert f"\n{given[-1]}, 2 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (predict, ["name", "image"]),
        (plots, ["run"]),
        (benchmark, []),
        (drift, []),
        (gradients, []),
        (hub, ["package", "run"]),
        (hub, ["publish", "run", "--repo-id", "me/net"]),
        (hub, ["verify", "run"]),
    ],
)
def test_every_command_for_models_imports_before_anything_else(tmp_path, monkeypatch, capsys, command, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        command.main([words[0], "--import", "nowhere", *words[1:]] if words else ["--import", "nowhere"])
    assert end.value.code == 2
    assert "error: --import nowhere: there is no module nowhere on the Python path" in capsys.readouterr().err


def test_imports_may_be_given_one_by_one_and_come_before_those_of_a_recipe(tmp_path):
    (tmp_path / "recipe.yaml").write_text("imports: [nowhere]\n")
    config = parse_config(["--config", str(tmp_path / "recipe.yaml"), "--import", "json", "--import", "yaml", "csv"])
    assert config.imports == ("json", "yaml", "csv")
