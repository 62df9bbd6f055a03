"""Two processes with half the batch each compute what one process with the whole batch does."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from one_of_two import RULES
from runs import SCRIPT, arguments, assert_same_run, write_images

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


def command(processes, *words):
    options = ["--nproc-per-node", processes, "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    return [*map(str, [sys.executable, "-m", "torch.distributed.run", *options, *words])]


ENVIRONMENT = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}


def launch(processes, *words):
    return subprocess.run(command(processes, *words), env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


def test_two_processes_do_what_one_does(folder, tmp_path):
    outs = []
    for processes in (1, 2):
        result = launch(processes, HERE / "one_of_two.py", folder, tmp_path / f"{processes}.pt")
        assert result.returncode == 0, result.stderr
        outs.append(torch.load(tmp_path / f"{processes}.pt", weights_only=True))
    one, two = outs
    assert (one["processes"], two["processes"]) == (1, 2)
    for rule in RULES:
        # A contrastive rule subtracts two energies that are alike: fewer digits of the difference are correct.
        tolerance = 1e-3 if rule == "c-ep" else 1e-6
        for name, weight in one[rule]["weights"].items():
            moved = (weight - one[rule]["before"][name]).norm() / weight.norm()
            apart = (weight - two[rule]["weights"][name]).norm() / weight.norm()
            assert apart < min(tolerance, moved / 20), (rule, name, apart, moved)
        for first, second in zip(one[rule]["metrics"], two[rule]["metrics"], strict=True):
            assert first == pytest.approx(second, rel=1e-3)
            assert first["error"] == second["error"]
        assert one[rule]["test"] == pytest.approx(two[rule]["test"], rel=1e-4)


@pytest.mark.slow
def test_two_processes_stop_together_and_go_on_exactly(folder, tmp_path):
    words = [SCRIPT, *arguments(folder, tmp_path / "whole", "--warm-start", "--epochs", 12), "--batch-size", "3"]
    result = launch(2, *words)
    assert result.returncode == 0, result.stderr
    words[words.index(str(tmp_path / "whole"))] = tmp_path / "stopped"
    run = subprocess.Popen(command(2, *words), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    while not any((tmp_path / "stopped" / "checkpoints").glob("epoch-*")):
        assert run.poll() is None, run.stderr.read()
        time.sleep(0.02)
    run.send_signal(signal.SIGTERM)
    _, errors = run.communicate(timeout=120)
    assert run.returncode != 0
    assert "stopped by SIGTERM after batch" in errors
    assert not (tmp_path / "stopped" / "summary.json").exists()
    result = launch(2, *words, "--resume")
    assert result.returncode == 0, result.stderr
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
