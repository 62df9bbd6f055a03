"""Where the splits of a data set come from: a local folder, or the Hugging Face Hub and its cache."""

from __future__ import annotations

import hashlib
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path

import datasets
from datasets.packaged_modules.cache.cache import Cache
from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.file_download import repo_folder_name

from .connection import explain, is_busy, retry
from .errors import DataError
from .spec import EMBEDDED

__all__ = ["read_folder", "read_hub"]


def read_folder(folder: Path, config: str | None, split: str) -> Mapping[str, datasets.Dataset | None]:
    """All splits of a local folder, ``None`` for an empty one.

    Args:
        folder: Parquet files in the Hub's layout, or images in ``<split>/<class>/``.
        config: Configuration, for folders that have several.
        split: The split that will be used.

    Raises:
        DataError: The folder does not exist, is ambiguous or cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}.")
    configs = sorted({file.parent.name for file in folder.glob(f"*/{split}*.parquet")})
    if config is None and len(configs) > 1:
        raise DataError(f"{folder} has several configurations, {', '.join(configs)}; choose one by config=.")
    if config is not None and (folder / config).is_dir():
        folder, config = folder / config, None
    try:
        return _splits(datasets.load_dataset_builder(str(folder.resolve()), config))
    except Exception as error:  # the readers of the file formats raise errors of many types
        raise DataError(f"cannot read {folder}: {_reason(error)}") from error


def read_hub(
    hub_id: str, config: str | None, revision: str | None, token: str | None
) -> Mapping[str, datasets.Dataset | None]:
    """All splits of a set on the Hub, or of its cached copy; ``None`` for an empty one.

    The library takes whatever copy is newest when it cannot reach the Hub, compares no checksums and gives up at the
    first 5xx answer to the request for a file: all three are seen to here.

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
        if isinstance(builder, Cache) and revision is not None:
            builder = _choose_copy(builder, hub_id, revision)
        elif not Path(builder.cache_dir).is_dir():
            _download(builder, hub_id, token)
        return _splits(builder)
    except DataError:
        raise
    except Exception as error:  # the failures of the libraries below have no common type
        raise DataError(
            f"cannot load {hub_id} from the Hugging Face Hub at {datasets.config.HF_ENDPOINT}: "
            f"{_diagnose(error, hub_id, revision, token)}. A local folder (--dataset PATH), copies in the Hub's layout "
            f"(--data-root PATH) or the embedded sample (--dataset {EMBEDDED}) can be used instead."
        ) from error


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


def _download(builder: datasets.DatasetBuilder, hub_id: str, token: str | None) -> None:
    """Fill the cache with the files that the builder is about to read, and compare their checksums."""
    prefix = f"hf://datasets/{hub_id}@{builder.hash}/"
    files = [file for split in (builder.config.data_files or {}).values() for file in split]
    for file in files:
        name = str(file).removeprefix(prefix)
        if name == str(file):
            continue
        options = {"repo_type": "dataset", "revision": builder.hash, "token": token}
        endpoint = datasets.config.HF_ENDPOINT
        path = Path(retry(lambda: hf_hub_download(hub_id, name, endpoint=endpoint, **options)))  # noqa: B023
        stored = path.resolve()  # the cache names large files by their SHA-256
        is_named = re.fullmatch("[0-9a-f]{64}", stored.name)
        if is_named and hashlib.sha256(stored.read_bytes()).hexdigest() != stored.name:
            stored.unlink()
            path.unlink(missing_ok=True)
            raise DataError(f"{name} of {hub_id} arrived damaged and was removed from the cache: try again.")


def _diagnose(error: Exception, hub_id: str, revision: str | None, token: str | None) -> str:
    """Why a set could not be loaded: what the library says, after what the Hub itself says of the set."""
    try:
        api = HfApi(endpoint=datasets.config.HF_ENDPOINT, token=token)
        api.dataset_info(hub_id, revision=revision, timeout=10)
    except Exception as failure:  # as above
        return f"{explain(failure, hub_id, datasets.config.HF_ENDPOINT)} ({_reason(error)})"
    return _reason(error)


def _splits(builder: datasets.DatasetBuilder) -> Mapping[str, datasets.Dataset | None]:
    """All splits, ``None`` for an empty one, which `datasets.load_dataset` would not stand."""
    builder.download_and_prepare()
    return {name: builder.as_dataset(name) if size.num_examples else None for name, size in builder.info.splits.items()}


def _reason(error: Exception) -> str:
    return textwrap.shorten(str(error.__cause__ or error), 300)
