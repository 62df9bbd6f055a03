"""Data sets from the Hub with the real client: cache, revisions, tokens, faults and what is said when nothing helps."""

import io

import datasets
import huggingface_hub.constants
import pytest
from hub_server import TOKEN, Fault, Repo
from pictures import images

from timm_ebl.data import load_dataset
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
TEST_FILE = "plain_text/test-00000-of-00001.parquet"
GET_TEST_FILE = "GET .*/resolve/.*test.*parquet"


def parquet(labels):
    names = [str(digit) for digit in range(10)]
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    buffer = io.BytesIO()
    columns = {"img": images(len(labels)), "label": labels}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(buffer)
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
