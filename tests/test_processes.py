"""Two processes with half the batch each compute what one process with the whole batch does."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from one_of_two import RULES, results
from runs import arguments, assert_same_run

from timm_ebl import create_rule
from timm_ebl.training.task import RuleTask

HERE = Path(__file__).parent


def launch(processes, *words):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--nproc-per-node", processes, "--master-addr", "127.0.0.1", "--master-port", port]
    command = map(str, [sys.executable, "-m", "torch.distributed.run", *options, *words])
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command], env=environment, capture_output=True, text=True, timeout=300)


def test_two_processes_do_what_one_does(folder, tmp_path):
    result = launch(2, HERE / "one_of_two.py", folder, tmp_path / "two.pt")
    assert result.returncode == 0, result.stderr
    one = results(Accelerator(cpu=True), folder)
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    assert (one["processes"], two["processes"]) == (1, 2)
    for rule in RULES:
        for name, weight in one[rule]["weights"].items():
            moved = (weight - one[rule]["before"][name]).norm() / weight.norm()
            apart = (weight - two[rule]["weights"][name]).norm() / weight.norm()
            assert apart < min(1e-10, moved / 1000), (rule, name, apart, moved)
        torch.testing.assert_close(two[rule]["average"], one[rule]["average"], rtol=1e-8, atol=1e-12)
        for first, second in zip(one[rule]["metrics"], two[rule]["metrics"], strict=True):
            assert first == pytest.approx(second, rel=1e-3)
            assert first["error"] == second["error"]
        first, second = one[rule]["test"], two[rule]["test"]
        assert torch.equal(first.pop("predicted"), second.pop("predicted"))
        assert first == pytest.approx(second, rel=1e-4)


@pytest.mark.parametrize("name", ["c-ep", "tbp"])
def test_a_rule_says_what_to_do_with_a_model_that_is_wrapped_for_parallel_processes(make_dchn, batch, name):
    wrapped, rule = torch.nn.DataParallel(make_dchn()), create_rule(name)
    words = r"A DataParallel has no energy to relax, but its \.module has: .*task\.RuleTask\.prepare_distributed"
    for call in (lambda: rule(wrapped, *batch), lambda: RuleTask(wrapped, rule, verbose=False)):
        with pytest.raises(TypeError, match=words):
            call()
    with pytest.raises(TypeError, match="A DataParallel has no energy to relax: choose one of"):
        rule(torch.nn.DataParallel(torch.nn.Identity()), *batch)


@pytest.mark.slow
def test_two_processes_stop_together_and_go_on_exactly(folder, tmp_path):
    """The signal reaches one of them; both save after the same batch and end with its status."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    words = arguments(folder, stopped, "--warm-start", "--epochs", 8, "--batch-size", 3)
    script = [sys.executable, str(HERE / "stopped.py"), str(whole), str(stopped)]
    result = subprocess.run([*script, *words], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr.count("stopped by SIGTERM after batch") == 1
    assert_same_run(stopped, whole)
