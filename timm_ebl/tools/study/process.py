"""The process of a cell: `train_ebl.py` with the cell's settings, and what its end says of the cell."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import ConfigError
from .folder import Status, StudyFolder

if TYPE_CHECKING:
    from .grid import Cell

__all__ = ["SCRIPT", "finish", "start", "take_up"]

SCRIPT = Path(__file__).parents[3] / "train_ebl.py"
"""The script that trains, which is in a clone and not in an installed package."""

_ASKED_TO_STOP = ("SIGKILL", "SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
"""Signals after which a run goes on from its checkpoint; others are faults of the program."""

_POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def start(folder: StudyFolder, cell: Cell, claim: int | None = None) -> subprocess.Popen:
    """Start a cell's run, or take it up again, in a session of its own, so that a terminal's Ctrl-C comes once.

    Args:
        folder: The study's.
        cell: The cell.
        claim: An open file that the process inherits (`StudyFolder.claim`).

    Raises:
        ConfigError: The script is not here.
    """
    if not SCRIPT.is_file():
        raise ConfigError(f"A study runs {SCRIPT.name} of a clone of timm_ebl, and there is none in {SCRIPT.parent}.")
    take_up(folder, cell)  # it may have failed under other settings
    command = [sys.executable, str(SCRIPT), "--config", str(folder.write_recipe(cell))]
    command += ["--output-dir", str(folder.run(cell)), "--resume"]
    environment = os.environ | dict.fromkeys(_POOLS, str(cell.config.threads))
    with open(folder.log(cell), "ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
            pass_fds=() if claim is None else (claim,),
        )


def finish(folder: StudyFolder, cell: Cell, returned: int) -> Status:
    """How far a cell is once its process has ended; a failure is recorded.

    A run that was asked to stop, or killed, is unfinished: it goes on when the study is run again.

    Args:
        folder: The study's.
        cell: The cell.
        returned: What the process returned, ``-N`` or ``128 + N`` for a signal N.
    """
    number = -returned if returned < 0 else returned - 128
    name = signal.Signals(number).name if number in {*signal.Signals} else None
    if name in _ASKED_TO_STOP:
        return Status.UNFINISHED
    status = folder.outcome(cell).status
    if status is Status.UNFINISHED:
        words = None if name else _last_words(folder.log(cell))  # before a crash, they are of something else
        ended = f"ended by {name}" if name else f"ended with status {returned} and without a word"
        folder.write_failure(cell, words or f"{SCRIPT.name} {ended}")
        return Status.FAILED
    return status


def _last_words(log: Path) -> str | None:
    """The last line of a log that says something."""
    lines = log.read_bytes()[-10_000:].decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), None)


def take_up(folder: StudyFolder, cell: Cell) -> None:
    """Forget that a cell failed, so that it is run again."""
    folder.failure(cell).unlink(missing_ok=True)
