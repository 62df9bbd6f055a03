"""Every command ends a wrong command line in one line, with what may be said instead."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from timm_ebl.hub import __main__ as hub
from timm_ebl.tools import benchmark, drift, gradients, plots, predict
from timm_ebl.tools.study import __main__ as study
from timm_ebl.training.command_line import NAMES_ELSEWHERE, build_parser, parse_config
from timm_ebl.training.config import TrainConfig
from timm_ebl.training.options import flag_of

ROOT = Path(__file__).parents[1]
COMMANDS = {
    benchmark.main: ["--nonsense"],
    drift.main: ["--nonsense"],
    gradients.main: ["--nonsense"],
    plots.main: ["run", "--nonsense"],
    hub.main: ["verify", "name", "--nonsense"],
    predict.main: ["name", "image", "--nonsense"],
    study.main: ["recipe.yaml", "--output-dir", "out", "--nonsense"],
}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__module__)
def test_an_unknown_option_is_refused_in_one_line_that_lists_the_known_ones(command, capsys):
    with pytest.raises(SystemExit) as refusal:
        command(COMMANDS[command])
    message = capsys.readouterr().err
    assert refusal.value.code == 2
    assert "--nonsense" in message
    assert "--help" in message
    assert message.count("\n") == 1


def test_the_script_shows_its_options_at_once_and_without_torch(tmp_path):
    for name in ("torch", "timm", "accelerate"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} is loaded')")
    command = [sys.executable, str(ROOT / "train_ebl.py"), "--epochs", "3", "--help"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "accelerate launch train_ebl.py --algo n-ep" in ran.stdout
    assert max(map(len, ran.stdout.splitlines())) <= 120
    options = build_parser().format_help().partition("\n\n")[2]
    assert "".join(options.split()) in "".join(ran.stdout.split()), (
        "run python -m timm_ebl.training.command_line > timm_ebl/training/options.txt"
    )
    reading, writing = os.pipe()
    os.close(reading)  # as behind | head
    ran = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, cwd=tmp_path, env={})
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (0, b"")


def test_options_are_in_groups_with_defaults_in_words(capsys):
    with pytest.raises(SystemExit):
        parse_config(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    places = [said.index(f" {name}: --") for name in ("data", "model", "rule", "optimisation", "run", "logging")]
    assert places == sorted(places)
    for words in (
        "1 for none (default: 1.9, later ones less, down to 1.5)",
        "read-out last (default: 0.002)",
        "if there is one (default: no)",
    ):
        assert words in said
    assert "False" not in said


def test_every_module_that_can_be_run_is_among_them():
    files = [path for path in (ROOT / "timm_ebl").rglob("*.py") if '__name__ == "__main__"' in path.read_text()]
    runnable = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files}
    runnable -= {"timm_ebl.training.command_line"}  # it has no options of its own
    assert {command.__module__ for command in COMMANDS} == runnable


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__module__)
def test_asked_for_help_every_command_says_what_it_is_for_and_does_no_more(command, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        command(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr()
    assert sys.modules[command.__module__].__doc__.splitlines()[0] in said.out
    assert said.out.startswith(f"usage: python -m {command.__module__.removesuffix('.__main__')} ")
    assert said.err == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [benchmark.main, gradients.main])
@pytest.mark.parametrize(("threads", "words"), [("0", "at least 1"), ("5000", "--threads is at most")])
def test_threads_that_cannot_be_are_refused_by_every_command(command, threads, words, capsys):
    with pytest.raises(SystemExit):
        command(["--threads", threads])
    assert words in capsys.readouterr().err


def answer(command, *line, capsys):
    with pytest.raises(SystemExit) as refusal:
        command([*line])
    assert refusal.value.code == 2
    return capsys.readouterr().err.partition("error: ")[2]


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        (["--data-dir", "x"], "unknown option --data-dir: did you mean --dataset?\n"),
        (["--data-dir=x"], "unknown option --data-dir: did you mean --dataset?\n"),
        (["--lr", "0.1", "-b", "64"], "unknown option -b: did you mean --batch-size?\n"),
        (["-b64"], "unknown option -b64: did you mean --batch-size?\n"),
        (["--amp"], "unknown option --amp: did you mean --mixed-precision bf16?\n"),
        (["--workers", "4"], "unknown option --workers: images are in memory, and no process loads them\n"),
        (["--epoch", "3"], "unknown option --epoch: did you mean --epochs?\n"),
        (["--optimiser", "sgd", "--wieght-decay", "1"], "unknown option --optimiser: did you mean --opt?\n"),
        (["--wieght-decay", "1"], "unknown option --wieght-decay: did you mean --weight-decay?\n"),
        (["--linear-respons"], "unknown option --linear-respons: did you mean --linear-response?\n"),
    ],
)
def test_options_of_timms_scripts_and_misspelt_ones_are_answered_by_what_is_meant(line, meant, capsys):
    assert answer(parse_config, *line, capsys=capsys) == meant


def test_what_is_meant_is_always_an_option_and_what_is_asked_never_is():
    known = {flag_of(spec.name) for spec in dataclasses.fields(TrainConfig)}
    named = {word.strip(",?;:)") for text in NAMES_ELSEWHERE.values() for word in text.split() if word.startswith("--")}
    assert named <= known
    assert not known & NAMES_ELSEWHERE.keys()


def test_the_sections_that_an_answer_names_are_there():
    named = {place for text in NAMES_ELSEWHERE.values() for place in re.findall(r"\((\S*README\S*), (.+)\)", text)}
    assert named
    for guide, section in named:
        assert f"\n## {section}\n" in (ROOT / guide).read_text()


def test_a_misspelt_option_of_a_subcommand_is_answered_too(capsys):
    said = answer(hub.main, "publish", "run", "--repo-id", "a/b", "--dryrun", capsys=capsys)
    assert said == "unknown option --dryrun: did you mean --dry-run?\n"
    assert "the options are" in answer(hub.main, "verify", "name", "--workers", "4", capsys=capsys)
