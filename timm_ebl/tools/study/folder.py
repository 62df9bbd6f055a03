"""The folder of a study: the runs, what is recorded of them, and which of them somebody is at work on."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...arguments import Choice
from ...errors import CheckpointError, ConfigError
from ...training.config import read_recipe, resolve
from ...training.files import write_whole
from ...training.options import flag_of
from ...training.records import read_summary
from ...training.yaml12 import dump_yaml

if TYPE_CHECKING:
    from .grid import Cell

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["Outcome", "Status", "StudyFolder"]


class Status(Choice):
    """How far a cell is."""

    COMPLETED = "completed"
    DIVERGED = "diverged"
    FAILED = "failed"
    UNFINISHED = "unfinished"


@dataclass(frozen=True)
class Outcome:
    """What is known of a cell.

    Attributes:
        status: How far it is.
        reason: Why it diverged or failed.
        summary: The run's summary; empty without one.
    """

    status: Status
    reason: str | None
    summary: dict[str, Any]


@dataclass(frozen=True)
class StudyFolder:
    """Where a study leaves its results.

    ``runs/CELL`` are ordinary folders of runs. ``cells`` holds the recipe, the output and, of one that failed, the
    reason of each; ``table.*`` is the table.

    Attributes:
        path: The folder.
    """

    path: Path

    def create(self) -> None:
        """Make the folders.

        Raises:
            ConfigError: They cannot be made.
        """
        try:
            for name in ("runs", "cells"):
                (self.path / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be made ({error.strerror}): choose another --output-dir.") from None

    def run(self, cell: Cell) -> Path:
        """Folder of a cell's run."""
        return self.path / "runs" / cell.name

    def recipe(self, cell: Cell) -> Path:
        """File of a cell's settings."""
        return self.path / "cells" / f"{cell.name}.yaml"

    def log(self, cell: Cell) -> Path:
        """File of what a cell's run prints."""
        return self.path / "cells" / f"{cell.name}.log"

    def failure(self, cell: Cell) -> Path:
        """File that says why a cell's run failed."""
        return self.path / "cells" / f"{cell.name}.failed.json"

    def write_recipe(self, cell: Cell) -> Path:
        """Write a cell's settings, as ``--config`` takes them."""
        text = dump_yaml(cell.config.to_dict())
        write_whole(self.recipe(cell), lambda path: path.write_text(text, encoding="utf-8"))
        return self.recipe(cell)

    def write_failure(self, cell: Cell, reason: str) -> None:
        """Record that a cell's run failed; paths in the reason are from the study's folder on, wherever that is."""
        text = json.dumps({"reason": reason.replace(f"{self.path}{os.sep}", "")}, indent=2) + "\n"
        write_whole(self.failure(cell), lambda path: path.write_text(text, encoding="utf-8"))

    def outcome(self, cell: Cell, aside: Collection[str] = ()) -> Outcome:
        """How far a cell is, from the files alone; that it failed under other settings says nothing.

        Args:
            cell: The cell.
            aside: Settings that do not matter.

        Raises:
            CheckpointError: A file cannot be read.
        """
        if (self.run(cell) / "summary.json").is_file():
            summary = read_summary(self.run(cell) / "summary.json")
            return Outcome(Status(summary.get("status", "completed")), summary.get("reason"), summary)
        if self.failure(cell).is_file() and not _other_setting(self.recipe(cell), cell, aside):
            try:
                reason = json.loads(self.failure(cell).read_text(encoding="utf-8"))["reason"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise CheckpointError(f"{self.failure(cell)} cannot be read ({error}).") from None
            return Outcome(Status.FAILED, reason, {})
        return Outcome(Status.UNFINISHED, None, {})

    def check(self, cells: Sequence[Cell], aside: Collection[str] = ()) -> None:
        """Refuse a folder in which a cell's run was made under other settings.

        Args:
            cells: The cells.
            aside: Settings that do not matter.

        Raises:
            ConfigError: It is so.
        """
        for cell in cells:
            if other := _other_setting(self.run(cell) / "args.yaml", cell, aside):
                name, there, asked = other
                raise ConfigError(
                    f"{self.run(cell)} holds a run with {name} {there!r}, and {asked!r} is asked for: ask for that, "
                    "choose another --output-dir, or remove that run."
                )

    def claim(self, cell: Cell) -> int | None:
        """An open file that says that somebody is at work on a cell; ``None`` if somebody else is.

        A process that inherits the file goes on claiming the cell, also when the study itself is killed.

        Raises:
            ConfigError: This system has no such locks.
        """
        if fcntl is None:
            raise ConfigError("A study needs a system with flock, such as Linux or macOS.")
        number = os.open(self.path / "cells" / f"{cell.name}.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(number)
            return None
        return number


def _other_setting(path: Path, cell: Cell, aside: Collection[str] = ()) -> tuple[str, Any, Any] | None:
    """The option of the first setting in a file that is not the cell's, its value there and the cell's."""
    if not path.is_file():
        return None
    there, asked = resolve(read_recipe(path)).decisive(), cell.config.decisive()
    other = next((key for key in asked if key not in aside and asked[key] != there[key]), None)
    return other and (flag_of(other), there[other], asked[other])
