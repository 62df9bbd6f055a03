"""Signals that ask a run to stop, and the end of the launcher that should have passed them on."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .progress import Progress

__all__ = ["StopSignals", "stop_message", "stopping_at_once"]

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
"""A terminal's and what clusters send before a time limit; Windows has the first two."""

_LAUNCHED_BY = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")
"""Variables of the environment that ``accelerate launch`` and torchrun set."""

_SAME = 1.0  # seconds in which a launcher and a terminal may both send the same Ctrl-C


def stop_message(number: int, progress: Progress, run: Path) -> str:
    """What is said when a signal has stopped a run whose state is saved."""
    done = f"batch {progress.step} of epoch {progress.epoch}" if progress.step else f"epoch {progress.epoch - 1}"
    return f"stopped by {signal.Signals(number).name} after {done}, which is saved; go on by: {resume_command(run)}"


def resume_command(run: Path) -> str:
    """The command that takes a run up again; a launcher needs the options that it had."""
    script, folder, settings = map(shlex.quote, (sys.argv[0], str(run), str(run / "args.yaml")))
    launcher = "accelerate launch" if _is_launched() else "python"
    return f"{launcher} {script} --config {settings} --output-dir {folder} --resume"


def _is_launched() -> bool:
    return any(name in os.environ for name in _LAUNCHED_BY)


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Have the signals that ask to stop call a handler; those that are ignored, as by ``nohup``, stay so."""
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    before = {n: signal.signal(n, handler) for n in numbers if signal.getsignal(n) not in (None, signal.SIG_IGN)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def stopping_at_once() -> AbstractContextManager[None]:
    """While it is entered, a signal that asks to stop raises a `KeyboardInterrupt` with its number."""
    return _handled(_interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


class StopSignals:
    """Notes the signals that ask to stop while it is entered; only a second Ctrl-C, a second later, stops at once.

    The end of the launcher counts as SIGHUP: ``accelerate launch`` passes no signal on.

    Args:
        answer: What is said when the first one comes.
    """

    def __init__(self, answer: str = "stopping after this batch") -> None:
        self._answer = answer
        self._launcher = os.getppid() if _is_launched() else None
        self._received: int | None = None
        self._since = 0.0
        self._handlers = _handled(self._note)

    @property
    def received(self) -> int | None:
        """The first signal that came, if any."""
        if self._received is None and self._launcher not in (None, os.getppid()):
            self._received = signal.SIGHUP
        return self._received

    def __enter__(self) -> StopSignals:
        """Take the signals over."""
        self._handlers.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Give them back."""
        self._handlers.__exit__(kind, error, trace)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._received is None:
            self._received, self._since = number, time.monotonic()
            if os.environ.get("RANK", "0") == "0":  # not by print, which the signal may have come into
                with suppress(OSError):
                    os.write(2, f"\n{signal.Signals(number).name}: {self._answer}\n".encode())
        elif number == signal.SIGINT and time.monotonic() - self._since > _SAME:
            _interrupt(number, frame)
