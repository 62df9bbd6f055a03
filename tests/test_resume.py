"""A run that is taken up under other settings, or by other versions, is as consistent as one that never stopped."""

import json
import math
import types

import pytest
import torch
from accelerate import Accelerator, skip_first_batches
from noise_runs import Run
from runs import arguments, assert_same_run, train, train_ebl

from timm_ebl.rules.contrastive import ContrastiveRule
from timm_ebl.training import checkpoint, engine
from timm_ebl.training.checkpoint import checkpoint_bytes
from timm_ebl.training.progress import Progress
from timm_ebl.training.run_folder import PREDICTIONS, RunFolder, list_checkpoints


def test_the_rest_of_an_epoch_has_its_order_though_accelerate_forgets_it(folder, tmp_path, monkeypatch, train_until):
    """Before 1.15, the loader of what is left of an epoch begins with the number 0."""

    def forgetful(loader, count):
        rest = skip_first_batches(loader, count)
        rest.iteration = 0
        return rest

    monkeypatch.setattr(engine, "skip_first_batches", forgetful)
    train(*arguments(folder, tmp_path / "undisturbed"))
    train_until(10, *arguments(folder, tmp_path / "run"))
    train(*arguments(folder, tmp_path / "run"), "--resume")
    assert_same_run(tmp_path / "run", tmp_path / "undisturbed")


# ------------------------------------------------------------------------------------------------------ other settings


def test_a_checkpoint_of_an_epoch_that_began_anew_is_the_newest(tmp_path):
    run = Run(tmp_path, keep=3)
    for count in (2, 3):
        run.step(count)
        run.checkpoints.save()
    again = Run(tmp_path, keep=3, batch_size=64)
    assert again.checkpoints.resume(force=True)
    assert again.progress.step == 0
    again.step(3)
    again.checkpoints.save()
    assert list_checkpoints(tmp_path) == ["epoch-0001-step-000002", "epoch-0001-step-000003"]
    last = Run(tmp_path, keep=3, batch_size=64)
    assert last.checkpoints.resume(force=False)
    assert last.progress.step == 3


@pytest.mark.parametrize("change", [{"seed": 5}, {"batch_size": 64}, {"grad_accum_steps": 2}])
def test_with_other_batches_the_epoch_begins_anew(tmp_path, change):
    run = Run(tmp_path)
    run.step(2)
    run.checkpoints.save()
    again = Run(tmp_path, **change)
    assert again.checkpoints.resume(force=True)
    assert again.progress.step == 0


@pytest.mark.parametrize("moment", ["between", "after"])
def test_a_checkpoint_is_there_at_every_moment_in_which_it_is_replaced(tmp_path, monkeypatch, moment):
    (tmp_path / "args.yaml").touch()
    (tmp_path / "metrics.jsonl").touch()
    folder = tmp_path / "checkpoints"
    run = Run(folder, keep=1)
    run.step(2)
    run.checkpoints.save()
    again = Run(folder, keep=1, lr=(0.5,))
    assert again.checkpoints.resume(force=True)

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if moment == "after":
            patch.setattr(checkpoint, "_sync_folder", killed)
        else:
            original = type(folder).rename
            patch.setattr(
                type(folder), "rename", lambda a, b: killed() if b.name.startswith("epoch") else original(a, b)
            )
        with pytest.raises(KeyboardInterrupt):
            again.checkpoints.save()
    assert RunFolder.create(tmp_path, "", resume=True).checkpoints == folder
    found = Run(folder, keep=1, lr=(0.5,))
    assert found.checkpoints.resume(force=moment == "between")
    assert found.progress.step == 2
    assert [path.name for path in folder.iterdir()] == ["epoch-0001-step-000002"]


def test_an_epoch_without_a_held_out_part_is_not_the_best():
    progress = Progress()
    for error, best in ((None, 1), (30.0, 2), (20.0, 3), (25.0, 3), (None, 5)):
        progress.finish_epoch({"held_out_error": error}, {})
        assert progress.best["epoch"] == best


def test_the_result_of_a_run_that_is_trained_on_is_taken_back(folder, tmp_path, train_until):
    out = tmp_path / "run"
    train(*arguments(folder, out, "--epochs", 1))
    longer = [*arguments(folder, out, "--epochs", 2), "--resume", "--force"]
    train_until(3, *longer)
    assert not (out / "summary.json").exists()
    assert not (out / PREDICTIONS).exists()
    train(*longer)
    assert json.loads((out / "summary.json").read_text())["epochs"] == 2


def test_a_run_needs_room_for_the_checkpoints_that_it_lacks(folder, tmp_path, monkeypatch, train_until):
    out, sizes = tmp_path / "run", []
    monkeypatch.setattr(train_ebl.RunFolder, "require_space", lambda self, size: sizes.append(size))
    monkeypatch.setattr(train_ebl, "checkpoint_bytes", lambda model: sizes.append(checkpoint_bytes(model)) or 1)
    train_until(3, *arguments(folder, out))
    train_until(8, *arguments(folder, out), "--resume")
    train(*arguments(folder, out), "--resume")
    assert sizes[1::2] == [3, 2, 1]


# -------------------------------------------------------------------------------------------------- accumulated batches


def test_several_processes_agree_after_every_ten_steps_whatever_evaluations_come_between(tmp_path):
    run, looks = Run(tmp_path), []
    run.checkpoints.accelerator = shared = types.SimpleNamespace(
        num_processes=2, device="cpu", sync_gradients=True, gather=lambda flags: looks.append(True) or flags
    )
    for _ in range(5):  # an evaluation
        run.checkpoints.between_batches()
    for batch in range(1, 41):
        shared.sync_gradients = batch % 2 == 0
        run.checkpoints.between_batches()
    assert len(looks) == 2


@pytest.mark.parametrize("bad", [1, 2])
def test_a_step_that_is_left_out_is_left_out_of_the_metrics_with_all_its_batches(folder, tmp_path, monkeypatch, bad):
    original, calls = ContrastiveRule.__call__, 0

    def broken(self, model, x, *args, **kwargs):
        nonlocal calls
        calls += 1
        result = original(self, model, x, *args, **kwargs)
        if calls != bad:
            return result
        return result._replace(loss=result.loss * torch.nan, output=result.output * torch.nan)

    monkeypatch.setattr(ContrastiveRule, "__call__", broken)
    more = ["--grad-accum-steps", 2, "--skip-bad-batches", "--warm-start", "--epochs", 1]
    train(*arguments(folder, tmp_path / "run", *more))
    (epoch,) = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert math.isfinite(epoch["train_cost"])
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["skipped_batches"] == 2


def test_a_batch_that_a_gradient_scaler_leaves_out_is_counted(folder, tmp_path, monkeypatch):
    steps = iter(range(1, 99))
    monkeypatch.setattr(Accelerator, "optimizer_step_was_skipped", property(lambda self: next(steps) == 2))
    train(*arguments(folder, tmp_path / "run", "--skip-bad-batches", "--epochs", 1))
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["skipped_batches"] == 1
