"""Requests to the Hugging Face Hub: what is tried again, and what a failure means in one sentence."""

from __future__ import annotations

import hashlib
import re
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..errors import HubError

__all__ = ["PAUSES", "causes", "explain", "fetch", "is_busy", "is_intact", "is_transient", "retry"]

PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds between one try and the next."""

_HTTP_LIBRARIES = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "aiohttp")

Result = TypeVar("Result")


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what caused it."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _status(error: BaseException) -> int | None:
    responses = (e.response for e in causes(error) if isinstance(e, HfHubHTTPError))
    return next((response.status_code for response in responses if response is not None), None)


def _is_broken_connection(error: BaseException) -> bool:
    return isinstance(error, (ConnectionError, TimeoutError)) or type(error).__module__.split(".")[0] in _HTTP_LIBRARIES


def is_busy(error: BaseException) -> bool:
    """Whether the Hub answered that it cannot answer now: a 5xx or a rate limit."""
    status = _status(error)
    return status is not None and (status in (408, 429) or status >= 500)


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later: the Hub is busy, or the connection broke."""
    final = (OfflineModeIsEnabled, LocalTokenNotFoundError, HFValidationError)
    if constants.HF_HUB_OFFLINE or any(isinstance(e, final) for e in causes(error)):
        return False
    if _status(error) is not None:
        return is_busy(error)
    return any(_is_broken_connection(e) for e in causes(error))


def retry(
    call: Callable[[], Result],
    pauses: tuple[float, ...] | None = None,
    when: Callable[[BaseException], bool] = is_transient,
) -> Result:
    """The result of a request that is safe to repeat, tried again after a pause while its failure is transient.

    Args:
        call: Makes the request.
        pauses: Seconds between the tries; as many tries as pauses, and one. By default `PAUSES`.
        when: Which failures are worth another try.

    Raises:
        Exception: What the last try, or the first one that failed for good, raised.
    """
    for pause in PAUSES if pauses is None else pauses:
        try:
            return call()
        except Exception as error:
            if not when(error):
                raise
        time.sleep(pause)
    return call()


def is_intact(path: Path) -> bool:
    """Whether a file of the Hub's cache has the checksum that names it: its SHA-256, or Git's if it is small."""
    stored = path.resolve()
    if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", stored.name):
        return True  # copied, as where there are no links: its checksum is not known
    content = stored.read_bytes()
    if len(stored.name) == 64:
        return hashlib.sha256(content).hexdigest() == stored.name
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == stored.name


def fetch(repo_id: str, name: str, revision: str | None = None, cache_dir: str | Path | None = None) -> Path:
    """A file of a model repository, from the cache or the Hub; a damaged one is fetched again.

    Args:
        repo_id: The repository.
        name: The file.
        revision: Branch, tag or commit.
        cache_dir: Cache of the Hub, by default its own.

    Raises:
        HubError: It is damaged, and cannot be fetched whole.
        Exception: What the client raised (`explain`).
    """

    def get(force: bool) -> Path:
        options = {"revision": revision, "cache_dir": cache_dir, "force_download": force}
        return Path(retry(lambda: hf_hub_download(repo_id, name, **options)))

    path = get(force=False)
    if is_intact(path):
        return path
    try:
        path = get(force=True)
    except Exception as error:  # the client's errors and those of the HTTP library below have no common type
        raise HubError(f"{name} is damaged in the cache: {explain(error, repo_id)}") from error
    if not is_intact(path):
        path.resolve().unlink()
        raise HubError(f"{name} of {repo_id} arrived damaged twice and was removed from the cache: try again")
    return path


def explain(error: BaseException, repo_id: str, endpoint: str | None = None) -> str:
    """Why a request failed and what to do about it, without a full stop at the end.

    Args:
        error: What the client raised.
        repo_id: The repository asked for.
        endpoint: The Hub asked; by default that of ``HF_ENDPOINT``.
    """
    endpoint = endpoint or constants.ENDPOINT
    status = _status(error)
    found = list(causes(error))

    def caused_by(*types: type[BaseException]) -> bool:
        return any(isinstance(cause, types) for cause in found)

    if caused_by(HubError):
        return str(error)
    login = "log in with `hf auth login`, or set HF_TOKEN"
    if caused_by(LocalTokenNotFoundError):
        return f"there is no access token for {endpoint}: {login}"
    if caused_by(OfflineModeIsEnabled) or (caused_by(LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE):
        return f"{repo_id} is not in the cache, and HF_HUB_OFFLINE forbids the network: unset it, or fill the cache"
    if caused_by(GatedRepoError):
        return f"{repo_id} is gated: accept its conditions on {endpoint}/{repo_id}"
    if caused_by(RevisionNotFoundError):
        return f"{repo_id} has no such revision"
    if caused_by(RepositoryNotFoundError):
        return f"there is no repository {repo_id} on {endpoint}, or it is private; if it is, {login}"
    if status == 401:
        return f"{endpoint} does not accept the access token: {login}"
    if status == 403:
        return f"the access token has no permission for {repo_id} on {endpoint}: use one that may write there"
    if status == 404 or (caused_by(EntryNotFoundError) and not caused_by(LocalEntryNotFoundError)):
        return f"{repo_id} lacks a file that was asked for ({_short(error)})"
    if status is not None and status >= 500:
        return f"{endpoint} is out of order (status {status}): try again later"
    if caused_by(LocalEntryNotFoundError) or any(map(_is_broken_connection, found)):
        return f"{endpoint} cannot be reached for {repo_id}: check the network and HF_ENDPOINT"
    return f"{endpoint} refused the request for {repo_id} ({_short(error)})"


def _short(error: BaseException) -> str:
    return textwrap.shorten(str(error), 200)
