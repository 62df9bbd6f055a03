"""Requests to the Hugging Face Hub: what is tried again, and what a failure means in one sentence."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from huggingface_hub import constants
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

__all__ = ["PAUSES", "causes", "explain", "is_busy", "is_transient", "retry"]

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
