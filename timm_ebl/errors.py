"""Every exception of the package, and how a command ends by one: a sentence on stderr and an exit status."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DataWarning",
    "Diverged",
    "EBLError",
    "HubError",
    "Interrupted",
    "MissingSplitError",
    "OutputError",
    "WeightsError",
    "caught_as_well",
    "one_sentence",
]


class EBLError(Exception):
    """What may be expected to go wrong; the message is one line that says what is wrong and what to do.

    Attributes:
        status: Exit status of a command that it ends.
        title: What the command says before the message.
    """

    status = 1
    title = "error: "

    def __str__(self) -> str:
        """The message; the lines of what a library said in it are joined."""
        return " ".join(filter(None, map(str.strip, super().__str__().splitlines())))


class ConfigError(EBLError, ValueError):
    """A configuration that cannot be run; the message says what to change."""


class DataError(EBLError, ValueError):
    """A data set cannot be loaded or used as asked; the message says why and what can be done."""


class MissingSplitError(DataError):
    """A data set has no split of that name."""


class DataWarning(UserWarning):
    """What was decided or left out when data were read."""


class OutputError(EBLError, OSError):
    """The results cannot be written; the message says where and why."""


class CheckpointError(EBLError, ValueError):
    """A checkpoint that is not what it is said to be, or lacks a part; the message says which."""


class WeightsError(EBLError, RuntimeError):
    """Weights that cannot be loaded; the message names the file and says why."""


class HubError(EBLError, RuntimeError):
    """The Hub cannot or may not be used as asked; the message says why and what can be done."""


class Diverged(EBLError):
    """The weights are not finite any more; the message says which."""

    status = 3
    title = "diverged: "


class Interrupted(EBLError):
    """A signal has stopped the run; the message says what is saved and how to go on.

    Attributes:
        signal: The number of the signal.
    """

    title = ""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal, self.status = signal, 128 + signal


def caught_as_well(refusal: EBLError, error: Exception) -> EBLError:
    """A refusal that is an error of another one's kind too, for those who catch what a library raises.

    Args:
        refusal: What is said.
        error: The library's error, whose type and attributes it has as well.

    A copy or a pickle is the refusal alone.
    """
    kind, message = type(refusal), str(refusal)
    own = {
        "__init__": lambda self, *args: None,
        "__str__": lambda self: message,
        "__reduce_ex__": lambda self, protocol: (kind, (message,)),
    }
    both = type(kind.__name__, (kind, type(error)), own)(message)
    vars(both).update(vars(error))
    return both


def _lost() -> OSError | None:
    """Write out what was printed; else why not, and the rest is dropped, at which the end of Python would fail."""
    try:
        if sys.stdout is not None and not sys.stdout.closed:
            sys.stdout.flush()
    except OSError as error:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None


@contextmanager
def one_sentence() -> Iterator[None]:
    """End the process by a sentence on stderr and an exit status if an expected error or a signal ends what is inside.

    What the operating system refuses is expected too. Of several processes on a machine the first one speaks, and
    those to which the system refused something. Where the reader of what is printed has gone, as behind ``| head``, the
    process ends without a word. It is a decorator as well.

    Raises:
        SystemExit: With the status of the error; 128 + N for a signal N, SIGPIPE where the reader has gone.
    """
    speaks, end = os.environ.get("LOCAL_RANK", "0") == "0", None
    try:
        yield
    except (EBLError, OSError, KeyboardInterrupt, SystemExit) as error:  # of the system: a full disk, a closed pipe
        end = error
    lost = _lost()
    if end is None or getattr(end, "code", 1) in (None, 0):  # SystemExit: after --help
        end = lost or end
    if end is None:
        return
    if isinstance(end, SystemExit):
        raise end
    if isinstance(end, BrokenPipeError):
        sys.exit(128 + signal.SIGPIPE)
    if isinstance(end, KeyboardInterrupt):
        number = end.args[0] if end.args else signal.SIGINT
        message, status = f"stopped by {signal.Signals(number).name}", 128 + number
    else:
        message, status = f"{getattr(end, 'title', EBLError.title)}{end}", getattr(end, "status", EBLError.status)
        speaks |= isinstance(end, OSError)
    if speaks:
        with suppress(OSError, ValueError):  # nobody reads it
            print(message, file=sys.stderr, flush=True)
    sys.exit(status)
