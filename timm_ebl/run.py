"""The folder of a run: settings, metrics, weights and summary, each file written whole or not at all."""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from timm.models import save_for_hf
from torch import nn

from .config import ConfigError
from .transforms import BatchTransform

__all__ = ["RunFolder", "device_name", "versions", "write_whole"]


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file under a temporary name in its folder, then rename it, so that nobody ever sees half of it.

    Args:
        path: The file.
        write: Writes the content to the path that it is given; the name has the suffix of ``path``.
    """
    descriptor, name = tempfile.mkstemp(prefix=".", suffix=path.suffix, dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a run computes."""
    packages = ("timm-ebl", "torch", "timm", "accelerate", "datasets")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


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
    ``summary.json`` the result and ``curves.png`` its course.

    Attributes:
        path: The folder.
    """

    path: Path

    @classmethod
    def create(cls, path: str | Path | None, default: str) -> RunFolder:
        """Make the folder of a new run.

        Args:
            path: The folder asked for; ``None`` for ``runs/DEFAULT``, with a number behind it if that is taken.
            default: Name of the folder where none is asked for.

        Raises:
            ConfigError: The folder holds a run already, or cannot be written to.
        """
        if path is None:
            path, number = Path("runs", default), 1
            while path.exists():
                number += 1
                path = Path("runs", f"{default}-{number}")
        path = Path(path)
        if (path / "args.yaml").exists():
            raise ConfigError(f"{path} holds a run already: choose another --output-dir, or remove it.")
        try:
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
        except OSError as error:
            raise ConfigError(
                f"Results cannot be written to {path} ({error.strerror}): choose another --output-dir."
            ) from None
        return cls(path)

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Write ``args.yaml``."""
        text = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
        write_whole(self.path / "args.yaml", lambda path: path.write_text(text, encoding="utf-8"))

    def write_metrics(self, epochs: list[dict[str, float]]) -> None:
        """Write ``metrics.jsonl``, a line for each epoch."""
        text = "".join(json.dumps(epoch) + "\n" for epoch in epochs)
        write_whole(self.path / "metrics.jsonl", lambda path: path.write_text(text, encoding="utf-8"))

    def write_model(self, model: nn.Module, transform: BatchTransform) -> None:
        """Write ``model.safetensors`` and ``config.json`` in timm's format."""
        data = {"mean": transform.mean, "std": transform.std, "input_size": (model.in_chans, *model.img_size)}
        with tempfile.TemporaryDirectory() as folder:
            save_for_hf(model, folder, safe_serialization=True, data_config=data)
            for name in ("model.safetensors", "config.json"):
                write_whole(self.path / name, lambda path, name=name: shutil.copyfile(Path(folder, name), path))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``."""
        text = json.dumps(summary, indent=2) + "\n"
        write_whole(self.path / "summary.json", lambda path: path.write_text(text, encoding="utf-8"))
