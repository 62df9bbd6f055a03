"""A run that is cut off and taken up again ends where the undisturbed run ends, to the last bit."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import arguments, assert_same_run, train

from timm_ebl.data.transforms import BatchTransform
from timm_ebl.errors import ConfigError, OutputError
from timm_ebl.training import checkpoint
from timm_ebl.training.checkpoint import Checkpoints
from timm_ebl.training.manifest import find_damage
from timm_ebl.training.run_folder import RunFolder


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    train(*arguments(folder, out, "--warm-start"))
    return out


@pytest.mark.parametrize("calls", [1, 4, 6, 7, 8, 13, 21, 22])
def test_a_run_stopped_anywhere_goes_on_exactly(folder, undisturbed, tmp_path, train_until, calls):
    command = arguments(folder, tmp_path / "run", "--warm-start")
    stop = train_until(calls, *command)
    assert stop.signal == signal.SIGTERM
    assert f"--config {tmp_path / 'run' / 'args.yaml'} --output-dir {tmp_path / 'run'} --resume" in str(stop)
    train(*command, "--resume")
    assert_same_run(tmp_path / "run", undisturbed)


def test_random_numbers_of_every_global_generator_go_on(folder, tmp_path, monkeypatch, train_until):
    original = BatchTransform.train

    def noisy(self, images, draws):
        noise = torch.rand(()) + np.random.rand() + random.random()
        return original(self, images, draws) + 0.1 * float(noise)

    more = ["--randaugment", 2, 9]
    monkeypatch.setattr(BatchTransform, "train", noisy)
    random.seed(1)
    train(*arguments(folder, tmp_path / "undisturbed", *more))
    random.seed(1)
    train_until(10, *arguments(folder, tmp_path / "run", *more))
    random.seed(2)
    train(*arguments(folder, tmp_path / "run", *more), "--resume")
    assert_same_run(tmp_path / "run", tmp_path / "undisturbed")


def test_a_run_without_augmentation_says_so_keeps_to_it_and_goes_on_only_so(folder, tmp_path, monkeypatch, capsys):
    original, as_in_evaluation = BatchTransform.train, []

    def noted(self, images, draws):
        batch = original(self, images, draws)
        as_in_evaluation.append(torch.equal(batch, self.eval(images)))
        return batch

    monkeypatch.setattr(BatchTransform, "train", noted)
    train(*arguments(folder, tmp_path / "run", "--no-aug", "--epochs", 1))
    assert as_in_evaluation == [True] * 6
    assert "54 to train without augmentation, 6 held out" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="aug was False and is True"):
        train(*arguments(folder, tmp_path / "run", "--epochs", 1), "--resume")
    train("--config", tmp_path / "run" / "args.yaml", "--epochs", 2, "--resume", "--force")
    assert as_in_evaluation == [True] * 12


def test_an_optimiser_that_counts_in_its_groups_goes_on_exactly(folder, tmp_path, train_until):
    more = ["--opt", "lookahead_lamb", "--lr", *("0.001", "0.002", "0.003", "0.004", "0.005")]
    train(*arguments(folder, tmp_path / "undisturbed", *more))
    train_until(10, *arguments(folder, tmp_path / "run", *more))
    train(*arguments(folder, tmp_path / "run", *more), "--resume")
    assert_same_run(tmp_path / "run", tmp_path / "undisturbed")


def test_accumulated_gradients_are_never_cut_in_two(folder, tmp_path, train_until):
    more = ["--grad-accum-steps", 2]
    train(*arguments(folder, tmp_path / "undisturbed", *more))
    assert "after batch 4 of" in str(train_until(3, *arguments(folder, tmp_path / "run", *more)))
    train(*arguments(folder, tmp_path / "run", *more), "--resume")
    assert_same_run(tmp_path / "run", tmp_path / "undisturbed")


def test_minutes_and_rotation(folder, tmp_path, monkeypatch):
    names = []
    original = Checkpoints.save

    def save(self):
        original(self)
        names.append(sorted(path.name for path in self.folder.iterdir()))

    monkeypatch.setattr(Checkpoints, "save", save)
    train(*arguments(folder, tmp_path / "run", "--checkpoint-minutes", 1e-9, "--keep-checkpoints", 3))
    assert names[0] == ["epoch-0001-step-000001"]
    assert names[-1] == ["epoch-0003-step-000005", "epoch-0003-step-000006", "epoch-0004-step-000000"]
    assert all(len(present) == min(3, index + 1) for index, present in enumerate(dict.fromkeys(map(tuple, names))))


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "manifest"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(folder, undisturbed, tmp_path, train_until, capsys, damage):
    out = tmp_path / "run"
    train_until(10, *arguments(folder, out, "--warm-start"))
    first, last = sorted((out / "checkpoints").iterdir())
    file = last / ("manifest.json" if damage == "manifest" else "process-0.pt")
    content = bytearray(file.read_bytes())
    if damage == "remove":
        file.unlink()
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    capsys.readouterr()
    train(*arguments(folder, out, "--warm-start"), "--resume")
    printed = capsys.readouterr()
    assert f"{last} is damaged ({file.name}" in printed.err
    assert "going on after batch 0 of epoch 2" in printed.out
    assert first.name == "epoch-0002-step-000000"
    assert_same_run(out, undisturbed)


def test_without_an_undamaged_checkpoint_nothing_is_overwritten(folder, tmp_path):
    out = tmp_path / "run"
    train(*arguments(folder, out))
    before = (out / "model.safetensors").read_bytes()
    for path in (out / "checkpoints").glob("*/run.pt"):
        path.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"All checkpoints in .* are damaged"):
        train(*arguments(folder, out), "--resume")
    for path in (out / "checkpoints").glob("*/*"):
        path.unlink()
    for path in (out / "checkpoints").iterdir():
        path.rmdir()
    with pytest.raises(ConfigError, match="holds a run without checkpoints"):
        train(*arguments(folder, out), "--resume")
    assert (out / "model.safetensors").read_bytes() == before


def test_a_complete_run_stays_as_it_is(folder, undisturbed, tmp_path):
    before = {path.name: path.read_bytes() for path in undisturbed.glob("m*")}
    train(*arguments(folder, undisturbed, "--warm-start"), "--resume")
    assert {path.name: path.read_bytes() for path in undisturbed.glob("m*")} == before


def test_a_complete_run_is_not_recorded_under_settings_that_trained_nothing(folder, undisturbed):
    before = {path.name: path.read_bytes() for path in undisturbed.iterdir() if path.is_file()}
    for changed in (["--lr", "0.01"], ["--epochs", "2"]):
        with pytest.raises(ConfigError, match=r"has made all epochs of \d, and none is left for other settings \("):
            train(*arguments(folder, undisturbed, "--warm-start"), *changed, "--resume", "--force")
    assert {path.name: path.read_bytes() for path in undisturbed.iterdir() if path.is_file()} == before


def test_other_settings_are_refused_by_name_unless_forced(folder, tmp_path, train_until, capsys):
    out = tmp_path / "run"
    train_until(4, *arguments(folder, out))
    changed = [*arguments(folder, out), "--resume", "--lr", "0.01", "--epochs", "2"]
    with pytest.raises(ConfigError, match=r"epochs was 3 and is 2, lr was \[0.001\] and is \[0.01\]"):
        train(*changed)
    capsys.readouterr()
    train(*changed, "--force", "--keep-checkpoints", "5")
    assert "going on after batch 4 of epoch 1" in capsys.readouterr().out
    lines = (out / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert '"lr": 0.01' in lines[0]
    assert "epochs: 2" in (out / "args.yaml").read_text()
    (warning,) = json.loads((out / "summary.json").read_text())["warnings"]
    assert warning.startswith("from epoch 1 on, other settings: epochs was 3 and is 2, lr was [0.001] and is [0.01]")


def test_another_batch_size_forced_begins_the_epoch_anew(folder, tmp_path, train_until, capsys):
    out = tmp_path / "run"
    train_until(10, *arguments(folder, out, "--warm-start"))
    train(*arguments(folder, out, "--warm-start"), "--batch-size", "6", "--resume", "--force")
    assert "going on after batch 0 of epoch 2" in capsys.readouterr().out
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_second_run_in_the_folder_is_refused(folder, tmp_path):
    out = tmp_path / "run"
    train(*arguments(folder, out))
    with pytest.raises(ConfigError, match="holds a run already: go on with it by --resume"):
        train(*arguments(folder, out))
    with RunFolder(out).locked(), pytest.raises(ConfigError, match="Another process is writing to"):
        train(*arguments(folder, out), "--resume")


def test_a_full_disk_is_noticed_before_the_run(folder, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 2**20})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(ConfigError, match=r"has 1 MiB left, and the run needs .*--keep-checkpoints"):
        train(*arguments(folder, tmp_path / "run"))


def test_a_disk_that_fills_up_leaves_the_last_checkpoint(folder, undisturbed, tmp_path, monkeypatch):
    out = tmp_path / "run"
    original, calls = checkpoint._write_synced, 0

    def full(path, data):
        nonlocal calls
        calls += 1
        if calls > 3 + 1:
            path.write_bytes(bytes(data)[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write_synced", full)
        with pytest.raises(OutputError, match="checkpoints cannot be written to: No space"):
            train(*arguments(folder, out, "--warm-start"))
    train(*arguments(folder, out, "--warm-start"), "--resume")
    assert [path.name for path in (out / "checkpoints").iterdir() if path.name.startswith(".")] == []
    assert_same_run(out, undisturbed)


def test_an_unwritable_folder_is_refused_before_the_run(folder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot be written to .*choose another --output-dir"):
        train(*arguments(folder, tmp_path / "file" / "run"))


@pytest.mark.slow
def test_kill_9_at_random_moments_loses_nothing(folder, tmp_path):
    """Six kills; TIMM_EBL_KILLS says how many, if it should be more."""
    kills = os.environ.get("TIMM_EBL_KILLS", "6")
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    more = ["--warm-start", "--checkpoint-minutes", 1e-4, "--epochs", 8]
    command = [sys.executable, Path(__file__).with_name("killed.py"), kills, undisturbed, killed]
    result = subprocess.run([*map(str, command), *arguments(folder, killed, *more)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    print(result.stdout)
    assert_same_run(killed, undisturbed)
    assert sorted(path.name for path in killed.iterdir()) == sorted(path.name for path in undisturbed.iterdir())
    names = [sorted(path.name for path in (out / "checkpoints").iterdir()) for out in (killed, undisturbed)]
    assert names[0][-1] == names[1][-1]
    assert [find_damage(path) for path in (killed / "checkpoints").iterdir()] == [None, None]
