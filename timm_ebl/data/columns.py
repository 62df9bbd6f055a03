"""A split as it is stored: which of its columns hold images and labels, and what they say."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pyarrow import types
from torch import Tensor

from ..errors import DataError, DataWarning
from .features import ClassLabel, Feature, Image

__all__ = ["Stored", "Table", "find_column", "image_files", "note", "read_labels", "short", "some"]

MOST_CLASSES = 2**16
"""Classes that texts, or whole numbers without names, may stand for."""


@dataclass(frozen=True, eq=False)
class Table:
    """The rows of a split.

    Attributes:
        columns: The columns.
        features: What is known beyond their types, by column.
        folder: Folder that relative paths of images start from.
        unlabelled: Why there is no column of labels, where the reader knows.
    """

    columns: pa.Table
    features: Mapping[str, Feature] = field(default_factory=dict)
    folder: Path = Path()
    unlabelled: str | None = None

    @classmethod
    def of(cls, columns: pa.Table, features: Mapping[str, Feature], folder: Path = Path()) -> Table:
        """A table with those of the features whose columns are there."""
        return cls(columns, {name: kind for name, kind in features.items() if name in columns.column_names}, folder)


Stored = Mapping[str, Callable[[], Table]]
"""The splits of a data set by name, each read when it is called."""


def note(message: str) -> None:
    """Say what a reader decided or left out."""
    warnings.warn(message, DataWarning, stacklevel=2)


def some(names: Iterable[Any], most: int = 6) -> str:
    """The first of some names, for a message."""
    names = list(map(str, names))
    left = len(names) - most
    return ", ".join(names[:most]) + (f" and {left} more" if left > 0 else "")


def short(error: object) -> str:
    """The first words of an error of another library, for a message."""
    return textwrap.shorten(str(error), 200)


def find_column(kind: str, table: Table, chosen: str | None, source: str) -> str:
    """The column of the images or of the labels.

    It is the one chosen, if its type allows; else the only one that is an `Image` or a `ClassLabel`; else the only one
    of a suitable type; else the one that is called ``image`` or ``label``.

    Args:
        kind: ``image`` or ``label``.
        table: The split.
        chosen: Column asked for.
        source: The split in words.

    Raises:
        DataError: There is no such column, or there are several.
    """
    feature, suits = {"image": (Image, _holds_images), "label": (ClassLabel, _holds_labels)}[kind]
    named = [name for name, found in table.features.items() if isinstance(found, feature)]
    other = [field.name for field in table.columns.schema if field.name not in table.features and suits(field.type)]
    candidates = named or other
    if chosen is None and not named and kind in other:
        chosen = kind
    if chosen in named + other or (chosen is None and len(candidates) == 1):
        return chosen or candidates[0]
    columns = ", ".join(f"{field.name} ({_describe(table, field)})" for field in table.columns.schema)
    if not named + other:
        if kind == "label" and table.unlabelled:
            raise DataError(f"{source} has no labels: {table.unlabelled}.")
        raise DataError(f"{source} has no {kind} column; its columns are {columns}.")
    problem = f"has no {kind} column {chosen!r}" if chosen else f"has several {kind} columns"
    raise DataError(
        f"{source} {problem}: choose one of {', '.join(named + other)} by --{kind}-column ({kind}_column=)."
    )


def _holds_images(kind: pa.DataType) -> bool:
    if types.is_struct(kind):
        suits = {"bytes": _holds_images, "path": _is_text}
        fields = [field for field in kind if field.name in suits]
        return bool(fields) and all(types.is_null(field.type) or suits[field.name](field.type) for field in fields)
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _is_text(kind: pa.DataType) -> bool:
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _holds_labels(kind: pa.DataType) -> bool:
    if types.is_dictionary(kind):
        return _holds_labels(kind.value_type)
    return types.is_integer(kind) or types.is_boolean(kind) or types.is_floating(kind) or _is_text(kind)


def _describe(table: Table, field: pa.Field) -> str:
    feature = table.features.get(field.name)
    return textwrap.shorten(type(feature).__name__ if feature else str(field.type), 60)


def image_files(table: Table, column: str) -> Iterator[bytes | str | None]:
    """Contents of the image files, or their paths; ``None`` where there is neither."""
    for cell in table.columns.column(column):
        value = cell.as_py()
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path") or None
        yield str(table.folder / value) if isinstance(value, str) else value


def read_labels(
    table: Table, others: Callable[[], Iterable[Table]], column: str, source: str
) -> tuple[Tensor, tuple[str, ...]]:
    """The labels of a split and the names of the classes.

    Class labels bring their names. Whole numbers, as floats too, and truth values are their own names. The classes of
    a column of texts are those of all splits, sorted.

    Args:
        table: The split.
        others: Reads the other splits.
        column: Column of the labels.
        source: The split in words.

    Returns:
        int64 labels of shape ``(N,)`` and the names.

    Raises:
        DataError: A label is missing, is no whole number or is out of range; the message gives its row.
    """
    values = _plain(table, column)
    missing = pc.index(pc.is_null(values, nan_is_null=True), True).as_py()
    if missing >= 0:
        raise DataError(f"row {missing} of {source} has no label in the column {column!r}.")
    if _is_text(values.type):
        found = [_plain(each, column) for each in others() if column in each.columns.column_names]
        texts = [values, *(each for each in found if _is_text(each.type))]
        names = sorted({name for each in texts for name in pc.unique(each).to_pylist()} - {None})
        if len(names) > MOST_CLASSES:
            raise DataError(
                f"the column {column!r} of {source} has {len(names):,} different texts, which are no classes."
            )
        return torch.from_numpy(pc.index_in(values, pa.array(names)).to_numpy().astype(np.int64)), tuple(names)
    names = getattr(table.features.get(column), "names", None)
    if types.is_boolean(values.type):
        values, names = values.cast(pa.int8()), ("False", "True")
    labels, count = values.to_numpy(), MOST_CLASSES if names is None else len(names)
    for row in np.flatnonzero(labels != np.floor(labels))[:1]:
        raise DataError(f"row {row} of {source} has the label {labels[row]}, which is no whole number.")
    for row in np.flatnonzero((labels < 0) | (labels >= count))[:1]:
        hidden = " (-1 often stands for a label that is kept secret: choose another split)" if labels[row] == -1 else ""
        raise DataError(
            f"row {row} of {source} has the label {labels[row]}, outside the classes 0 to {count - 1}{hidden}."
        )
    found = torch.from_numpy(labels.astype(np.int64))
    return found, tuple(names or map(str, range(int(found.max()) + 1)))


def _plain(table: Table, column: str) -> pa.ChunkedArray:
    """A column without the dictionaries that pandas writes for its categories, and with one type for texts."""
    values = table.columns.column(column)
    if types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    return values.cast(pa.string()) if _is_text(values.type) else values
