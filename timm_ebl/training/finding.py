"""Where a checkpoint is: in a folder, in the package, or on the Hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import snapshot_download

from ..data.requests import explain, fetch, is_intact, retry
from ..errors import CheckpointError, ConfigError, WeightsError
from ..models.weights import CONFIG, SHIPPED, WEIGHTS, list_shipped, read_config
from .records import CARD

__all__ = ["RECIPES", "RECORDS", "Found", "config_of", "find_checkpoint"]

RECORDS = ("args.yaml", "metrics.jsonl", "summary.json", "curves.png")
RECIPES = Path(__file__).parents[2] / "hub_configs"
"""Where a clone of the repository keeps the records of the shipped checkpoints."""

_FOLDER, _HUB = "local-dir:", "hf-hub:"


class Found(NamedTuple):
    """The folders of a checkpoint.

    Attributes:
        name: How it is called in messages.
        weights: Folder of ``model.safetensors`` and ``config.json``.
        records: Folder of its records; ``None`` if they are not here.
        is_ours: Whether it comes from this machine, and not from the Hub.
    """

    name: str
    weights: Path
    records: Path | None
    is_ours: bool = True


def find_checkpoint(source: str | Path) -> Found:
    """Find a checkpoint: a run's folder, a folder of `hub_configs/`, a shipped model, or an id on the Hub.

    Timm's ``local-dir:`` and ``hf-hub:`` may stand before a folder and an id.

    Raises:
        CheckpointError: There is none.
    """
    text = str(source).removeprefix(_FOLDER)
    folder = Path(os.path.expanduser(text))
    if folder.is_dir():
        shipped = SHIPPED / folder.resolve().name
        weights = folder if (folder / WEIGHTS).is_file() or not shipped.is_dir() else shipped
        for name in (WEIGHTS, CONFIG):
            if not (weights / name).is_file():
                raise CheckpointError(f"{folder} is no checkpoint: it has no {name}.")
        return Found(folder.resolve().name, weights, folder)
    tagged = [name for name in list_shipped() if text in (name, name.partition(".")[0])]
    if tagged:
        name = tagged[0]
        return Found(name, SHIPPED / name, RECIPES / name if (RECIPES / name).is_dir() else None)
    text = text.removeprefix(_HUB)
    if text.count("/") == 1 and not text.startswith((".", "/", "~")) and not str(source).startswith(_FOLDER):
        folder = _download(text)
        return Found(text, folder, folder, is_ours=False)
    known = ", ".join(list_shipped())
    raise CheckpointError(
        f"{text} is neither a folder nor an id owner/name on the Hub nor one of the shipped models: {known}."
    )


def config_of(name: str) -> dict[str, Any]:
    """The ``config.json`` of the checkpoint that ``--pretrained`` names.

    Raises:
        ConfigError: There is no such checkpoint, or its configuration cannot be read.
    """
    try:
        return read_config(find_checkpoint(name).weights / CONFIG)
    except (CheckpointError, WeightsError) as error:
        raise ConfigError(f"--pretrained {name}: {error}") from None


def _download(repo_id: str) -> Path:
    name, _, revision = repo_id.partition("@")
    files = [WEIGHTS, CONFIG, CARD, *RECORDS]
    try:
        folder = Path(retry(lambda: snapshot_download(name, revision=revision or None, allow_patterns=files)))
        for file in files:
            if (folder / file).is_file() and not is_intact(folder / file):
                fetch(name, file, revision or None)
    except Exception as error:  # the client's errors and those of the HTTP library below have no common type
        raise CheckpointError(f"{repo_id} cannot be loaded: {explain(error, name)}.") from error
    if not (folder / WEIGHTS).is_file() or not (folder / CONFIG).is_file():
        raise CheckpointError(f"{repo_id} is no checkpoint: it has no {WEIGHTS} or no {CONFIG}.")
    return folder
