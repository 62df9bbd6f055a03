"""Data sets on the Hugging Face Hub, and their copies in its cache."""

from __future__ import annotations

import errno
from contextlib import suppress
from itertools import chain
from pathlib import Path

import datasets
import pyarrow as pa
from datasets import DownloadMode
from datasets.exceptions import DatasetGenerationError
from datasets.packaged_modules.cache.cache import Cache
from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.file_download import repo_folder_name
from pyarrow.parquet import ParquetFile

from ..errors import DataError
from .catalogue import EMBEDDED
from .columns import Stored, Table, short, some
from .features import Feature, read_features
from .parquet import features_of
from .requests import causes, explain, is_busy, is_intact, retry

__all__ = ["read_hub"]

_CACHE_FAULTS = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.ENOENT,
    errno.ENOTDIR,
)
"""What the system says where a cache cannot be read or written."""


def read_hub(hub_id: str, config: str | None, revision: str | None, token: str | None) -> Stored:
    """All splits of a set on the Hub, or of its cached copy.

    The library takes whatever copy is newest when it cannot reach the Hub, compares no checksums, takes the class names
    of the first file for those of all, believes in a cache that has been emptied, and gives up at the first 5xx answer
    to the request for a file: all five are seen to here.

    Args:
        hub_id: Id on the Hub.
        config: Configuration.
        revision: Branch, tag or commit; of the copies in the cache, too, when the Hub cannot be reached.
        token: Access token; by default that of ``hf auth login`` or ``HF_TOKEN``.

    Raises:
        DataError: The set cannot be loaded; the message says why, where from, and what can be used instead.
    """
    try:
        builder = retry(
            lambda: datasets.load_dataset_builder(hub_id, config, revision=revision, token=token), when=is_busy
        )
        if isinstance(builder, Cache):
            return _splits(builder if revision is None else _choose_copy(builder, hub_id, revision))
        if Path(builder.cache_dir).is_dir():
            _check_files(builder, hub_id)
            with suppress(Exception):  # the cache is damaged, which shows in errors of many types: fill it again
                return _splits(builder)
        _download(builder, hub_id, token)
        _check_files(builder, hub_id)
        builder.download_and_prepare(download_mode=DownloadMode.REUSE_CACHE_IF_EXISTS)
        return _splits(builder)
    except DataError:
        raise
    except Exception as error:  # the failures of the libraries below have no common type
        instead = (
            f"A local folder (--dataset PATH), copies in the Hub's layout (--data-root PATH) or the embedded sample "
            f"(--dataset {EMBEDDED}) can be used instead."
        )
        if fault := _cache_fault(error):
            raise DataError(f"cannot load {hub_id}: {fault}. {instead}") from error
        raise DataError(
            f"cannot load {hub_id} from the Hugging Face Hub at {datasets.config.HF_ENDPOINT}: "
            f"{_diagnose(error, hub_id, revision, token)}. {instead}"
        ) from error


def _cache_fault(error: BaseException) -> str | None:
    """What is wrong with the cache on this machine, if that is why a set cannot be loaded."""
    for cause in causes(error):
        damaged = isinstance(cause, pa.ArrowInvalid) and not isinstance(error, DatasetGenerationError)
        if damaged or (type(cause) in (OSError, *OSError.__subclasses__()) and cause.errno in _CACHE_FAULTS):
            reason = (
                short(cause) if damaged else f"{cause.strerror}: {cause.filename}" if cause.filename else cause.strerror
            )
            return (
                f"the cache in {datasets.config.HF_DATASETS_CACHE} and {constants.HF_HUB_CACHE} cannot be used "
                f"({reason}): make room, allow writing or remove what is damaged, or set HF_HOME to another folder"
            )
    return None


def _choose_copy(builder: Cache, hub_id: str, revision: str) -> Cache:
    """The cached copy of a revision, for use without the Hub."""
    reference = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=hub_id, repo_type="dataset"), "refs", revision)
    commit = reference.read_text().strip() if reference.is_file() else revision
    copies = {path.name: path for path in Path(builder.cache_dir).parent.iterdir() if path.is_dir()}
    chosen = [name for name in copies if name.startswith(commit)]
    if len(chosen) != 1:
        raise DataError(
            f"{hub_id} is not in the cache at revision {revision}, and the Hub cannot be reached; the cache has "
            f"{', '.join(sorted(copies))}."
        )
    if chosen[0] == builder.hash:
        return builder
    return Cache(repo_id=hub_id, dataset_name=builder.dataset_name, config_name=builder.config.name, hash=chosen[0])


def _names(builder: datasets.DatasetBuilder, hub_id: str) -> dict[str, list[str]]:
    """The files of each split in the set's repository."""
    prefix = f"hf://datasets/{hub_id}@{builder.hash}/"
    splits = (builder.config.data_files or {}).items()
    return {split: [str(f).removeprefix(prefix) for f in files if str(f).startswith(prefix)] for split, files in splits}


def _download(builder: datasets.DatasetBuilder, hub_id: str, token: str | None) -> None:
    """Fill the cache with the files that the builder is about to read, and compare their checksums."""
    options = {"repo_type": "dataset", "revision": builder.hash, "token": token}
    for name in chain.from_iterable(_names(builder, hub_id).values()):
        endpoint = datasets.config.HF_ENDPOINT
        path = Path(retry(lambda: hf_hub_download(hub_id, name, endpoint=endpoint, **options)))  # noqa: B023
        if not is_intact(path):
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise DataError(f"{name} of {hub_id} arrived damaged and was removed from the cache: try again.")


def _check_files(builder: datasets.DatasetBuilder, hub_id: str) -> None:
    """Refuse files in several splits, and Parquet files in the cache that are empty or differ in class names."""
    found: dict[str, dict[str, Feature]] = {}
    splits = _names(builder, hub_id)
    for split, names in splits.items():
        if several := [name for other in splits if other != split for name in splits[other] if name in set(names)]:
            raise DataError(
                f"{hub_id} has files in several splits, by words anywhere in their names: {some(several)}. Put its "
                "files into a local folder (--dataset PATH), where splits are top folders alone."
            )
        for name in names:
            path = try_to_load_from_cache(hub_id, name, repo_type="dataset", revision=builder.hash)
            if isinstance(path, str) and name.endswith(".parquet"):
                with ParquetFile(path) as file:
                    found[name] = features_of(file.schema_arrow)
                    if file.num_row_groups and not file.metadata.row_group(0).num_rows:  # the library cannot read it
                        raise DataError(f"{name}, of the {split} split of {hub_id}, is empty.")
    for name, features in found.items():
        first = next(iter(found))
        if features != found[first]:
            raise DataError(
                f"{first} and {name} of {hub_id} differ in their columns or class names: put its Parquet files into a "
                "local folder (--dataset PATH), where the classes of each split are taken by their names."
            )


def _diagnose(error: Exception, hub_id: str, revision: str | None, token: str | None) -> str:
    """Why a set could not be loaded: what the library says, after what the Hub itself says of the set."""
    try:
        api = HfApi(endpoint=datasets.config.HF_ENDPOINT, token=token)
        api.dataset_info(hub_id, revision=revision, timeout=10)
    except Exception as failure:  # as above
        return f"{explain(failure, hub_id, datasets.config.HF_ENDPOINT)} ({short(error.__cause__ or error)})"
    return short(error.__cause__ or error)


def _splits(builder: datasets.DatasetBuilder) -> Stored:
    """All splits; one without rows has no columns either, which `datasets.load_dataset` would not stand."""
    builder.download_and_prepare()
    found = {}
    for name, size in builder.info.splits.items():
        rows = builder.as_dataset(name) if size.num_examples else None
        table = (
            Table(pa.table({})) if rows is None else Table.of(rows.data.table, read_features(rows.features.to_dict()))
        )
        found[name] = lambda table=table: table
    return found
