"""Splits in folders of images: which folders are splits and which are classes, and what a table says of the images."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import PIL.Image
import pyarrow as pa
from pyarrow.csv import ConvertOptions, read_csv
from pyarrow.json import read_json
from pyarrow.parquet import read_table

from ..errors import DataError
from .catalogue import is_split_name
from .columns import Stored, Table, note, short, some
from .features import ClassLabel, Feature, Image

__all__ = ["METADATA", "find_image_splits", "is_image"]

METADATA: dict[str, Callable[[Path], pa.Table]] = {
    "metadata.csv": partial(read_csv, convert_options=ConvertOptions(strings_can_be_null=True)),
    "metadata.jsonl": read_json,
    "metadata.parquet": read_table,
}
"""Files that say more of the images in their folder, and what reads them."""

_KEY = "file_name"


@cache
def _endings() -> frozenset[str]:
    PIL.Image.init()
    return frozenset(end for end, kind in PIL.Image.registered_extensions().items() if kind in PIL.Image.OPEN)


def is_image(path: Path) -> bool:
    """Whether Pillow reads files with that ending."""
    return path.suffix.lower() in _endings()


@dataclass(frozen=True)
class _Split:
    root: Path
    images: tuple[Path, ...]
    metadata: Path | None

    def class_of(self, image: Path) -> str | None:
        """The first folder below the split."""
        folders = image.relative_to(self.root).parts[:-1]
        return folders[0] if folders else None

    def table(self, classes: Sequence[str]) -> Table:
        """Images, labels where there are classes, and what the metadata say."""
        labels = [self.class_of(image) for image in self.images]
        features: dict[str, Feature] = {"image": Image()}
        columns = {"image": pa.array([{"path": str(image)} for image in self.images], pa.struct({"path": pa.string()}))}
        if classes and any(labels):
            numbers = {name: number for number, name in enumerate(classes)}
            columns["label"] = pa.array([numbers[label] for label in labels])
            features["label"] = ClassLabel(tuple(classes))
        if self.metadata:
            try:
                columns = _join(self.metadata, self.images) | columns
            except DataError as error:
                if "label" not in columns:
                    raise
                note(f"a table beside class folders is left out: {error}")
        problem = (
            f"{self.root} holds images, but neither class folders nor a metadata.csv: add them, or choose another split"
        )
        return Table(pa.table(columns), features, unlabelled=problem)


def find_image_splits(folder: Path, images: Sequence[Path], others: Sequence[Path]) -> Stored:
    """The splits of a folder of images.

    They lie in ``SPLIT/CLASS/`` or, without splits, in ``CLASS/``. A top folder is a split if it has the name of one,
    unless it holds its images itself beside other such folders: then it is a class. The class of an image is the first
    folder below the split. Where there are no class folders, labels are columns of a ``metadata.csv``, ``.jsonl`` or
    ``.parquet`` whose column ``file_name`` gives the path of each image; beside class folders they are further columns.

    Args:
        folder: The folder.
        images: The images in it.
        others: The other files in it.

    Raises:
        DataError: A table of metadata cannot be read.
    """
    tops = {image.relative_to(folder).parts[0] for image in images}
    inner = folder / min(tops)
    if len(tops) == 1 and not is_split_name(inner.name) and all(inner in image.parent.parents for image in images):
        return find_image_splits(inner, images, others)  # all lie one folder deeper
    tables = [path for path in others if path.name in METADATA]
    splits = {name: _split(root, images, tables) for name, root in _roots(folder, images).items()}
    classes = sorted({split.class_of(image) for split in splits.values() for image in split.images} - {None})
    if len(classes) < 2 and tables:
        classes = []
    if classes:
        splits = {name: _in_classes(split) for name, split in splits.items()}
    _say_what_was_decided(folder, splits, classes, tables)
    _say_what_is_left(folder, {*images} - {image for split in splits.values() for image in split.images}, "images")
    _say_what_is_left(folder, {*others} - {split.metadata for split in splits.values()}, "other files")
    return {name: partial(split.table, classes) for name, split in splits.items()}


def _roots(folder: Path, images: Iterable[Path]) -> dict[str, Path]:
    """The folders of the splits, by name."""
    depths: dict[str, int] = {}
    for image in images:
        top, *rest = image.relative_to(folder).parts
        if rest:
            depths[top] = max(depths.get(top, 0), len(rest))
    named = {top for top in depths if is_split_name(top)}
    if named and (named == depths.keys() or any(depths[top] > 1 for top in named)):
        return {top: folder / top for top in depths if top in named or depths[top] > 1}
    if named:
        beside = some(sorted(depths.keys() - named))
        note(f"{', '.join(sorted(named))} in {folder} is taken for a class, not for a split: it lies beside {beside}.")
    return {"train": folder}


def _split(root: Path, images: Iterable[Path], tables: Sequence[Path]) -> _Split:
    beside = [path for path in tables if path.parent == root] or [
        path for path in tables if root.is_relative_to(path.parent)
    ]
    return _Split(root, tuple(image for image in images if image.is_relative_to(root)), beside[0] if beside else None)


def _in_classes(split: _Split) -> _Split:
    """The split without the images outside its class folders, if it has any."""
    return _Split(split.root, tuple(filter(split.class_of, split.images)) or split.images, split.metadata)


def _join(metadata: Path, images: Sequence[Path]) -> dict[str, pa.ChunkedArray]:
    """The columns of the metadata, a row for each image; empty where they do not name it."""
    try:
        table = METADATA[metadata.name](metadata)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{metadata} cannot be read ({short(error)}).") from error
    if _KEY not in table.column_names:
        raise DataError(f"{metadata} has no column {_KEY!r}, which gives the path of each image.")
    names = [metadata.parent / str(name) for name in table.column(_KEY).to_pylist()]
    rows = {name: row for row, name in enumerate(names)}
    if len(rows) < len(names):
        twice = next(name for row, name in enumerate(names) if rows[name] != row)
        raise DataError(f"{metadata} has two rows for {twice.name}.")
    if gone := [name for name in rows.keys() - {*images} if not name.exists()]:
        note(f"files in {metadata} that are not there: {_names(gone, metadata.parent)}.")
    joined = table.drop_columns([_KEY]).take(pa.array([rows.get(image) for image in images], pa.int64()))
    return dict(zip(joined.column_names, joined.columns, strict=True))


def _say_what_was_decided(
    folder: Path, splits: dict[str, _Split], classes: Sequence[str], tables: Sequence[Path]
) -> None:
    if not classes:
        return
    if tables:
        note(
            f"the classes are the folders {some(classes)}; --label-column takes a column of {_names(tables, folder)} "
            "in their place."
        )
    nested = {
        image.parent
        for split in splits.values()
        for image in split.images
        if len(image.parts) > len(split.root.parts) + 2
    }
    if nested:
        note(f"images below a class folder count for it: {_names(nested, folder)}.")


def _say_what_is_left(folder: Path, paths: Collection[Path], what: str) -> None:
    if paths:
        note(f"{what} left out of {folder}: {_names(paths, folder)}.")


def _names(paths: Iterable[Path], folder: Path) -> str:
    return some(os.path.relpath(path, folder) for path in sorted(paths))
