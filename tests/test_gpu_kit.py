"""The script for a borrowed GPU, `.ci/gpu`: a dry run on a CPU with what a bare machine has, and how it stops."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from pictures import images, write_split
from readmes import ROOT

STAGES = ("tests", "benchmark-dchn_tiny_cifar10--no-compiled", "train", "paper")
SMALL = "--epochs 1 --batch-size 10 --model-kwargs widths=[4,4,4,4] gains=0.8"

BARE = """
import socket
from importlib.machinery import PathFinder

MISSING = ("datasets", "hypothesis", "pandas", "xdist")
find, list_installed = PathFinder.find_spec, PathFinder.find_distributions

@classmethod
def find_spec(cls, name, *rest):
    return None if name.partition(".")[0] in MISSING else find(name, *rest)

@classmethod
def find_distributions(cls, context):
    return [] if context.name in MISSING else list_installed(context)

def refuse(*_):
    raise OSError("there is no network")

PathFinder.find_spec, PathFinder.find_distributions = find_spec, find_distributions
socket.socket.connect = socket.getaddrinfo = refuse
"""

STUB = """#!/usr/bin/env bash
echo "$*" >>"$CALLS"
case " $* " in
  *" ${FAILS:-nothing} "*) echo "it cannot be done"; exit 3 ;;
  *" ${LASTS:-nothing} "*) trap 'echo saved; exit 143' TERM; echo working; sleep 60 & wait ;;
  *" --output-dir "*) mkdir -p "$EBL_WORK/paper" && echo '{"epoch": 1}' >"$EBL_WORK/paper/metrics.jsonl" ;;
esac
"""


@pytest.fixture
def kit(tmp_path):
    """A checkout with the script, in a folder of its own."""
    folder = tmp_path / "kit"
    (folder / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "gpu", folder / ".ci")
    for name in ("hub_configs", "pyproject.toml", "tests", "timm_ebl", "train_ebl.py"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture
def stub(kit):
    """The environment of a call whose interpreter does nothing, and fails or lasts where it is told to."""
    python = kit / "python"
    python.write_text(STUB)
    python.chmod(0o755)
    models = {"EBL_MODELS": "dchn_tiny_cifar10", "EBL_DEVICE": "cpu"}
    return {"EBL_PYTHON": str(python), "EBL_WORK": str(kit / "work"), "CALLS": str(kit / "calls"), **models}


def call(kit, *arguments, cwd=None, **environment):
    command = ["bash", str(kit / ".ci" / "gpu"), *map(str, arguments)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("EBL_", "OUT"))}
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(command, env=clean | environment, cwd=cwd, text=True, **pipes)


def ended(process):
    output, errors = process.communicate(timeout=900)
    return process.returncode, output, errors


def report(kit):
    """What the last call said of each stage."""
    lines = (kit / "work" / "out" / "report.txt").read_text().splitlines()
    return dict(line.split(": ", 1) for line in lines if not line.startswith(" "))


def calls(stub):
    with open(stub["CALLS"]) as file:
        return file.read().splitlines()


@pytest.mark.slow
def test_a_dry_run_does_everything_with_what_a_bare_machine_has(kit, tmp_path):
    """Neither `datasets` nor a plugin of pytest nor a network; the training split comes in two parts."""
    names = [f"class{number}" for number in range(10)]
    from datasets import ClassLabel, Image

    for part, (folder, split) in enumerate([("a", "train"), ("b", "train"), ("a", "test")]):
        columns = {"img": images(20, first=20 * part), "label": [*range(10)] * 2}
        place = kit / ".gpu" / folder / "uoft-cs/cifar10/plain_text"
        file = write_split(place, columns, {"img": Image(), "label": ClassLabel(names=names)}, split)
        if split == "train":
            (file / "train-00000-of-00001.parquet").rename(file / f"train-0000{part}-of-00002.parquet")
    (kit / "work" / "site").mkdir(parents=True)
    (kit / "work" / "site" / "sitecustomize.py").write_text(BARE)
    environment = {
        **dict.fromkeys(("EBL_SECONDS", "EBL_TESTS_SECONDS", "EBL_BENCHMARK_SECONDS", "EBL_PAPER_SECONDS"), "900"),
        "EBL_WORK": str(kit / "work"),
        "EBL_PYTHON": sys.executable,
        "EBL_DEVICE": "cpu",
        "EBL_MODELS": "dchn_tiny_cifar10",
        "EBL_BENCHMARK": "--batch-size 1 --batches 1 --repeats 1 --threads 1",
        "EBL_TRAIN": f"{SMALL} --warmup-epochs 0 --holdout 0.25 --threads 1",
        "EBL_PAPER": f"{SMALL} --mixed-precision bf16 --threads 1",
    }
    out = tmp_path / "out"
    status, output, errors = ended(call(kit, "all", out, **environment))
    assert status == 0, output + errors
    assert [line for line in output.splitlines() if ": done" in line] == [f"{name}: done" for name in STAGES]
    assert (out / "report.txt").read_text() in output
    for run, sweeps in (("train", 11), ("paper", 60)):
        assert json.loads((out / run / "summary.json").read_text())["status"] == "completed"
        assert f"free_sweeps: {sweeps}\n" in (out / run / "args.yaml").read_text()
        assert (out / run / "model.safetensors").is_file()
    table = (out / "logs" / f"{STAGES[1]}.log").read_text()
    assert all(name in table for name in ("c-ep, paper", "c-ep, Laborieux 2021", "c-ep, ours", "GFLOP/s"))
    assert "skipped" in (out / "logs" / "tests.log").read_text()
    assert sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) < 2**20

    before = {path: path.read_text() for path in (kit / "work" / "logs").iterdir()}
    assert ended(call(kit, "all", out, **environment))[0] == 0
    assert {path: path.read_text() for path in (kit / "work" / "logs").iterdir()} == before


def test_a_stage_that_fails_or_lasts_too_long_is_named_and_the_next_call_goes_on(kit, stub):
    lasting = {"FAILS": "pytest", "LASTS": "hub_configs/gpu_cifar10.yaml", "EBL_TRAIN_SECONDS": "1"}
    assert ended(call(kit, "all", **stub, **lasting))[0] == 1
    assert report(kit) == {
        STAGES[0]: "NOT DONE, failed with status 3: it cannot be done",
        STAGES[1]: "done",
        STAGES[2]: "NOT DONE, stopped after 1 s or by a signal: the same command goes on",
        STAGES[3]: "done",
    }
    assert (kit / "work/out/logs/train.log").read_text().splitlines()[-1] == "saved"
    first = calls(stub)
    assert ended(call(kit, "all", **stub))[0] == 0
    assert report(kit) == dict.fromkeys(STAGES, "done")
    again = calls(stub)[len(first) :]
    assert [("-m pytest" in line, "train --resume" in line) for line in again] == [(True, False), (False, True)]


def test_a_call_ends_in_its_time(kit, stub):
    begin = time.monotonic()
    assert ended(call(kit, "all", **stub, LASTS="pytest", EBL_SECONDS="1"))[0] == 1
    assert time.monotonic() - begin < 20
    stopped, *others = report(kit).values()
    assert stopped.startswith("NOT DONE, stopped after 1 s")
    assert others == ["NOT DONE, no time was left"] * 3


def test_a_signal_is_passed_on_and_what_there_is_is_collected(kit, stub):
    process = call(kit, "all", **stub, LASTS="hub_configs/gpu_cifar10.yaml")
    log = kit / "work" / "logs" / "train.log"
    while not log.exists() or "working" not in log.read_text():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 1
    assert log.read_text().splitlines()[-1] == "saved"
    assert [line.partition(",")[0] for line in report(kit).values()] == ["done", "done", "NOT DONE", "NOT DONE"]


def test_the_papers_procedure_is_done_once_an_epoch_is_timed(kit, stub):
    assert ended(call(kit, "paper", **stub))[0] == 0
    (kit / "work" / "done" / "paper").unlink()
    assert ended(call(kit, "paper", **stub, LASTS="hub_configs/table2_cifar10.yaml", EBL_PAPER_SECONDS="1"))[0] == 0
    assert '{"epoch": 1}' in (kit / "work/out/report.txt").read_text()
    assert ended(call(kit, "paper", **stub, FAILS="--seed", EBL_PAPER="--seed 1"))[0] == 1
    assert report(kit) == {"paper": "NOT DONE, failed with status 3: it cannot be done"}


def test_what_is_done_with_other_options_or_on_another_device_is_not_taken_for_it(kit, stub):
    for options, times in (({}, 1), ({"EBL_TRAIN": "--epochs 300"}, 2), ({"EBL_TRAIN": "--epochs 300"}, 2)):
        assert ended(call(kit, "train", **stub, **options))[0] == 0
        assert len(calls(stub)) == times
    status, _, errors = ended(call(kit, "train", **stub | {"EBL_DEVICE": "cuda"}))
    assert (status, errors) == (2, f"{kit / 'work'} holds what cpu has done: choose another EBL_WORK for cuda\n")


def test_folders_are_those_of_whoever_calls(kit, stub, tmp_path):
    relative = {"EBL_WORK": "some work", "cwd": tmp_path}
    assert ended(call(kit, "tests", "some results", **stub | relative))[0] == 0
    assert (tmp_path / "some results" / "report.txt").read_text() == "tests: done\n"
    assert (tmp_path / "some work" / "logs" / "tests.log").exists()


def test_wheels_are_installed_once(kit, stub):
    (kit / ".gpu" / "wheels").mkdir(parents=True)
    (kit / ".gpu" / "wheels" / "some.whl").touch()
    for _ in range(2):
        assert ended(call(kit, "tests", **stub))[0] == 0
    (line,) = [line for line in calls(stub) if line.startswith("-m pip install")]
    assert "--no-index" in line
    assert line.endswith(f"--target {kit / 'work' / 'site'} .gpu/wheels/some.whl")


@pytest.mark.parametrize(
    ("arguments", "environment", "sentence"),
    [
        ([], {}, "usage: .ci/gpu tests|benchmark|train|paper|all [FOLDER]"),
        (["everything"], {}, "usage: .ci/gpu tests|benchmark|train|paper|all [FOLDER]"),
        (["all", "one", "two"], {}, "usage: .ci/gpu tests|benchmark|train|paper|all [FOLDER]"),
        (["all"], {"EBL_DEVICE": "tpu"}, "EBL_DEVICE is cuda or cpu, not tpu"),
        (["all"], {"EBL_TRAIN_SECONDS": "5m"}, "EBL_TRAIN_SECONDS is a whole number of seconds, not 5m"),
        (["all"], {"EBL_MODEL": "dchn"}, "there is no setting EBL_MODEL: all of them stand at the top of .ci/gpu"),
        (
            ["all"],
            {"EBL_DEVICE": "cuda", "FAILS": "-c"},
            "PyTorch finds no CUDA device (it cannot be done): EBL_DEVICE=cpu makes a dry run",
        ),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(kit, stub, arguments, environment, sentence):
    status, output, errors = ended(call(kit, *arguments, **stub | environment))
    assert (status != 0, output, errors) == (True, "", sentence + "\n")
