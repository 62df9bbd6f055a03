"""Loading of data sets: small stand-ins of each schema, the embedded sample, and every refusal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from pictures import encode, images, pixels, write_plain, write_split
from PIL import Image
from pyarrow.parquet import read_table, write_table

from timm_ebl.data.catalogue import DATASETS, DatasetSpec
from timm_ebl.data.dataset import list_datasets, load_dataset
from timm_ebl.errors import DataError

SHARED = Path(__file__).parents[2] / "shared" / "data"
DIGITS = [str(digit) for digit in range(10)]


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what the ``datasets`` library writes within the test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def hub_copies(tmp_path: Path) -> Path:
    """Stand-ins of the named data sets: two splits each, in the Hub's layout."""
    root = tmp_path / "hub"
    image, digits = datasets.Image(), datasets.ClassLabel(names=DIGITS)
    for split, first in (("train", 0), ("test", 100)):
        labels = [3, 1, 4, 1, 5]
        grey, colour = images(5, 28, 1, first), images(5, 32, 3, first)
        features = {"image": image, "label": digits}
        write_split(root / "ylecun/mnist/mnist", {"image": grey, "label": labels}, features, split)
        write_split(
            root / "zalando-datasets/fashion_mnist/fashion_mnist", {"image": grey, "label": labels}, features, split
        )
        write_split(root / "ufldl-stanford/svhn/cropped_digits", {"image": colour, "label": labels}, features, split)
        write_split(root / "ufldl-stanford/svhn/full_numbers", {"image": colour, "label": labels}, features, split)
        features = {"img": image, "label": digits}
        write_split(root / "uoft-cs/cifar10/plain_text", {"img": colour, "label": labels}, features, split)
        features = {
            "img": image,
            "fine_label": datasets.ClassLabel(names=[f"fine{index}" for index in range(100)]),
            "coarse_label": datasets.ClassLabel(names=[f"coarse{index}" for index in range(20)]),
        }
        columns = {"img": colour, "fine_label": [99, 0, 4, 1, 50], "coarse_label": [19, 0, 2, 1, 9]}
        write_split(root / "uoft-cs/cifar100/cifar100", columns, features, split)
    return root


class TestNamedSets:
    def test_names(self) -> None:
        assert list_datasets() == ["mnist", "fashion-mnist", "svhn", "cifar10", "cifar100", "fashion-mnist-sample"]

    @pytest.mark.parametrize("name", ["svhn", "cifar10"])
    def test_colour_sets_keep_every_pixel(self, hub_copies: Path, name: str) -> None:
        dataset = load_dataset(name, "test", root=hub_copies)
        expected = np.stack([pixels(100 + row, 32, 3) for row in range(5)]).transpose(0, 3, 1, 2)
        assert torch.equal(dataset.images, torch.from_numpy(expected))
        assert dataset.images.is_contiguous()
        assert dataset.labels.tolist() == [3, 1, 4, 1, 5]
        assert dataset.labels.dtype == torch.int64
        assert (dataset.classes, dataset.name, dataset.spec) == (tuple(DIGITS), name, DATASETS[name])

    @pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
    def test_grey_sets_are_centred_on_black(self, hub_copies: Path, name: str) -> None:
        dataset = load_dataset(name, root=hub_copies)
        assert dataset.images.shape == (5, 1, 32, 32)
        assert torch.equal(dataset.images[0, 0, 2:-2, 2:-2], torch.from_numpy(pixels(0, 28, 1)))
        border = dataset.images.clone()
        border[:, :, 2:-2, 2:-2] = 0
        assert not border.any()

    def test_cifar100_uses_the_fine_labels(self, hub_copies: Path) -> None:
        dataset = load_dataset("cifar100", root=hub_copies)
        assert dataset.labels.tolist() == [99, 0, 4, 1, 50]
        assert len(dataset.classes) == 100
        coarse = load_dataset("cifar100", root=hub_copies, label_column="coarse_label")
        assert coarse.labels.tolist() == [19, 0, 2, 1, 9]
        assert len(coarse.classes) == 20

    def test_hub_id_of_a_named_set_has_its_specification(self, hub_copies: Path) -> None:
        assert load_dataset("uoft-cs/cifar10", root=hub_copies).spec == DATASETS["cifar10"]

    def test_another_id_under_root(self, hub_copies: Path) -> None:
        write_plain(hub_copies / "owner/name", [0, 1])
        assert load_dataset("owner/name", root=hub_copies).spec == DatasetSpec("owner/name")

    def test_copy_missing_under_root(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"there is no folder .*cifar10"):
            load_dataset("cifar10", root=tmp_path)

    def test_hub_is_asked_with_the_right_arguments(self, hub_copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = []
        folder = str(hub_copies / "uoft-cs/cifar10/plain_text")
        builder = datasets.load_dataset_builder(folder)

        def pretend(*args: object, **kwargs: object) -> datasets.DatasetBuilder:
            seen.append((args, kwargs))
            return builder

        monkeypatch.setattr(datasets, "load_dataset_builder", pretend)
        assert load_dataset("cifar10", revision="main", token="secret").labels.tolist() == [3, 1, 4, 1, 5]
        assert seen == [(("uoft-cs/cifar10", "plain_text"), {"revision": "main", "token": "secret"})]


class TestRefusals:
    def test_unknown_name(self) -> None:
        with pytest.raises(DataError, match=r"'cifar' is neither .*mnist, .*cifar100.* nor a local folder nor an id"):
            load_dataset("cifar")

    def test_hub_without_the_package_that_reads_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "datasets", None)
        monkeypatch.delitem(sys.modules, "timm_ebl.data.hub_source", raising=False)
        with pytest.raises(DataError, match=r"^cifar10 is on the Hugging Face Hub, .* missing \(datasets\): install"):
            load_dataset("cifar10")

    def test_missing_folder(self) -> None:
        with pytest.raises(DataError, match="nor a local folder"):
            load_dataset("./no/such/folder")

    def test_wrong_split(self, hub_copies: Path) -> None:
        with pytest.raises(DataError, match="cifar10 has no split 'validation'; it has test, train"):
            load_dataset("cifar10", "validation", root=hub_copies)

    def test_empty_split(self, tmp_path: Path) -> None:
        folder = write_plain(tmp_path / "plain", [0, 1])
        write_plain(folder, [], "test")
        with pytest.raises(DataError, match=r"the test split of .* is empty"):
            load_dataset(str(folder), "test")
        assert len(load_dataset(str(folder), "train")) == 2

    @pytest.mark.parametrize("damaged", [b"no image", images(1)[0]["bytes"][:200]])
    def test_undecodable_image(self, tmp_path: Path, damaged: bytes) -> None:
        columns = {"image": [*images(2), {"bytes": damaged, "path": None}], "label": [0, 1, 0]}
        features = {"image": datasets.Image(), "label": datasets.Value("int64")}
        folder = write_split(tmp_path / "damaged", columns, features)
        with pytest.raises(DataError, match=r"train split of .*the image in row 2 cannot be decoded"):
            load_dataset(str(folder))

    def test_missing_image(self, tmp_path: Path) -> None:
        columns = {"image": [images(1)[0], None], "label": [0, 1]}
        features = {"image": datasets.Image(), "label": datasets.Value("int64")}
        with pytest.raises(DataError, match="row 1 is missing"):
            load_dataset(str(write_split(tmp_path / "missing", columns, features)))

    def test_image_of_16_bits(self, tmp_path: Path) -> None:
        deep = encode(Image.fromarray(np.full((8, 8), 40000, dtype=np.uint16)))
        features = {"image": datasets.Image(), "label": datasets.Value("int64")}
        folder = write_split(tmp_path / "deep", {"image": [deep], "label": [0]}, features)
        with pytest.raises(DataError, match="row 0 has more than 8 bits"):
            load_dataset(str(folder))

    def test_hidden_class_label(self, tmp_path: Path) -> None:
        features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
        folder = write_split(tmp_path / "hidden", {"image": images(2), "label": [0, -1]}, features)
        with pytest.raises(DataError, match=r"row 1 of .* the label -1, outside the classes 0 to 1 .*another split"):
            load_dataset(str(folder))

    def test_class_label_beyond_the_names(self, tmp_path: Path) -> None:
        folder = write_plain(tmp_path / "hub" / "ylecun/mnist/mnist", [0, 12])
        file = folder / "train-00000-of-00001.parquet"
        table = read_table(file)
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=DIGITS)})
        write_table(table.replace_schema_metadata(features.arrow_schema.metadata), file)
        with pytest.raises(DataError, match="12"):
            load_dataset("mnist", root=tmp_path / "hub")

    @pytest.mark.parametrize("label", [-3, 2**16, 2**40])
    def test_integer_label_out_of_range(self, tmp_path: Path, label: int) -> None:
        with pytest.raises(DataError, match=f"row 1 of .* has the label {label}, outside"):
            load_dataset(str(write_plain(tmp_path / "plain", [0, label])))

    def test_revision_without_hub(self) -> None:
        with pytest.raises(DataError, match="revision can be chosen on the Hub only"):
            load_dataset(None, revision="main")

    def test_configuration_of_the_sample(self) -> None:
        with pytest.raises(DataError, match="no configuration 'small'"):
            load_dataset(None, config="small")

    def test_image_size(self) -> None:
        with pytest.raises(DataError, match="image_size must be at least 1"):
            load_dataset(None, image_size=0)

    @pytest.mark.parametrize(
        ("failure", "message"),
        [
            (ConnectionError("no route"), r"cannot load uoft-cs/cifar10 .* at http.*\(no route\)\. .*--data-root"),
            (datasets.exceptions.DatasetNotFoundError("gated"), r"cannot load uoft-cs/cifar10 from .*\(gated\)"),
            (ValueError("BuilderConfig not found"), r"cannot load uoft-cs/cifar10 from .*\(BuilderConfig not found\)"),
        ],
    )
    def test_failures_of_the_hub(self, monkeypatch: pytest.MonkeyPatch, failure: Exception, message: str) -> None:
        def fail(*args: object, **kwargs: object) -> None:
            raise failure

        monkeypatch.setattr(datasets, "load_dataset_builder", fail)
        monkeypatch.setattr("timm_ebl.data.requests.PAUSES", (0.0,))
        with pytest.raises(DataError, match=message):
            load_dataset("cifar10")


def test_without_a_network(tmp_path: Path) -> None:
    """In a fresh process that cannot reach the Hub, the sample loads and a named set is refused at once."""
    script = """
from timm_ebl.errors import DataError
from timm_ebl.data.dataset import load_dataset
print(len(load_dataset(None)))
try:
    load_dataset("svhn")
except DataError as error:
    print(error)
"""
    offline = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    environment = {**os.environ, **offline, "PYTHONPATH": str(Path(__file__).parents[1])}
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    size, message = result.stdout.splitlines()
    assert size == "5000"
    for part in ("ufldl-stanford/svhn", "http://127.0.0.1:9", "--dataset PATH", "--data-root", "fashion-mnist-sample"):
        assert part in message
