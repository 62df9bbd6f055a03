"""The folder of a run: settings, metrics, weights and summary, each file written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import Tensor, nn

from .._version import __version__
from ..errors import ConfigError
from ..models.weights import CONFIG, WEIGHTS, read_config
from .files import LEFTOVER, temporary_folder, write_whole, writing
from .yaml12 import dump_yaml

if TYPE_CHECKING:
    from ..data.dataset import ImageDataset
    from ..data.transforms import BatchTransform
    from .progress import Progress

__all__ = ["PREDICTIONS", "REPLACED", "RunFolder", "device_name", "list_checkpoints", "place_of", "versions"]

PREDICTIONS = "predictions.safetensors"
"""The selected model's classes for the test split (``predicted``), and the right ones (``labels``)."""

REPLACED = "-replaced"
"""Ends the name of a checkpoint whose own name another one is about to take."""

_WRITTEN = ("metrics.jsonl", "model.safetensors", "config.json", "summary.json", "curves.png", PREDICTIONS)
_CHECKPOINT = re.compile("epoch-([0-9]+)-step-([0-9]+)")


def list_checkpoints(folder: Path) -> list[str]:
    """Names of the checkpoints in a folder in the order of their epochs and steps; whatever else is there is not."""
    names = [path.name for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
    return sorted(filter(_CHECKPOINT.fullmatch, names), key=place_of)


def place_of(name: str) -> tuple[int, int]:
    """Epoch and step of a checkpoint by its name."""
    epoch, step = _CHECKPOINT.fullmatch(name).groups()
    return int(epoch), int(step)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a run computes."""
    found = {"python": platform.python_version(), "timm-ebl": __version__}
    for name in ("torch", "timm", "accelerate", "datasets"):
        with suppress(PackageNotFoundError):  # local data are read without ``datasets``
            found[name] = version(name)
    return found


def device_name(device: torch.device) -> str:
    """What computes, in words: the name of a GPU, or the threads of a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{platform.machine()} {device.type.upper()}, {threads} thread{'s' if threads > 1 else ''}"


@dataclass(frozen=True)
class RunFolder:
    """Where a run leaves its results.

    ``args.yaml`` are the resolved settings, ``metrics.jsonl`` a line for each epoch, ``model.safetensors`` and
    ``config.json`` the best epoch's model (``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads it),
    ``predictions.safetensors`` what it takes the test images for, ``summary.json`` the result, ``curves.png`` its
    course and ``checkpoints`` what the run needs to go on.

    Attributes:
        path: The folder.
    """

    path: Path

    @classmethod
    def create(cls, path: str | Path | None, default: str, resume: bool = False) -> RunFolder:
        """Make the folder of a new run, or find that of an old one.

        Args:
            path: The folder asked for; ``None`` for ``runs/DEFAULT``, with a number behind it if that is taken.
            default: Name of the folder where none is asked for.
            resume: Whether the folder may hold a run.

        Raises:
            ConfigError: The folder holds a run already, or one without checkpoints that is to be resumed, or other
                files that the run would replace, or cannot be written to.
        """
        if path is None:
            path, number = Path("runs", default), 1
            while path.exists():
                number += 1
                path = Path("runs", f"{default}-{number}")
        path = Path(path)
        try:
            cls(path)._refuse_foreign(resume)
            (path / "checkpoints").mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
        except OSError as error:
            raise ConfigError(
                f"Results cannot be written to {path} ({error.strerror}): choose another --output-dir."
            ) from None
        return cls(path)

    def _refuse_foreign(self, resume: bool) -> None:
        there = [name for name in _WRITTEN if (self.path / name).exists()]
        if self.checkpoints.is_dir():
            replaced = any(self.checkpoints.glob(f"{LEFTOVER}*{REPLACED}"))
            there += ["checkpoints"] * (replaced or bool(list_checkpoints(self.checkpoints)))
        if not (self.path / "args.yaml").exists():
            if there:
                raise ConfigError(
                    f"{self.path} holds {there[0]} of something else, which a run would replace: choose another "
                    "--output-dir."
                )
        elif not resume:
            raise ConfigError(
                f"{self.path} holds a run already: go on with it by --resume, choose another --output-dir, or remove "
                "it."
            )
        elif "checkpoints" not in there and not {"metrics.jsonl", "model.safetensors"}.isdisjoint(there):
            raise ConfigError(
                f"{self.path} holds a run without checkpoints: choose another --output-dir, or remove it."
            )

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    def require_space(self, size: int) -> None:
        """Refuse a run whose results will not fit.

        Args:
            size: Bytes that the run will write.

        Raises:
            ConfigError: There is less space left.
        """
        free = shutil.disk_usage(self.path).free
        if free < size:
            raise ConfigError(
                f"{self.path} has {free / 2**20:,.0f} MiB left, and the run needs {size / 2**20:,.0f}: make room, "
                "choose another --output-dir, or keep fewer checkpoints by --keep-checkpoints."
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing here; the lock goes with the process, however it ends.

        Raises:
            ConfigError: Another process has it.
        """
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise ConfigError(
                f"Another process is writing to {self.path}: wait for it, or choose another --output-dir."
            ) from None
        except (OSError, NotImplementedError):
            pass  # a file system without locks
        try:
            for leftover in self.path.glob(f"{LEFTOVER}*"):
                shutil.rmtree(leftover) if leftover.is_dir() and not leftover.is_symlink() else leftover.unlink()
            yield
        finally:
            lock.release()

    def reopen(self) -> None:
        """Take back the result of a run that is to be trained on: what it says is no longer of these files."""
        for name in ("summary.json", PREDICTIONS):
            (self.path / name).unlink(missing_ok=True)

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Write ``args.yaml``."""
        text = dump_yaml(dict(settings))
        write_whole(self.path / "args.yaml", lambda path: path.write_text(text, encoding="utf-8"))

    def write_results(
        self, progress: Progress, model: nn.Module, transform: BatchTransform, train: ImageDataset, better: bool
    ) -> None:
        """Write the metrics and the best weights of what is done so far.

        Args:
            progress: How far the run is.
            model: The model that the weights belong to; it is left as it is.
            transform: Its normalisation.
            train: The training split, whose classes are its outputs.
            better: Whether the best weights are others than those in the folder.
        """
        if not progress.epochs:
            return
        self.write_metrics(progress.epochs)
        if better:
            best = deepcopy(model)
            best.load_state_dict(progress.weights)
            self.write_model(best, transform, train.classes, train.images.shape[1:])

    def write_metrics(self, epochs: list[dict[str, float]]) -> None:
        """Write ``metrics.jsonl``, a line for each epoch."""
        text = "".join(json.dumps(epoch) + "\n" for epoch in epochs)
        write_whole(self.path / "metrics.jsonl", lambda path: path.write_text(text, encoding="utf-8"))

    def write_model(
        self,
        model: nn.Module,
        transform: BatchTransform,
        classes: Sequence[str],
        input_size: Sequence[int] | None = None,
    ) -> None:
        """Write ``model.safetensors`` and, with its checksum and the names of its outputs, ``config.json``.

        Args:
            model: The model; timm asks it for `in_chans` and `num_features`, which it is given where it has none.
            transform: Its normalisation.
            classes: Names of its outputs.
            input_size: Channels, height and width of its input; by default what the model says.
        """
        size = tuple(input_size or (model.in_chans, *model.img_size))
        data = {"mean": transform.mean, "std": transform.std, "input_size": size}
        for name, value in {"in_chans": size[0], "num_features": model.num_classes}.items():
            setattr(model, name, getattr(model, name, value))
        with writing(self.path), temporary_folder(self.path) as folder:
            save_for_hf(
                model, folder, safe_serialization=True, data_config=data, model_config={"label_names": list(classes)}
            )
            config = read_config(folder / CONFIG)
            config["pretrained_cfg"].pop("tag", None)  # that of a checkpoint which the model's name has already
            config["sha256"] = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
            (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            for name in (WEIGHTS, CONFIG):
                write_whole(self.path / name, lambda path, name=name: shutil.copyfile(folder / name, path))

    def write_predictions(self, predicted: Tensor, labels: Tensor) -> None:
        """Write ``predictions.safetensors``: classes ``(N,)`` that were found and the right ones."""
        classes = {"predicted": predicted.to(torch.int32), "labels": labels.to(torch.int32)}
        write_whole(self.path / PREDICTIONS, lambda path: save_file(classes, path))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``."""
        text = json.dumps(summary, indent=2) + "\n"
        write_whole(self.path / "summary.json", lambda path: path.write_text(text, encoding="utf-8"))
