"""The parts of a run's data: which splits are used, whose classes count, and what a run keeps of both."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path

import datasets
import pytest
import timm
import torch
from pictures import encode, images, pixels, write_classes, write_plain, write_split
from PIL import Image
from runs import SMALL, train

from timm_ebl.data.dataset import load_dataset
from timm_ebl.errors import ConfigError, DataError, DataWarning, MissingSplitError
from timm_ebl.hub.package import stage
from timm_ebl.hub.verify import verify
from timm_ebl.models.weights import list_shipped
from timm_ebl.training.build import build_model, build_transform
from timm_ebl.training.config import TrainConfig
from timm_ebl.training.splits import Splits, load_splits, load_test
from timm_ebl.training.trained import TrainedModel

TEN = {"cat": 10, "dog": 10}


def load(folder: Path, **options: object) -> Splits:
    return load_splits(TrainConfig(dataset=str(folder), **options))


def write_named(folder: Path, split: str, names: list[str], labels: list[int], first: int = 0) -> Path:
    """A Parquet file with class labels."""
    columns = {"image": images(len(labels), 8, first=first), "label": labels}
    return write_split(folder, columns, {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}, split)


def rows(*parts: torch.Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for part in parts for image in part]


class TestWhichSplits:
    @pytest.mark.parametrize("name", ["val", "Valid", "validation"])
    def test_a_validation_split_is_the_test_where_there_is_none_which_is_said(self, tmp_path: Path, name: str) -> None:
        write_classes(tmp_path / "train", TEN)
        write_classes(tmp_path / name, {"cat": 1, "dog": 2})
        with pytest.warns(DataWarning, match=f"has no split 'test': '{name}' is its test split"):
            data = load(tmp_path)
        assert [len(part) for part in data] == [18, 2, 3]

    def test_without_another_split_a_fifth_of_the_training_split_is_the_test_which_is_said(
        self, tmp_path: Path
    ) -> None:
        write_classes(tmp_path, TEN)
        with pytest.warns(DataWarning, match="has no test split: a fifth of its images, 4, is held out for the test"):
            data, other = load(tmp_path, seed=0), load(tmp_path, seed=1)
        assert [part.labels.bincount().tolist() for part in data] == [[7, 7], [1, 1], [2, 2]]
        assert len(set(rows(*(part.images for part in data)))) == 20
        assert torch.equal(data.test.images, other.test.images)
        assert torch.equal(data.test.images, load_test(str(tmp_path)).images)
        assert load_test(str(tmp_path)).split == data.test.split == "a fifth of train"

    def test_splits_are_chosen_by_name_and_then_no_other_will_do(self, tmp_path: Path) -> None:
        for split, count in (("train", 10), ("extra", 12), ("test", 2), ("hard", 3)):
            write_plain(tmp_path, [0, 1] * count, split)
        data = load(tmp_path, train_split="extra", test_split="hard")
        assert [len(part) for part in data] == [22, 2, 6]
        with pytest.raises(MissingSplitError, match="no split 'val'; it has extra, hard, test, train"):
            load(tmp_path, test_split="val")
        with pytest.raises(DataError, match="'hard' is the training and the test split of"):
            load(tmp_path, train_split="hard", test_split="hard")

    def test_an_empty_training_split_is_said(self, tmp_path: Path) -> None:
        write_plain(tmp_path, [])
        write_plain(tmp_path, [0, 1], "test")
        with pytest.raises(DataError, match=r"the train split of .* is empty"):
            load(tmp_path)

    def test_one_class_is_said(self, tmp_path: Path) -> None:
        write_classes(tmp_path, {"train/cat": 3, "test/cat": 3})
        with pytest.raises(DataError, match="has images of one class only: nothing can be learnt"):
            load(tmp_path)


class TestClasses:
    def test_class_labels_in_another_order_are_taken_by_name(self, tmp_path: Path) -> None:
        write_named(tmp_path, "train", ["cat", "dog", "fox"], [0, 1, 2] * 10)
        write_named(tmp_path, "test", ["fox", "dog", "cat"], [0, 1, 2, 2], first=100)
        data = load(tmp_path)
        assert data.test.classes == ("cat", "dog", "fox")
        assert data.test.labels.tolist() == [2, 1, 0, 0]

    def test_a_test_split_may_lack_classes(self, tmp_path: Path) -> None:
        write_named(tmp_path, "train", ["cat", "dog", "fox"], [0, 1, 2] * 10)
        write_named(tmp_path, "test", ["fox", "dog"], [1, 0], first=100)
        assert load(tmp_path).test.labels.tolist() == [1, 2]

    @pytest.mark.parametrize(
        ("known", "other"), [("cat", "Cat"), ("caf\u00e9", unicodedata.normalize("NFD", "caf\u00e9")), ("s", "\uff53")]
    )
    @pytest.mark.parametrize("as_folders", [False, True])
    def test_names_that_differ_in_case_or_unicode_form_are_refused(
        self, tmp_path: Path, known: str, other: str, as_folders: bool
    ) -> None:
        if as_folders:
            write_classes(tmp_path, {f"train/{known}": 10, "train/dog": 10, f"test/{other}": 1, "test/dog": 1})
        else:
            write_named(tmp_path, "train", [known, "dog"], [0, 1] * 10)
            write_named(tmp_path, "test", [other, "dog"], [0, 1])
        with pytest.raises(DataError, match=f"the class '{known}' of the split train is called '{other}' in test"):
            load(tmp_path)

    def test_names_that_differ_in_case_in_every_split_are_two_classes_which_is_said(self, tmp_path: Path) -> None:
        write_classes(tmp_path, {f"{split}/{letter}": 10 for split in ("train", "test") for letter in "aA"})
        with pytest.warns(DataWarning, match=r"the classes 'A' and 'a' of .* differ in the case or form"):
            assert load(tmp_path).test.classes == ("A", "a")

    @pytest.mark.parametrize("other", [unicodedata.normalize("NFD", "caf\u00e9"), "caf\u00e9 "])
    def test_names_that_look_the_same_are_refused(self, tmp_path: Path, other: str) -> None:
        write_named(tmp_path, "train", ["caf\u00e9", other], [0, 1] * 10)
        write_named(tmp_path, "test", ["caf\u00e9", other], [0, 1])
        with pytest.raises(DataError, match=r"has the class '.*' twice, in two forms of its Unicode letters or spaces"):
            load(tmp_path)

    def test_texts_in_one_split_and_numbers_in_the_other_are_refused(self, tmp_path: Path) -> None:
        columns = {"image": images(20, 8), "label": ["cat", "dog"] * 10}
        write_split(tmp_path, columns, {"image": datasets.Image(), "label": datasets.Value("string")})
        write_named(tmp_path, "test", ["0", "1"], [0, 1])
        with pytest.raises(DataError, match="the split test has the class '0', the split train only cat, dog"):
            load(tmp_path)

    def test_a_class_without_training_images_is_refused(self, tmp_path: Path) -> None:
        write_named(tmp_path, "train", ["cat", "dog"], [0, 1] * 10)
        write_named(tmp_path, "test", ["cat", "dog", "fox"], [0, 2])
        with pytest.raises(DataError, match="the split test has the class 'fox', the split train only cat, dog"):
            load(tmp_path)


class TestImages:
    def test_size_and_channels_can_be_chosen_and_the_model_follows(self, tmp_path: Path) -> None:
        write_classes(tmp_path, {f"{split}/{name}": 10 for split in ("train", "test") for name in ("cat", "dog")})
        config = TrainConfig(dataset=str(tmp_path), img_size=64, channels="grey")
        data = load_splits(config)
        model = build_model(config, data.train)
        assert data.train.images.shape[1:] == data.test.images.shape[1:] == (1, 64, 64)
        assert (model.in_chans, tuple(model.img_size)) == (1, (64, 64))
        assert model(build_transform(config, data.train).eval(data.test.images)).shape == (20, 2)

    def test_splits_that_differ_in_channels_ask_for_a_choice(self, tmp_path: Path) -> None:
        write_plain(tmp_path, [0, 1] * 10)
        write_named(tmp_path, "test", ["0", "1"], [0, 1])
        with pytest.raises(DataError, match=r"splits train and test differ in channels: .* by --channels"):
            load(tmp_path)
        for channels, count in (("grey", 1), ("colour", 3)):
            data = load(tmp_path, channels=channels)
            assert {part.images.shape[1] for part in data} == {count}

    @pytest.mark.parametrize("channels", ["grey", "colour"])
    def test_published_statistics_are_those_of_their_channels(self, tmp_path: Path, channels: str) -> None:
        write_named(tmp_path / "uoft-cs/cifar10/plain_text", "train", ["a", "b"], [0, 1] * 10)
        data = load_dataset("uoft-cs/cifar10", image_column="image", channels=channels, root=tmp_path)
        transform = build_transform(TrainConfig(), data)
        assert (transform.mean == data.spec.mean) == (channels == "colour")

    def test_images_without_any_difference_are_refused(self, tmp_path: Path) -> None:
        black = encode(Image.new("L", (8, 8)))
        for split in ("train", "test"):
            columns = {"image": [black] * 20, "label": [0, 1] * 10}
            write_split(tmp_path, columns, {"image": datasets.Image(), "label": datasets.Value("int64")}, split)
        with pytest.raises(DataError, match=r"channel 0 of all images in the train split of .* is 0 everywhere"):
            build_transform(TrainConfig(), load(tmp_path).train)


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("data") / "pets", TEN)


@pytest.fixture(scope="module")
def finished(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch on a folder without splits, with images of another size and grey."""
    out = tmp_path_factory.mktemp("runs") / "pets"
    chosen = ["--img-size", 48, "--channels", "grey"]
    train("--dataset", pets, "--output-dir", out, "--epochs", 1, "--batch-size", 7, *chosen, *SMALL)
    return out


class TestRuns:
    def test_the_first_lines_say_what_the_test_split_is(self, pets: Path, tmp_path: Path, capsys) -> None:
        train("--dataset", pets, "--output-dir", tmp_path / "run", "--epochs", 1, "--batch-size", 7, *SMALL)
        said = capsys.readouterr()
        assert "14 to train, 2 held out, 4 to test" in said.out.splitlines()[1]
        assert said.err.count("a fifth of its images, 4, is held out for the test") == 1

    def test_what_was_decided_is_said_before_an_error_that_may_come_of_it(self, tmp_path: Path, capsys) -> None:
        root = write_classes(tmp_path, {"cat": 4, "train": 0, "cat/train": 1})
        (root / "README.md").touch()
        with pytest.raises(DataError, match="one class only"):
            train("--dataset", root, "--output-dir", tmp_path / "run", *SMALL)
        said = capsys.readouterr().err
        assert "README.md" in said
        assert "below a class folder" in said

    def test_the_names_of_the_classes_are_where_timm_keeps_them(self, finished: Path) -> None:
        assert json.loads((finished / "config.json").read_text())["label_names"] == ["cat", "dog"]
        model = timm.create_model(f"local-dir:{finished}", pretrained=True)
        assert list(model.pretrained_cfg["label_names"]) == ["cat", "dog"]

    def test_the_test_split_of_a_run_is_found_again(self, finished: Path) -> None:
        run = TrainedModel.open(finished)
        assert run.test_split().images.shape == (4, 1, 48, 48)
        assert run.measure(run.test_split()).error == run.summary["test_error"]

    def test_what_is_published_of_a_run_keeps_the_names_and_finds_the_test_split(
        self, finished: Path, pets: Path, tmp_path: Path
    ) -> None:
        run = TrainedModel.open(finished)
        stage(run, tmp_path, "pets", "pets", run.test_split())
        assert json.loads((tmp_path / "config.json").read_text())["label_names"] == ["cat", "dog"]
        assert verify(tmp_path, dataset=str(pets)).error == run.summary["test_error"]

    def test_a_run_is_not_taken_up_with_other_data(self, tmp_path: Path) -> None:
        data = write_classes(tmp_path / "pets", TEN)
        command = ["--dataset", data, "--output-dir", tmp_path / "run", "--epochs", 1, "--batch-size", 7, *SMALL]
        train(*command)
        Image.fromarray(pixels(999, 8, 3)).save(data / "cat" / "0.png")
        with pytest.raises(ConfigError, match=r"The run has other settings: data was '\w{16}' and is '\w{16}'"):
            train(*command, "--resume")


@pytest.mark.parametrize("name", list_shipped())
def test_shipped_checkpoints_know_the_names_of_their_classes(name: str) -> None:
    model = timm.create_model(name, pretrained=True)
    names = model.pretrained_cfg["label_names"]
    assert len(set(names)) == model.num_classes
    assert all(re.fullmatch(r"\S.*\S|\d", each) for each in names)
