"""What a data set says of its columns beyond their types: which hold images, and what the classes are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["ClassLabel", "Feature", "Image", "read_features"]


@dataclass(frozen=True)
class Image:
    """A column of images."""


@dataclass(frozen=True)
class ClassLabel:
    """A column of numbers that stand for classes.

    Attributes:
        names: Names of the classes, in the order of their numbers.
    """

    names: tuple[str, ...]


Feature = Image | ClassLabel


def read_features(written: Mapping[str, Any]) -> dict[str, Feature]:
    """Images and classes among the features of a data set, by column.

    Args:
        written: The features as ``datasets`` writes them into a Parquet file, and `datasets.Features.to_dict` gives
            them: for each column a mapping with its ``_type``.

    Raises:
        Exception: A class label has neither names nor a number of them, or what was written is no mapping.
    """
    found: dict[str, Feature] = {}
    for column, feature in written.items():
        kind = feature.get("_type") if isinstance(feature, Mapping) else None
        if kind == Image.__name__:
            found[column] = Image()
        elif kind == ClassLabel.__name__:
            found[column] = ClassLabel(tuple(feature.get("names") or map(str, range(feature["num_classes"]))))
    return found
