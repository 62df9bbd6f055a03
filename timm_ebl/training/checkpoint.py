"""Checkpoints of a run: whole or not there, verified before they are used, and rotated.

A checkpoint is a folder ``checkpoints/epoch-EEEE-step-SSSSSS``: ``run.pt`` (weights, their average, optimiser, gradient
scaler, progress), ``process-N.pt`` (random numbers, running sums and warm-start state of each process) and
``manifest.json`` (the number of this format, the settings, and the SHA-256 of the other files and of itself). It is
written under a temporary name and renamed. Whatever else lies in ``checkpoints``, or cannot be read, is passed over and
never removed.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.optim import Optimizer

from ..errors import ConfigError, Interrupted
from .files import LEFTOVER, writing
from .health import require_finite
from .launch import on_main
from .manifest import MANIFEST, find_damage, read_settings, render_manifest
from .random_state import random_state, set_random_state
from .run_folder import REPLACED, list_checkpoints, place_of
from .signals import StopSignals, stop_message

if TYPE_CHECKING:
    from .average import WeightAverage
    from .progress import Progress

__all__ = ["Checkpoints", "checkpoint_bytes"]

_MOMENTS = ("opt", "momentum", "opt_betas", "freeze")  # settings that decide what the state of an optimiser consists of
_RATES = ("lr", "initial_lr", "weight_decay")  # what the other settings decide in it
_ORDER = ("processes", "batch_size", "grad_accum_steps", "seed", "data")  # what decides which images a batch has
_AGREE_EVERY = 10  # steps between two looks at the signals of the other processes


class Checkpoints:
    """Saves a run and takes it up again.

    Args:
        folder: Folder of the checkpoints; all processes must see the same.
        accelerator: Knows the processes.
        model: The model, not wrapped.
        optimizer: The prepared optimiser.
        progress: How far the run is.
        signals: Whether it is to stop.
        settings: What decides the run's result. A run is not taken up again under other settings.
        keep: Checkpoints to keep.
        minutes: Time after which `between_batches` saves.
        average: The average of the weights, if there is one; where a checkpoint has none it begins anew.
    """

    def __init__(
        self,
        folder: Path,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: Optimizer,
        progress: Progress,
        signals: StopSignals,
        settings: Mapping[str, Any],
        keep: int = 2,
        minutes: float = 10.0,
        average: WeightAverage | None = None,
    ) -> None:
        self.folder, self.accelerator = folder, accelerator
        self.model, self.average, self.optimizer, self.progress = model, average, optimizer, progress
        self.signals, self.settings, self.keep, self.minutes = signals, settings, keep, minutes
        self.latest: str | None = None
        self.known: list[str] = []
        self.saved = time.monotonic()
        self.calls = 0

    def save(self) -> None:
        """Save the run as it is, unless that is done already, and drop the oldest checkpoint over the number to keep.

        Raises:
            Diverged: The weights are not finite; nothing is saved.
            OutputError: The checkpoint cannot be written; the earlier ones are untouched.
        """
        require_finite(self.model)
        name = f"epoch-{self.progress.epoch:04d}-step-{self.progress.step:06d}"
        if name == self.latest:
            return
        main, rank = self.accelerator.is_main_process, self.accelerator.process_index
        temporary = self.folder / f"{LEFTOVER}{name}"
        with writing(self.folder):
            if main:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            mine = {"random": random_state(self.accelerator.device), "progress": self.progress.local()}
            files = {f"process-{rank}.pt": _write(temporary / f"process-{rank}.pt", mine)}
            if main:
                files["run.pt"] = _write(temporary / "run.pt", self._shared())
            every = dict(gather_object(list(files.items())))
            if main:
                _write_synced(temporary / MANIFEST, render_manifest(self.settings, every))
                self._place(temporary, name)
        self.accelerator.wait_for_everyone()
        self.latest, self.saved = name, time.monotonic()

    def between_batches(self) -> None:
        """Save if it is time to, or if a signal came.

        Processes agree on it, so that all save after the same step of the optimiser: a single process at once, several
        every ten steps.

        Raises:
            Interrupted: A signal came.
        """
        if not self.accelerator.sync_gradients:
            return
        self.calls += 1
        stop, due = self.signals.received or 0, time.monotonic() - self.saved > 60 * self.minutes
        if self.accelerator.num_processes > 1:
            if self.calls % _AGREE_EVERY:
                return
            flags = torch.tensor([float(stop), float(due)], device=self.accelerator.device)
            stop, due = self.accelerator.gather(flags[None]).amax(0).int().tolist()
        if stop or due:
            self.save()
        if stop:
            raise Interrupted(stop_message(stop, self.progress, self.folder.parent), stop)

    def resume(self, force: bool) -> bool:
        """Take the run up where the newest undamaged checkpoint left it.

        Args:
            force: Accept other settings than those of the run. With other processes, images, batches or another seed
                the epoch under way begins anew.

        Returns:
            Whether there was a checkpoint.

        Raises:
            ConfigError: All checkpoints are damaged, or the settings differ; or, even by force, the model does or no
                epoch is left for the new settings.
        """
        name = on_main(self.accelerator, lambda: self._choose(force))
        if name is None:
            return False
        folder = self.folder / name
        before = read_settings(folder)
        shared = torch.load(folder / "run.pt", map_location="cpu", weights_only=True)
        try:
            self.model.load_state_dict(shared["model"])
        except RuntimeError as error:
            reason = textwrap.shorten(str(error), 200)
            raise ConfigError(f"{folder} is of another model, which --force does not change ({reason}).") from None
        if self.average and shared.get("average"):
            self.average.load_state_dict(shared["average"])
        elif self.average:
            self.average.set(self.model)
        if all(before.get(key, self.settings[key]) == self.settings[key] for key in _MOMENTS):
            self._restore_optimizer(shared["optimizer"])
        else:
            self.accelerator.print("warning: other settings of the optimiser, which begins anew", file=sys.stderr)
        if self.accelerator.scaler is not None and shared["scaler"]:
            self.accelerator.scaler.load_state_dict(shared["scaler"])
        local = None
        if all(before.get(key) == self.settings.get(key) for key in _ORDER):
            file = folder / f"process-{self.accelerator.process_index}.pt"
            mine = torch.load(file, map_location="cpu", weights_only=True)
            set_random_state(mine["random"], self.accelerator.device)
            local = mine["progress"]
        self.progress.restore(shared["progress"], local, self.accelerator.device)
        if changes := _changes(before, self.settings):
            if self.progress.epoch > self.settings["epochs"]:
                done = f"The run has made all epochs of {self.settings['epochs']}, and none is left for other settings"
                raise ConfigError(f"{done} ({changes}): ask for more --epochs, or another --output-dir.")
            self.progress.warnings.append(f"from epoch {self.progress.epoch} on, other settings: {changes}")
        self.latest = name if before == self.settings else None
        return True

    def _shared(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "model": self.model.state_dict(),
            "average": self.average and self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "progress": self.progress.shared(),
        }

    def _restore_optimizer(self, state: dict[str, Any]) -> None:
        """Restore the whole state, a part of which some optimisers keep in their groups; rates are the settings'."""
        groups = zip(state["param_groups"], self.optimizer.param_groups, strict=True)
        groups = [{**before, **{key: now[key] for key in _RATES if key in now}} for before, now in groups]
        self.optimizer.load_state_dict({**state, "param_groups": groups})

    def _place(self, temporary: Path, name: str) -> None:
        """Give a checkpoint its name; drop those of later batches, and the oldest over the number to keep.

        There are later ones where an epoch began anew. What this run cannot use stays.
        """
        target, replaced = self.folder / name, self.folder / f"{LEFTOVER}{name}{REPLACED}"
        if name in self.known:
            self.known.remove(name)
            target.rename(replaced)
        elif os.path.lexists(target):
            target.rename(f"{target}.unused-{time.time_ns()}")
        temporary.rename(target)
        for later in [other for other in self.known if place_of(other) > place_of(name)]:
            self._drop(later)
        _sync_folder(self.folder)
        shutil.rmtree(replaced, ignore_errors=True)
        self.known.append(name)
        for old in self.known[: -self.keep]:
            self._drop(old)

    def _drop(self, name: str) -> None:
        """Remove a checkpoint under a temporary name, so that nobody ever sees half of it."""
        self.known.remove(name)
        temporary = self.folder / f"{LEFTOVER}{name}-old"
        with suppress(OSError):
            (self.folder / name).rename(temporary)
            shutil.rmtree(temporary)

    def _choose(self, force: bool) -> str | None:
        """The newest undamaged checkpoint."""
        for path in self.folder.glob(f"{LEFTOVER}*{REPLACED}"):
            if not (whole := self.folder / path.name.removeprefix(LEFTOVER).removesuffix(REPLACED)).exists():
                path.rename(whole)
        names = list_checkpoints(self.folder)
        for path in sorted(self.folder.iterdir()):
            if path.name.startswith(LEFTOVER):
                shutil.rmtree(path, ignore_errors=True)
            elif path.name not in names and not path.name.startswith("."):
                print(f"warning: {path} is no checkpoint and is passed over", file=sys.stderr)
        for name in names:
            if problem := find_damage(self.folder / name):
                print(f"warning: the checkpoint {self.folder / name} is damaged ({problem})", file=sys.stderr)
            else:
                self.known.append(name)
        if not names:
            return None
        if not self.known:
            raise ConfigError(f"All checkpoints in {self.folder} are damaged: start again with another --output-dir.")
        settings = read_settings(self.folder / self.known[-1])
        if (changes := _changes(settings, self.settings)) and not force:
            raise ConfigError(f"The run has other settings: {changes}. Give it those, or go on with these by --force.")
        return self.known[-1]


def checkpoint_bytes(model: nn.Module) -> int:
    """Size of a checkpoint at most, about: the weights, their average, the best and two moments, and a megabyte."""
    return 5 * sum(parameter.nbytes for parameter in model.parameters()) + 2**20


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Which settings are others than before, in words."""
    changed = [key for key in now if key in before and before[key] != now[key]]
    return ", ".join(f"{key} was {before[key]!r} and is {now[key]!r}" for key in changed)


def _write(path: Path, content: Any) -> str:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return _write_synced(path, buffer.getbuffer())


def _write_synced(path: Path, data: bytes | memoryview) -> str:
    """Write a file through to the disk; returns the SHA-256 of what was meant to be written."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(data).hexdigest()


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
