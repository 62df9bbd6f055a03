"""Data sets from the Hub with the real client: cache, revisions, tokens, faults and what is said when nothing helps."""

import errno
import io
import shutil
from pathlib import Path

import datasets
import huggingface_hub.constants
import pytest
from hub_server import TOKEN, Fault, Repo
from pictures import images
from pyarrow.parquet import write_table

from timm_ebl.data.dataset import load_dataset
from timm_ebl.errors import DataError

CARD = b"""---
configs:
- config_name: plain_text
  data_files:
  - split: train
    path: plain_text/train-*
  - split: test
    path: plain_text/test-*
---
"""
DIGITS = [str(digit) for digit in range(10)]
TEST_FILE = "plain_text/test-00000-of-00001.parquet"
GET_TEST_FILE = "GET .*/resolve/.*test.*parquet"


def parquet(labels, names=DIGITS, empty_group=False):
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    buffer = io.BytesIO()
    columns = {"img": images(len(labels)), "label": labels}
    data = datasets.Dataset.from_dict(columns, features=features)
    if empty_group:
        write_table(data.data.table, buffer)
    else:
        data.to_parquet(buffer)
    return buffer.getvalue()


@pytest.fixture
def repo(hub):
    """CIFAR-10 with two revisions of the test split: labels 1 2 3, then 4 5 6."""
    files = {"README.md": CARD, "plain_text/train-00000-of-00001.parquet": parquet([0, 1])}
    commits = [{**files, TEST_FILE: parquet(labels)} for labels in ([1, 2, 3], [4, 5, 6])]
    hub.repos["datasets", "uoft-cs/cifar10"] = Repo(commits=commits)
    return hub.repos["datasets", "uoft-cs/cifar10"]


@pytest.fixture
def go_offline(monkeypatch):
    def go():
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)

    return go


def labels(**options):
    return load_dataset("cifar10", "test", **options).labels.tolist()


def test_the_newest_revision_comes_from_the_hub_and_then_from_the_cache(hub, repo):
    assert labels() == [4, 5, 6]
    assert hub.count(GET_TEST_FILE) == 1
    assert labels() == [4, 5, 6]
    assert hub.count(GET_TEST_FILE) == 1


def test_a_revision_can_be_pinned(hub, repo):
    assert labels(revision=repo.sha(0)) == [1, 2, 3]
    assert labels() == [4, 5, 6]


def test_offline_the_cached_copy_is_used(hub, repo, go_offline):
    labels()
    go_offline()
    asked = len(hub.requests)
    assert labels() == [4, 5, 6]
    assert len(hub.requests) == asked


def test_offline_a_pinned_revision_is_kept_to(hub, repo, go_offline):
    labels()
    labels(revision=repo.sha(0))
    go_offline()
    assert labels(revision=repo.sha(0)) == [1, 2, 3]
    assert labels(revision=repo.sha(1)) == [4, 5, 6]
    assert labels(revision=repo.sha(1)[:10]) == [4, 5, 6]
    assert labels(revision="main") == [4, 5, 6]
    with pytest.raises(DataError, match=rf"not in the cache at revision v2, .*the cache has .*{repo.sha(0)}"):
        labels(revision="v2")


def test_a_hub_that_dies_leaves_the_cached_copy_of_the_revision(hub, repo, monkeypatch):
    labels(revision=repo.sha(0))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")
    assert labels(revision=repo.sha(0)) == [1, 2, 3]
    with pytest.raises(DataError, match="not in the cache at revision"):
        labels(revision=repo.sha(1))


def test_offline_without_a_copy(hub, repo, go_offline):
    go_offline()
    with pytest.raises(DataError, match=r"uoft-cs/cifar10 is not in the cache, and HF_HUB_OFFLINE forbids"):
        labels()


def test_an_unreachable_hub_is_named_with_what_helps(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DataError) as refusal:
        load_dataset("svhn")
    for words in ("ufldl-stanford/svhn", "http://127.0.0.1:9 cannot be reached", "--dataset PATH", "--data-root"):
        assert words in str(refusal.value), refusal.value
    assert "fashion-mnist-sample" in str(refusal.value)


def test_what_the_hub_does_not_have(hub, repo):
    with pytest.raises(DataError, match=r"there is no repository ufldl-stanford/svhn on http://127.0.0.1"):
        load_dataset("svhn")
    with pytest.raises(DataError, match="uoft-cs/cifar10 has no such revision"):
        labels(revision="v9")
    with pytest.raises(DataError, match=r"BuilderConfig 'none' not found. Available: .'plain_text'"):
        labels(config="none")


def test_a_private_set_needs_the_token(hub, repo, monkeypatch, tmp_path):
    repo.private = True
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(DataError, match="or it is private; if it is, log in with `hf auth login`, or set HF_TOKEN"):
        labels()
    assert labels(token=TOKEN) == [4, 5, 6]


def test_the_token_of_the_environment_is_used(hub, repo):
    repo.private = True
    assert labels() == [4, 5, 6]


@pytest.mark.parametrize("fault", [Fault.UNAVAILABLE, Fault.DROPPED, Fault.CUT])
def test_a_failing_download_is_tried_again(hub, repo, fault):
    hub.plan(fault, GET_TEST_FILE)
    assert labels() == [4, 5, 6]


def test_a_corrupt_download_is_refused_and_forgotten(hub, repo):
    hub.plan(Fault.CORRUPT, GET_TEST_FILE)
    with pytest.raises(DataError, match=r"test-00000-of-00001.parquet of uoft-cs/cifar10 arrived damaged"):
        labels()
    assert labels() == [4, 5, 6]


def damage(path):
    """Remove a cached file or leave half of it."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def prepared():
    """The files that the library has made of the set."""
    return list(Path(datasets.config.HF_DATASETS_CACHE).rglob("*.arrow"))


@pytest.mark.parametrize("harm", [Path.unlink, damage])
def test_a_cleared_or_damaged_cache_is_filled_again(hub, repo, harm):
    labels()
    for file in prepared():
        harm(file)
    assert labels() == [4, 5, 6]
    for cache in (huggingface_hub.constants.HF_HUB_CACHE, datasets.config.HF_DATASETS_CACHE):
        shutil.rmtree(cache)
        assert labels() == [4, 5, 6]


def test_offline_a_damaged_cache_is_called_one(hub, repo, go_offline):
    labels()
    for file in prepared():
        file.unlink()
    go_offline()
    with pytest.raises(DataError, match=r"cannot load uoft-cs/cifar10: the cache in .* cannot be used \(.*HF_HOME"):
        labels()


@pytest.mark.parametrize("full", [False, True])
def test_a_cache_that_cannot_be_written_is_named_with_what_moves_it(hub, repo, monkeypatch, tmp_path, full):
    if full:

        def fail(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device", "hub/blobs/x")

        monkeypatch.setattr("timm_ebl.data.hub_source.hf_hub_download", fail)
    else:
        (tmp_path / "file").touch()
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    with pytest.raises(DataError) as refusal:
        labels()
    for words in ("the cache in", "Not a directory" if not full else "No space left", "HF_HOME", "--data-root PATH"):
        assert words in str(refusal.value), refusal.value
    assert "from the Hugging Face Hub" not in str(refusal.value)


def test_files_that_name_their_classes_in_another_order_are_refused(hub, repo):
    repo.commits.append({**repo.commits[-1], TEST_FILE: parquet([4, 5, 6], DIGITS[::-1])})
    for _ in "ab":  # when the files arrive, and when the library has made its copy of them
        with pytest.raises(DataError, match=r"train-00000-of-00001.parquet and .*test-00000.* differ in their columns"):
            labels()
        datasets.load_dataset("uoft-cs/cifar10", "plain_text")


@pytest.mark.parametrize("empty_group", [False, True])
@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_split_is_said(hub, repo, split, empty_group):
    file = parquet([], empty_group=empty_group)
    repo.commits.append({**repo.commits[-1], f"plain_text/{split}-00000-of-00001.parquet": file})
    with pytest.raises(DataError, match=f"the {split} split of .*cifar10,? is empty"):
        load_dataset("cifar10", split)


def test_files_that_words_in_their_names_put_into_several_splits_are_refused(hub):
    paths = [f"{split}/{name}/0.png" for split in ("train", "test") for name in ("bus", "train")]
    files = {path: image["bytes"] for path, image in zip(paths, images(4), strict=True)}
    hub.repos["datasets", "owner/pets"] = Repo(commits=[files])
    with pytest.raises(DataError, match=r"has files in several splits, .*: test/train/0.png.*local folder"):
        load_dataset("owner/pets")
