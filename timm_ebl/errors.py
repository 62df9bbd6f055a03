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


@contextmanager
def one_sentence() -> Iterator[None]:
    """End the process by a sentence on stderr and an exit status if an expected error or a signal ends what is inside.

    What the operating system refuses is expected too. Of several processes on a machine the first one speaks, and
    those to which the system refused something. It is a decorator as well.

    Raises:
        SystemExit: With the status of the error; 128 + N for a signal N.
    """
    speaks = os.environ.get("LOCAL_RANK", "0") == "0"
    try:
        yield
    except (EBLError, OSError) as error:  # the latter: a full disk, a folder without permission, a pipe that is closed
        message, status = f"{getattr(error, 'title', EBLError.title)}{error}", getattr(error, "status", EBLError.status)
        speaks |= isinstance(error, OSError)
    except KeyboardInterrupt as stop:
        number = stop.args[0] if stop.args else signal.SIGINT
        message, status = f"stopped by {signal.Signals(number).name}", 128 + number
    else:
        return
    if speaks:
        with suppress(OSError, ValueError):  # nobody reads it
            print(message, file=sys.stderr, flush=True)
    sys.exit(status)
