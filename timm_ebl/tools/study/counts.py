"""How far a study is: cells by their status, and the time that is left."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from ...training.progress import duration
from .folder import Status, StudyFolder

if TYPE_CHECKING:
    from .grid import Cell

__all__ = ["Counts"]


class Counts:
    """The status of every cell.

    Args:
        folder: The study's.
        cells: Its cells.
        jobs: How many run at once.
    """

    def __init__(self, folder: StudyFolder, cells: Sequence[Cell], jobs: int) -> None:
        self._folder, self._cells, self._jobs = folder, tuple(cells), jobs
        self._outcomes = {cell.name: folder.outcome(cell) for cell in cells}

    def unfinished(self) -> list[Cell]:
        """The cells without a result."""
        return [cell for cell in self._cells if self._outcomes[cell.name].status is Status.UNFINISHED]

    def note(self, cell: Cell) -> None:
        """Look at a cell again, whose process has ended."""
        self._outcomes[cell.name] = self._folder.outcome(cell)

    def count(self, status: Status) -> int:
        """How many cells have a status."""
        return sum(outcome.status is status for outcome in self._outcomes.values())

    def describe(self, cell: Cell) -> str:
        """What has become of a cell, in words."""
        outcome = self._outcomes[cell.name]
        if outcome.status is Status.COMPLETED:
            return f"test error {outcome.summary['test_error']:.2f} %"
        if outcome.status is Status.UNFINISHED:
            return "stopped before its end; the same command goes on with it"
        return f"{outcome.status} ({outcome.reason})"

    def seconds_left(self) -> float | None:
        """Seconds that the unfinished cells will take, if they take what others did; ``None`` where nothing is known.

        Others are those of the same rule and data set, else of the same data set.
        """
        known = [
            (cell, self._outcomes[cell.name].summary["seconds"])
            for cell in self._cells
            if self._outcomes[cell.name].status is Status.COMPLETED
        ]
        total = 0.0
        for cell in self.unfinished():
            alike = [
                [seconds for other, seconds in known if key(other) == key(cell)]
                for key in (lambda c: (c.config.algo, c.dataset), lambda c: c.dataset)
            ]
            if not any(alike):
                return None
            total += fmean(alike[0] or alike[1])
        return total / min(self._jobs, max(1, len(self.unfinished())))

    def line(self, running: int) -> str:
        """The progress of the study in one line; the time left does not count what running cells have done."""
        parts = [f"{self.count(Status.COMPLETED)} of {len(self._cells)} cells done", f"{running} running"]
        parts += [f"{self.count(status)} {status}" for status in (Status.DIVERGED, Status.FAILED)]
        left = self.seconds_left()
        return ", ".join(parts) + ("" if left is None else f", about {duration(left)} left" if left else "")
