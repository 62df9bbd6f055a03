"""Signals that ask a run to stop."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from .progress import Progress

__all__ = ["StopSignals", "stop_message"]


def stop_message(number: int, progress: Progress, run: Path) -> str:
    """What is said when a signal has stopped a run whose state is saved."""
    return (
        f"stopped by {signal.Signals(number).name} after batch {progress.step} of epoch {progress.epoch}, which is "
        f"saved; go on by: {resume_command(run)}"
    )


def resume_command(run: Path) -> str:
    """The command that takes a run up again; ``accelerate launch`` needs the options that it had."""
    return f"accelerate launch train_ebl.py --config {run / 'args.yaml'} --output-dir {run} --resume"


class StopSignals:
    """Notes SIGTERM and SIGINT while it is entered, in place of what they do; the second one of them does it.

    Attributes:
        received: The signal that came, if any.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        """Take the signals over."""
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Give them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        for known, handler in self._before.items():
            signal.signal(known, handler)
