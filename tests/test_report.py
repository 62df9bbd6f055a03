"""What a run says: in words, on lines that a terminal of 80 columns holds, and in a log file seldom."""

import io
import logging
import re
import sys
from functools import partial

import pytest
import timm
from accelerate import Accelerator
from runs import arguments, network_for, train

from timm_ebl import create_rule, list_rules
from timm_ebl.training import engine as loop
from timm_ebl.training import report
from timm_ebl.training.command_line import parse_config
from timm_ebl.training.progress import Progress, duration
from timm_ebl.training.report import Report, describe_rule
from timm_ebl.training.rule import build_rule


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--algo", "c-ep"], "c-ep, beta 0.25; 7 free sweeps + 2, perturbed 2 x 3, routes held"),
        (["--algo", "n-ep", "--no-settle"], "n-ep, beta 0.25; 7 free sweeps, perturbed 3, routes held"),
        (["--algo", "cl"], "cl; 7 free sweeps, perturbed 3, as many more free ones, routes followed"),
        (["--algo", "tbp", "--free-sweeps", "1"], "tbp; 1 free sweep, 15 sweeps unrolled"),
        (["--algo", "rbp"], "rbp; 7 free sweeps, 15 adjoint steps"),
        (
            ["--algo", "c-ep", "--preset", "paper", "--beta", "0.1"],
            "c-ep, beta 0.1; 60 free sweeps from zero, perturbed 2 x 15, routes followed, damped",
        ),
    ],
)
def test_a_rule_is_described_in_words(options, words):
    config = parse_config(options)
    network = network_for(config)
    assert describe_rule(config.algo, build_rule(config, network), network) == words


def test_the_rule_of_a_network_that_rests_after_a_forward_pass_has_no_free_sweeps():
    network = timm.create_model("pcn_vgg5_tiny_mnist")
    for algo, phases in (("c-ep", "2 x 6"), ("n-ep", "6")):
        expected = f"{algo}, beta 0.02; a forward pass, perturbed {phases}, routes held"
        assert describe_rule(algo, create_rule(algo), network) == expected


@pytest.mark.parametrize("algo", list_rules())
def test_a_rule_that_leaves_the_free_phase_to_the_model_has_words_too(algo):
    words = describe_rule(algo, create_rule(algo), network_for(parse_config([])))
    assert words.startswith(algo)
    assert "(" not in words


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (99.4, "99 s"), (100, "2 min"), (3599, "1 h 0 min"), (11880, "3 h 18 min")]
)
def test_a_time_is_in_words(seconds, words):
    assert duration(seconds) == words


def test_a_run_says_in_80_columns_what_it_does_on_what_and_what_it_has_found(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train(*arguments(folder, "run", "--epochs", 2, "--batch-size", 7, "--grad-accum-steps", 2))
    said, warned = capsys.readouterr()
    lines = said.splitlines()
    assert [line.split(":")[0] for line in lines[:7]] == ["data", "images", "model", "rule", "steps", "on", "to"]
    assert lines[1] == "images: 54 to train, 6 held out, 15 to test"
    assert lines[4] == "steps:  3 an epoch, 2 epochs, 14 images a step (1 process x 2 batches of 7)"
    assert "CPU, 1 thread, 1 process, float32" in lines[5]
    assert [line[:9] for line in lines[7:]] == ["epoch 1/2", "epoch 2/2", "test erro"]
    assert "held out" in lines[7]
    assert max(map(len, lines[2:-1])) <= 80
    assert warned == ""


def test_the_longest_line_of_an_epoch_fits_80_columns(capsys):
    progress = Progress(epoch=101, seconds=1e6)
    metrics = {"epoch": 100, "train_error": 57.16, "held_out_error": 54.32, "seconds": 44000.0}
    Report(Accelerator(cpu=True), progress, 300).epoch(metrics)
    (line,) = capsys.readouterr().out.splitlines()
    assert line == "epoch 100/300  error 57.16 %, held out 54.32 %  12 h 13 min, 555 h 33 min left"
    assert len(line) <= 80


def test_in_a_terminal_a_bar_shows_the_error_so_far_and_no_more(folder, tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(loop, "tqdm", partial(loop.tqdm, mininterval=0))
    train(*arguments(folder, tmp_path / "run", "--epochs", 1))
    assert re.search(r"epoch 1/1: +\d+%\|.*\| \d/6 \[00:0\d<00:0\d, [\d.]+it/s, error [\d.]+ %\]", terminal.getvalue())


@pytest.mark.parametrize("in_terminal", [True, False])
def test_the_first_batches_give_an_estimate_and_a_log_a_line_every_few_minutes(in_terminal, monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(report.time, "monotonic", lambda: clock[0])
    if in_terminal:
        monkeypatch.setattr(sys, "stderr", Terminal())
    progress = Progress()
    run = Report(Accelerator(cpu=True), progress, epochs=3)
    run.batches = 100
    for progress.step in range(1, 101):
        clock[0] += 100 if progress.step < 4 else 20  # the first batches wait for a compiler
        run.batch()
    estimate, *others = capsys.readouterr().out.splitlines()
    assert estimate == "takes:  about 33 min an epoch on this device; 1 h 37 min to go"
    if in_terminal:
        assert others == []
    else:
        assert others[0] == "epoch 1/3  batch 18 of 100  about 1 h 34 min left"
        assert len(others) == 6


def test_a_run_that_is_over_at_once_gives_no_estimate(monkeypatch, capsys):
    progress = Progress()
    run = Report(Accelerator(cpu=True), progress, epochs=1)
    run.batches = 100
    for progress.step in range(1, 101):
        run.batch()
    assert capsys.readouterr().out == ""


def test_timm_has_nothing_to_warn_of_in_a_run_of_one_epoch(folder, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        train(*arguments(folder, tmp_path / "run", "--epochs", 1))
    assert caplog.records == []


def test_a_run_that_starts_from_a_checkpoint_says_from_which(folder, tmp_path, capsys):
    options = ("--pretrained", "dchn_tiny_mnist.c_ep", "--epochs", 1, "--threads", 1)
    train("--dataset", folder, "--output-dir", tmp_path / "run", *options)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:4]] == ["data", "images", "model", "from"]
    assert "dchn_tiny_mnist.c_ep" in lines[3]
