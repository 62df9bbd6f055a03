"""Running the cells of a study on this machine, several at once."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import ConfigError, Interrupted
from ...training.signals import StopSignals
from ...training.threads import cpu_quota
from . import process
from .counts import Counts
from .folder import Status, StudyFolder

if TYPE_CHECKING:
    from .grid import Cell

__all__ = ["check_jobs", "most_jobs", "run_here"]

_PAUSE = 0.2
"""Seconds between two looks at the processes."""


@dataclass(frozen=True)
class _Running:
    """A process at work on a cell."""

    cell: Cell
    child: subprocess.Popen


def check_jobs(cells: Sequence[Cell], jobs: int) -> None:
    """Refuse more threads at once than there are cores.

    Raises:
        ConfigError: They would hold each other up.
    """
    threads, cores = _threads(cells), _cores()
    if jobs * threads > cores:
        raise ConfigError(
            f"--jobs {jobs} with {threads} thread{'s' * (threads > 1)} a cell need {jobs * threads} cores, and this "
            f"process may use {cores}: ask for fewer."
        )


def most_jobs(cells: Sequence[Cell]) -> int:
    """How many cells have a core for each thread when they run at once; at least one."""
    return max(1, _cores() // max(1, _threads(cells)))


def _threads(cells: Sequence[Cell]) -> int:
    return max((cell.config.threads for cell in cells), default=0)


def _cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(cores, cpu_quota() or cores)))


def run_here(folder: StudyFolder, cells: Sequence[Cell], jobs: int, say: Callable[[str], None]) -> None:
    """Run those cells that have no result yet, so many at once, in their order.

    A cell that another process is at work on, such as one left over when a study was killed, counts as running. When a
    signal or an error ends this, the runs save their state before it returns.

    Args:
        folder: The study's.
        cells: The cells.
        jobs: How many run at once.
        say: Prints a line.

    Raises:
        Interrupted: A signal asked to stop.
    """
    counts = Counts(folder, cells, jobs)
    waiting, running = counts.unfinished(), []
    said = None
    with StopSignals("the runs save their state") as signals:
        try:
            while (waiting or running) and not signals.received:
                ended = [each for each in running if each.child.poll() is not None]
                for each in ended:
                    running.remove(each)
                    process.finish(folder, each.cell, each.child.returncode)
                    counts.note(each.cell)
                elsewhere = 0
                for cell in list(waiting):
                    if len(running) + elsewhere >= jobs:
                        break
                    claim = folder.claim(cell)
                    if claim is None:
                        elsewhere += 1
                        continue
                    try:
                        waiting.remove(cell)
                        counts.note(cell)
                        if folder.outcome(cell).status is Status.UNFINISHED:  # else whoever had it has ended it
                            running.append(_Running(cell, process.start(folder, cell, claim)))
                    finally:
                        os.close(claim)  # the process has its own
                line = counts.line(len(running) + elsewhere)
                for each in ended:
                    say(f"{each.cell.name}: {counts.describe(each.cell)}; {line}")
                if not ended and line != said:
                    say(line)
                said = line
                time.sleep(_PAUSE)
        finally:
            _stop(running)
        if signals.received and (waiting or running):
            done = f"stopped by {signal.Signals(signals.received).name}; what the runs have done is saved"
            raise Interrupted(f"{done}: go on by the same command", signals.received)


def _stop(running: Sequence[_Running]) -> None:
    """Have the runs save their state and end."""
    for each in running:
        each.child.terminate()
    for each in running:
        each.child.wait()
