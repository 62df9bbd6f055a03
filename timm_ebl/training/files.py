"""Files that are written whole or not at all, under a temporary name until they are there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..errors import OutputError

__all__ = ["LEFTOVER", "temporary_folder", "write_whole", "writing"]

LEFTOVER = ".timm_ebl-"
"""Start of the name of what is being written. What still has it when a run is taken up again is removed."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write into an `OutputError`."""
    try:
        yield
    except OutputError:
        raise
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{path} cannot be written to: {getattr(error, 'strerror', None) or error}.") from error


@contextmanager
def temporary_folder(parent: Path | None = None) -> Iterator[Path]:
    """A folder for what is being written; it is removed at the end.

    Args:
        parent: The folder that it lies in; by default the system's for temporary files, which ``TMPDIR`` chooses.

    Raises:
        OutputError: It cannot be made.
    """
    with writing(parent or Path(os.environ.get("TMPDIR") or "the folder for temporary files (TMPDIR)")):
        folder = tempfile.TemporaryDirectory(prefix=LEFTOVER, dir=parent)
    with folder as name:
        yield Path(name)


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file under a temporary name in its folder, then rename it, so that nobody ever sees half of it.

    Args:
        path: The file.
        write: Writes the content to the path that it is given; the name has the suffix of ``path``.

    Raises:
        OutputError: It cannot be written.
    """
    with writing(path):
        descriptor, name = tempfile.mkstemp(prefix=LEFTOVER, suffix=path.suffix, dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
        try:
            write(temporary)
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
