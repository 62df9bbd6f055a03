"""Data sets in local folders: Parquet files, or images in class folders. Nothing is cached.

Splits come from the names of the top folders or of the Parquet files alone, in any case; what is left out is said.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import DataError
from .columns import Stored, note, some
from .image_folder import METADATA, find_image_splits, is_image
from .parquet import find_parquet_splits

__all__ = ["read_folder", "walk"]


def read_folder(folder: Path, config: str | None = None) -> Stored:
    """The splits of a local folder.

    Args:
        folder: Parquet files in the Hub's layout (`find_parquet_splits`), or images (`find_image_splits`).
        config: Configuration, a folder in it.

    Raises:
        DataError: The folder does not exist, is ambiguous or cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}.")
    if config is not None and (folder / config).is_dir():
        return read_folder(folder / config)
    try:
        files = list(walk(folder))
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}.") from error
    for path in files:
        if os.fsencode(path).decode(errors="replace") != str(path):
            raise DataError(f"the name of {os.fsencode(path)!r} is no text in UTF-8: rename the file.")
    tables = [path for path in files if path.suffix.lower() == ".parquet" and path.name not in METADATA]
    images = [path for path in files if is_image(path)]
    if tables:
        if images:
            note(f"images left out of {folder}, which has Parquet files: {some(images, 3)}.")
        found = find_parquet_splits(folder, config, tables)
    elif not images:
        found = some(path.relative_to(folder) for path in files) or "nothing"
        raise DataError(f"{folder} holds neither Parquet files nor images; there is {found}.")
    elif config is not None:
        raise DataError(f"{folder} is a folder of images, which has no configuration {config!r}.")
    else:
        found = find_image_splits(folder, images, sorted({*files} - {*images}))
    for name in found:
        same = [other for other in found if other.casefold() == name.casefold()]
        if len(same) > 1:
            raise DataError(f"{folder} has the splits {', '.join(same)}, which differ in case only: rename one.")
    return found


def walk(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """The files below a folder, in the order of their names, behind links as well; hidden ones are passed over."""
    above = (*above, folder.resolve())
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        path = folder / entry.name
        if not entry.is_dir():
            yield path
        elif path.resolve() not in above:
            yield from walk(path, above)
