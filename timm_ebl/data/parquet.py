"""Splits in Parquet files, each read as it is: class names are compared before anything is joined."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
from pyarrow.parquet import ParquetFile

from ..errors import DataError
from .catalogue import is_split_name
from .columns import Stored, Table, note, short, some
from .features import Feature, read_features

__all__ = ["features_of", "find_parquet_splits", "read_parquet"]


def find_parquet_splits(folder: Path, config: str | None, files: Sequence[Path]) -> Stored:
    """The splits of a folder of Parquet files.

    Args:
        folder: The folder.
        config: Configuration, which is a folder in it.
        files: The files in it: ``[CONFIG/]SPLIT-00000-of-00001.parquet``, ``[CONFIG/]SPLIT.parquet`` or
            ``[CONFIG/]SPLIT/*.parquet``.

    Raises:
        DataError: There is no such configuration, or there are several.
    """
    configs: dict[str, dict[str, list[Path]]] = {}
    for path in files:
        *folders, name = path.relative_to(folder).parts
        split = folders.pop() if folders and is_split_name(folders[-1]) else _split_of(name)
        configs.setdefault("/".join(folders), {}).setdefault(split, []).append(path)
    if config is None and ("" in configs or len(configs) == 1):
        config = "" if "" in configs else next(iter(configs))
        if others := [name for name in configs if name != config]:
            note(f"the Parquet files in {some(others)} below {folder} are left out: --dataset-config chooses them.")
    if config is None:
        raise DataError(
            f"{folder} has several configurations, {', '.join(configs)}: choose one by --dataset-config (config=)."
        )
    if config not in configs:
        known = ", ".join(filter(None, configs)) or "none, only Parquet files of its own"
        raise DataError(f"{folder} has no configuration {config!r}; it has {known}.")
    return {split: partial(read_parquet, shards) for split, shards in configs[config].items()}


def _split_of(file: str) -> str:
    """The split that a Parquet file belongs to: its name without the numbers of a part."""
    stem = Path(file).stem
    if part := re.fullmatch(r"(.+?)-\d+-of-\d+(-[0-9a-f]+)?", stem):
        return part[1]
    plain = re.sub(r"[-_.]?\d+$", "", stem)
    return plain if is_split_name(plain) else stem if plain else "train"


def read_parquet(files: Sequence[Path]) -> Table:
    """The rows of the files of a split.

    Raises:
        DataError: A file is missing or damaged, or they differ in their columns or class names.
    """
    counts = {int(part[1]) for path in files if (part := re.search(r"-\d+-of-(\d+)", path.stem))}
    if counts and counts != {len(files)}:
        raise DataError(f"{files[0].parent} has {len(files)} of the {max(counts)} files like {files[0].name}.")
    tables, features = [], []
    for path in files:
        try:
            with ParquetFile(path) as file:
                tables.append(file.read().replace_schema_metadata())
                features.append(features_of(file.schema_arrow))
        except Exception as error:  # damaged files and what others wrote into them raise errors of many types
            raise DataError(f"{path} cannot be read as a Parquet file ({short(error)}).") from error
        names = tables[-1].column_names
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise DataError(f"{path} has two columns of one name: {some(twice)}.")
        if features[-1] != features[0]:
            raise DataError(f"{files[0]} and {path} differ in their columns or class names: bring them into line.")
    try:
        return Table.of(pa.concat_tables(tables, promote_options="permissive"), features[0], files[0].parent)
    except pa.ArrowException as error:
        raise DataError(f"the columns of {some(files, 2)} differ in type ({short(error)}).") from error


def features_of(schema: pa.Schema) -> dict[str, Feature]:
    """What ``datasets`` wrote into a Parquet file about its columns; empty if nothing."""
    written = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    return read_features((written.get("info") or {}).get("features") or {})
