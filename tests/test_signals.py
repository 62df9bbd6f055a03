"""What a terminal or a cluster sends stops a run at a place where it goes on from; nothing that was done is lost."""

import os
import shlex
import signal
import sys

import pytest
from accelerate.commands.launch import launch_command_parser
from accelerate.utils.launch import prepare_simple_launcher_cmd_env
from runs import arguments, assert_same_run, train, train_ebl

from timm_ebl.errors import Interrupted
from timm_ebl.training import checkpoint, signals
from timm_ebl.training.checkpoint import Checkpoints
from timm_ebl.training.manifest import find_damage
from timm_ebl.training.progress import Progress
from timm_ebl.training.signals import StopSignals, stop_message

POLITE = [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU]


def send(number):
    os.kill(os.getpid(), number)


@pytest.fixture
def run_main(folder, tmp_path, monkeypatch, capsys):
    """Runs the script's `main`; returns its exit status, what it said last and the folder of the run."""

    def run_main(*more):
        out = tmp_path / "run"
        monkeypatch.setattr(sys, "argv", ["train_ebl.py", *arguments(folder, out, *more)])
        monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
        with pytest.raises(SystemExit) as end:
            train_ebl.main()
        return end.value.code, capsys.readouterr().err.splitlines()[-1], out

    return run_main


@pytest.mark.parametrize("first", [signal.SIGINT, *POLITE])
def test_the_first_signal_is_noted_and_further_ones_change_nothing(first):
    before = [signal.getsignal(number) for number in POLITE]
    with StopSignals() as stop:
        assert stop.received is None
        for number in (first, first, *POLITE):
            send(number)
        assert stop.received == first
    assert [signal.getsignal(number) for number in POLITE] == before


def test_a_signal_is_answered_at_once_and_only_by_the_first_process(monkeypatch, capfd):
    for rank, answer in (("0", "\nSIGUSR1: stopping after this batch\n"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        with StopSignals():
            send(signal.SIGUSR1)
            send(signal.SIGTERM)
        assert capfd.readouterr().err == answer


def test_a_second_ctrl_c_stops_at_once_unless_the_launcher_passed_on_the_first(monkeypatch):
    with StopSignals() as stop:
        send(signal.SIGINT)
        send(signal.SIGINT)
        assert stop.received == signal.SIGINT
        monkeypatch.setattr(signals, "_SAME", 0)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_under_nohup_a_hangup_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            send(signal.SIGHUP)
            assert stop.received is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("variable", ["ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID", None])
def test_the_end_of_a_launcher_counts_as_a_hangup_but_not_that_of_a_shell(monkeypatch, variable):
    for name in signals._LAUNCHED_BY:
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, "no")
    stop = StopSignals()
    assert stop.received is None
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert stop.received == (signal.SIGHUP if variable else None)


def test_accelerate_launch_sets_a_variable_by_which_it_is_known():
    defaults = ["--num_machines", "1", "--num_processes", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    options = launch_command_parser().parse_args(["--cpu", *defaults, "train_ebl.py"])
    _, environment = prepare_simple_launcher_cmd_env(options)
    assert {*signals._LAUNCHED_BY} & {*environment}


def test_a_run_whose_launcher_has_gone_saves_and_goes_on_exactly(folder, tmp_path, monkeypatch):
    train(*arguments(folder, tmp_path / "whole"))
    original = Checkpoints.between_batches

    def between_batches(self):
        if self.progress.step == 3:
            monkeypatch.setattr(os, "getppid", lambda: 1)
        original(self)

    with monkeypatch.context() as patch:
        patch.setenv("ACCELERATE_MIXED_PRECISION", "no")
        patch.setattr(Checkpoints, "between_batches", between_batches)
        with pytest.raises(Interrupted, match="SIGHUP after batch 3 of epoch 1, which is saved"):
            train(*arguments(folder, tmp_path / "run"))
    train(*arguments(folder, tmp_path / "run", "--resume"))
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("number", POLITE)
def test_before_the_first_batch_a_signal_ends_the_run_at_once_from_inside_a_library_too(run_main, monkeypatch, number):
    monkeypatch.setattr("PIL.Image.open", lambda *_, **__: send(number))
    status, said, out = run_main()
    assert (status, said) == (128 + number, f"stopped by {number.name}")
    assert not (out / "args.yaml").exists()


def test_signals_during_a_save_do_not_end_it(run_main, monkeypatch):
    original = checkpoint._write_synced

    def write(path, data):
        send(signal.SIGTERM)
        return original(path, data)

    monkeypatch.setattr(checkpoint, "_write_synced", write)
    status, said, out = run_main()
    assert status == 128 + signal.SIGTERM
    assert "after batch 1 of epoch 2, which is saved" in said
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == [
        "epoch-0002-step-000000",
        "epoch-0002-step-000001",
    ]
    assert [find_damage(path) for path in (out / "checkpoints").iterdir()] == [None, None]


def test_a_signal_while_the_result_is_published_ends_the_run_with_its_results(run_main, monkeypatch):
    monkeypatch.setattr(train_ebl, "check_access", lambda *_: None)
    monkeypatch.setattr(train_ebl, "publish", lambda *_, **__: send(signal.SIGTERM))
    status, said, out = run_main("--push-to-hub", "owner/name")
    assert (status, said) == (128 + signal.SIGTERM, "stopped by SIGTERM")
    assert (out / "summary.json").is_file()


def test_the_sentence_says_what_is_done_and_a_command_that_a_shell_reads(tmp_path, monkeypatch):
    run = tmp_path / "my runs" / "it's"
    monkeypatch.setattr(sys, "argv", ["../my clone/train_ebl.py"])
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    said = stop_message(signal.SIGUSR1, Progress(epoch=4, step=0), run)
    assert said.startswith("stopped by SIGUSR1 after epoch 3, which is saved; go on by: accelerate launch ")
    assert "batch 2 of epoch 4" in stop_message(signal.SIGTERM, Progress(epoch=4, step=2), run)
    assert shlex.split(said.split("go on by: ")[1])[2:] == [
        *("../my clone/train_ebl.py", "--config", str(run / "args.yaml"), "--output-dir", str(run), "--resume")
    ]
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    assert "go on by: python '../my clone/train_ebl.py' --config" in stop_message(signal.SIGTERM, Progress(step=2), run)
