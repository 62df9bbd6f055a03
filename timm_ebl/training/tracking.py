"""Experiment trackers of accelerate, chosen by name."""

from __future__ import annotations

import importlib.util
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import filter_trackers

from ..errors import ConfigError

__all__ = ["TRACKERS", "check_trackers", "start_trackers"]

TRACKERS = ("tensorboard", "wandb", "all")
"""Names of trackers; the last one is every one that is installed."""


def check_trackers(names: Sequence[str] | None) -> None:
    """Refuse trackers whose package is not installed.

    Args:
        names: Of ``tensorboard``, ``wandb`` and ``all``, which takes every tracker that is installed.

    Raises:
        ConfigError: A package is missing; the message gives the extra that brings it.
    """
    for name in set(names or ()) - {"all"}:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f'--log-with {name} needs {name}: pip install "timm-ebl[{name}]".')
    if "all" in (names or ()) and not filter_trackers("all", "."):
        raise ConfigError('--log-with all finds no tracker: pip install "timm-ebl[tensorboard]" or "timm-ebl[wandb]".')


def start_trackers(
    accelerator: Accelerator, names: Sequence[str] | None, folder: Path, settings: Mapping[str, Any]
) -> None:
    """Start the trackers; ``accelerator.log`` then reaches all of them.

    Args:
        accelerator: Holds the trackers.
        names: As for `check_trackers`.
        folder: Folder of the run; TensorBoard writes to ``timm_ebl`` in it.
        settings: Settings of the run.

    Raises:
        ConfigError: A tracker cannot be started.
    """
    if not names:
        return
    accelerator.project_configuration.set_directories(str(folder))
    accelerator.log_with = filter_trackers(list(names), str(folder))
    plain = {key: value if isinstance(value, (int, float, str)) else str(value) for key, value in settings.items()}
    options = {"wandb": {"name": folder.name, "dir": str(folder)}}
    try:
        accelerator.init_trackers("timm_ebl", plain, options)
    except Exception as error:  # trackers have no common type of error
        reason = textwrap.shorten(str(error), 200)
        raise ConfigError(f"--log-with {' '.join(names)}: the tracker cannot be started ({reason}).") from error
