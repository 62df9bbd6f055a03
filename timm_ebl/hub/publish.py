"""Sending a checkpoint to a model repository of the Hugging Face Hub."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.hf_api import ModelInfo
from huggingface_hub.utils import validate_repo_id

from ..data.requests import explain, is_transient, retry
from ..errors import CheckpointError, HubError, WeightsError
from ..models.weights import CONFIG, WEIGHTS, read_config
from ..training.files import temporary_folder, writing
from ..training.finding import RECORDS
from ..training.records import CARD
from ..training.trained import TrainedModel
from .card import render_card
from .package import stage
from .verify import verify

if TYPE_CHECKING:
    from ..data.dataset import ImageDataset

__all__ = ["check_access", "publish"]

_SAME = "unchanged"

Result = TypeVar("Result")


def publish(
    source: str | Path,
    repo_id: str,
    *,
    test: ImageDataset | None = None,
    data_root: str | Path | None = None,
    dataset: str | None = None,
    private: bool = False,
    dry_run: bool = False,
) -> str:
    """Send a run or a packaged checkpoint to a model repository on the Hub; of an earlier version only what changed.

    The error is measured again before anything is sent. Requests are tried again after 5xx answers and broken
    connections; after an interruption, the same call goes on where it was. The checksums of what arrived are compared.

    Args:
        source: Folder of a run, folder in `hub_configs/`, or name of a shipped model.
        repo_id: The repository, ``owner/name``; made if there is none.
        test: The test split, if it is loaded already.
        data_root: Folder with copies of Hub data sets.
        dataset: Folder with the data set, if it is not where the recipe says.
        private: Make a new repository private.
        dry_run: Only print what would be sent.

    Returns:
        The address of the commit; that of the repository if nothing was sent.

    Raises:
        CheckpointError: The checkpoint is incomplete, or its measured error is not what its files say.
        DataError: The test split cannot be loaded.
        HubError: No token, no permission, a name that is taken, no network.
    """
    api = HfApi()
    checkpoint = TrainedModel.open(source)
    if not dry_run:
        check_access(repo_id, checkpoint.config["architecture"])
    test = test or checkpoint.test_split(data_root, dataset)
    with temporary_folder() as folder:
        with writing(folder):
            _prepare(checkpoint, folder, repo_id, test)
        remote = _remote(api, repo_id)
        changes = _compare(api, folder, repo_id, remote and remote.sha)
        for name, change in changes.items():
            print(f"{change:>9}  {name}  {(folder / name).stat().st_size:,} bytes")
        if dry_run or {*changes.values()} == {_SAME}:
            print("nothing was sent" + (" (--dry-run)" if dry_run else ""))
            return f"{api.endpoint}/{repo_id}"
        if remote is None:
            _ask(lambda: api.create_repo(repo_id, private=private, exist_ok=True), repo_id)
        said = "Checkpoint, card and records of timm_ebl"
        commit = _ask(lambda: api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=said), repo_id)
        for name, change in _compare(api, folder, repo_id, commit.oid).items():
            if change != _SAME:
                raise HubError(f"{name} arrived damaged at {repo_id}: publish again.")
    print(f"published, checksums compared: {commit.commit_url}")
    return commit.commit_url


def check_access(repo_id: str, architecture: str | None = None) -> None:
    """Find out before any work whether a repository can be written to.

    Args:
        repo_id: The repository, ``owner/name``.
        architecture: The model that is to be there, if it is known already.

    Raises:
        HubError: The name cannot be one, there is no token or it may not write there, or another model has the name.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise HubError(f"{repo_id!r} cannot be the name of a repository ({error}).") from None
    if repo_id.count("/") != 1:
        raise HubError(f"{repo_id!r} is no name of a repository: it is OWNER/NAME.")
    api = HfApi()
    account = _ask(api.whoami, repo_id)
    role = account.get("auth", {}).get("accessToken", {}).get("role")
    owners = [account["name"], *(organisation["name"] for organisation in account.get("orgs", []))]
    if role == "read" or (role == "write" and repo_id.partition("/")[0] not in owners):
        raise HubError(
            f"The access token of {account['name']} may not write to {repo_id}: use one with write access of an owner "
            f"of that name (this one writes to {', '.join(owners) if role == 'write' else 'nothing'})."
        )
    _check_free(repo_id, _remote(api, repo_id), architecture)


def _prepare(checkpoint: TrainedModel, folder: Path, repo_id: str, test: ImageDataset) -> None:
    """Fill a folder with what is to be published, after measuring it."""
    if not checkpoint.is_packaged:
        stage(checkpoint, folder, repo_id.partition("/")[2], f"hf-hub:{repo_id}", test)
        return
    for file in RECORDS:
        if not checkpoint.record(file).is_file():
            raise CheckpointError(f"{checkpoint.name} cannot be published: it has no {file}.")
    verify(checkpoint.records or checkpoint.weights, test=test)
    for file in (WEIGHTS, CONFIG):
        shutil.copyfile(checkpoint.weights / file, folder / file)
    for file in RECORDS:
        shutil.copyfile(checkpoint.record(file), folder / file)
    name = checkpoint.name.rpartition("/")[2]
    recipe = checkpoint.recipe
    card = render_card(name, f"hf-hub:{repo_id}", recipe, checkpoint.summary, checkpoint.config)
    (folder / CARD).write_text(card, encoding="utf-8")


def _remote(api: HfApi, repo_id: str) -> ModelInfo | None:
    """What the Hub has under a name; ``None`` if nothing."""
    try:
        return retry(lambda: api.model_info(repo_id))
    except RepositoryNotFoundError:
        return None
    except Exception as error:  # the client's errors and those of the HTTP library below have no common type
        raise HubError(f"{repo_id} cannot be looked up: {explain(error, repo_id)}.") from error


def _check_free(repo_id: str, remote: ModelInfo | None, architecture: str | None) -> None:
    """Refuse a repository that holds anything but an earlier version of the same model."""
    files = {sibling.rfilename for sibling in (remote.siblings or [])} if remote else set()
    if not files - {".gitattributes", CARD}:
        return
    holds = "files of another kind"
    if CONFIG in files:
        path = _ask(lambda: hf_hub_download(repo_id, CONFIG, revision=remote.sha), repo_id)
        try:
            config = read_config(Path(path))
        except WeightsError:
            config = {"architecture": "of an unknown kind"}
        if "evaluation" in config and architecture in (None, config["architecture"]):
            return
        holds = f"another model, {config['architecture']}"
    raise HubError(f"The name {repo_id} is taken, by {holds}: choose another one.")


def _compare(api: HfApi, folder: Path, repo_id: str, revision: str | None) -> dict[str, str]:
    """How each file of a folder stands to the one of its name on the Hub: new, changed or unchanged."""
    names = sorted(path.name for path in folder.iterdir())
    if revision is None:
        return dict.fromkeys(names, "new")
    found = _ask(lambda: api.verify_repo_checksums(repo_id, revision=revision, local_dir=folder), repo_id)
    known = dict.fromkeys(found.extra_paths, "new") | {file["path"]: "changed" for file in found.mismatches}
    return {name: known.get(name, _SAME) for name in names}


def _ask(call: Callable[[], Result], repo_id: str) -> Result:
    try:
        return retry(call)
    except Exception as error:  # the client's errors and those of the HTTP library below have no common type
        again = "; publish again to go on" if is_transient(error) else ""
        raise HubError(f"{repo_id} cannot be published: {explain(error, repo_id)}{again}.") from error
