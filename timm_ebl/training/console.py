"""Standard output and error of a run, which nobody need read."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import huggingface_hub

from ..errors import ConfigError
from .threads import set_threads
from .user_code import import_modules

__all__ = ["OptionalStream", "bars_in_terminals_alone", "begin", "survive_output"]


class OptionalStream:
    """A text stream whose faults are passed over: a full disk, a closed pipe, letters that it cannot encode.

    What is written to a file is there at the end of each line.

    Args:
        stream: What is written to.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        with suppress(AttributeError):  # not a file
            stream.reconfigure(errors="backslashreplace", line_buffering=True)

    def write(self, text: str) -> int:
        """Write a text, or do not."""
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Pass on what was written, or do not."""
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        """Whatever else the stream can do."""
        return getattr(self._stream, name)


def survive_output() -> None:
    """Have this process go on where its standard output or error is full, closed or gone."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number, so that no file of the run can
    for name in ("stdout", "stderr"):
        setattr(sys, name, OptionalStream(getattr(sys, name) or open(os.devnull, "w")))  # noqa: SIM115 (open to the end)


def bars_in_terminals_alone() -> None:
    """Have libraries show their progress where it is seen: in a terminal, by the first process of a machine."""
    if sys.stderr.isatty() and os.environ.get("LOCAL_RANK", "0") == "0":
        return
    huggingface_hub.utils.disable_progress_bars()
    with suppress(ImportError):  # local data are read without it
        import datasets

        datasets.disable_progress_bars()
        datasets.logging.set_verbosity_error()


def begin(parser: ArgumentParser, arguments: Sequence[str] | None) -> Namespace:
    """The options of a command that begins: bars kept out of log files, ``--threads`` set, ``--import`` imported."""
    bars_in_terminals_alone()
    options = parser.parse_args(arguments)
    if getattr(options, "threads", None):
        set_threads(options.threads)
    try:
        import_modules(getattr(options, "imports", None) or ())
    except ConfigError as error:
        parser.error(str(error))
    return options
