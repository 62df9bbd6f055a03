"""Local folders: splits by the names of top folders and Parquet files alone, classes by folders, nothing cached."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import datasets
import pytest
import torch
from pictures import images, pixels, write_classes, write_plain, write_split

from timm_ebl.data.dataset import ImageDataset, load_dataset
from timm_ebl.errors import DataError, DataWarning, MissingSplitError

PETS = {"cat": 3, "dog": 2}


@pytest.fixture(autouse=True)
def nothing_unsaid() -> None:
    """What is decided or left out is an error, where no test expects it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        yield


def write_splits(root: Path, train: dict[str, int] = PETS, test: dict[str, int] = PETS) -> Path:
    write_classes(root / "train", train)
    write_classes(root / "test", test, first=100)
    return root


def pictures(data: ImageDataset) -> set[bytes]:
    return {image.numpy().tobytes() for image in data.images}


class TestImages:
    def test_classes_are_folders_in_splits(self, tmp_path: Path) -> None:
        data = load_dataset(str(write_splits(tmp_path)))
        assert data.classes == ("cat", "dog")
        assert data.labels.tolist() == [0, 0, 0, 1, 1]
        assert torch.equal(data.images[3, :, 12:20, 12:20].permute(1, 2, 0), torch.from_numpy(pixels(3, 8, 3)))
        assert len(load_dataset(str(tmp_path), "test")) == 5

    @pytest.mark.parametrize("word", ["train", "test", "test_tube", "evaluation", "validation", "val"])
    def test_a_class_or_a_file_named_like_a_split_is_no_split(self, tmp_path: Path, word: str) -> None:
        root = write_splits(tmp_path / "test" / "x", {"bus": 4, word: 4}, {"bus": 2, word: 2})
        (root / "train" / "bus" / "0.png").rename(root / "train" / "bus" / "test_0.png")
        train, test = load_dataset(str(root)), load_dataset(str(root), "test")
        assert (len(train), len(test)) == (8, 4)
        assert not pictures(train) & pictures(test)
        assert train.classes == test.classes == tuple(sorted(["bus", word]))

    def test_without_splits_a_class_may_be_named_like_one_which_is_said(self, tmp_path: Path) -> None:
        root = write_classes(tmp_path, {"bus": 2, "evaluation": 2, "train": 2})
        with pytest.warns(DataWarning, match=r"evaluation, train in .* is taken for a class, .* it lies beside bus"):
            data = load_dataset(str(root))
        assert (data.classes, data.labels.tolist()) == (("bus", "evaluation", "train"), [0, 0, 1, 1, 2, 2])

    def test_without_splits_all_images_are_the_training_split(self, tmp_path: Path) -> None:
        root = write_classes(tmp_path / "more" / "pets", PETS)
        assert len(load_dataset(str(root))) == 5
        assert load_dataset(str(tmp_path / "more")).classes == ("cat", "dog")
        with pytest.raises(MissingSplitError, match="has no split 'test'; it has train"):
            load_dataset(str(root), "test")

    @pytest.mark.parametrize("name", ["Train", "TRAIN", "training"])
    def test_splits_are_found_in_any_case_and_by_their_usual_names(self, tmp_path: Path, name: str) -> None:
        write_classes(tmp_path / name, PETS)
        write_classes(tmp_path / "Val", PETS)
        assert load_dataset(str(tmp_path)).split == name
        assert load_dataset(str(tmp_path), "validation").split == "Val"
        with pytest.raises(
            MissingSplitError, match=f"has no split 'test'; it has .*{name}.* .--train-split and --test-split choose"
        ):
            load_dataset(str(tmp_path), "test")

    def test_splits_that_differ_in_case_only_are_refused(self, tmp_path: Path) -> None:
        write_classes(tmp_path / "Train", PETS)
        write_splits(tmp_path)
        with pytest.raises(DataError, match="has the splits Train, train, which differ in case only"):
            load_dataset(str(tmp_path))

    def test_a_class_that_one_split_lacks_keeps_its_number(self, tmp_path: Path) -> None:
        write_splits(tmp_path, {"cat": 1, "dog": 1, "fox": 1}, {"cat": 1, "fox": 2})
        assert load_dataset(str(tmp_path), "test").labels.tolist() == [0, 2, 2]

    def test_folders_below_a_class_count_for_it_which_is_said(self, tmp_path: Path) -> None:
        write_splits(tmp_path, {"cat/images": 2, "dog/images": 1}, PETS)
        with pytest.warns(DataWarning, match="below a class folder count for it: train/cat/images, train/dog/images"):
            data = load_dataset(str(tmp_path))
        assert (data.classes, data.labels.tolist()) == (("cat", "dog"), [0, 0, 1])

    def test_an_unlabelled_split_beside_a_labelled_one_is_named(self, tmp_path: Path) -> None:
        write_classes(tmp_path / "train", PETS)
        write_classes(tmp_path, {"test": 2})
        assert load_dataset(str(tmp_path)).classes == ("cat", "dog")
        with pytest.raises(
            DataError, match=r"the test split of .* has no labels: .*test holds images, but neither class"
        ):
            load_dataset(str(tmp_path), "test")

    def test_links_to_class_folders_are_followed_and_circles_end(self, tmp_path: Path) -> None:
        store = write_classes(tmp_path / "store", {"cat": 2})
        root = write_splits(tmp_path / "pets", {"dog": 1}, {"dog": 1})
        for split in ("train", "test"):
            (root / split / "cat").symlink_to(store / "cat")
        (root / "train" / "dog" / "circle").symlink_to(root)
        assert load_dataset(str(root)).labels.tolist() == [0, 0, 1]
        assert load_dataset(str(root), "test").labels.tolist() == [0, 0, 1]

    def test_what_is_left_out_is_said(self, tmp_path: Path) -> None:
        root = write_splits(tmp_path)
        (root / "train" / "labels.txt").touch()
        (root / ".DS_Store").touch()
        Path(root / "train" / "cat" / "0.png").rename(root / "figure.png")
        with pytest.warns(DataWarning) as said:
            assert len(load_dataset(str(root))) == 4
        messages = [str(warning.message) for warning in said]
        assert messages == [
            f"images left out of {root}: figure.png.",
            f"other files left out of {root}: train/labels.txt.",
        ]

    def test_a_name_that_is_no_text_is_refused(self, tmp_path: Path) -> None:
        root = write_splits(tmp_path)
        (root / "train" / "cat" / "0.png").rename(root / "train" / "cat" / os.fsdecode(b"\xff.png"))
        with pytest.raises(DataError, match=r"is no text in UTF-8: rename the file"):
            load_dataset(str(root))

    def test_an_image_that_is_replaced_is_read_anew(self, tmp_path: Path) -> None:
        root = write_splits(tmp_path)
        file = root / "train" / "cat" / "0.png"
        before, times = load_dataset(str(root)).checksum(), os.stat(file).st_mtime_ns
        file.write_bytes(images(1, 8, 3, first=77)[0]["bytes"])
        os.utime(file, ns=(times, times))
        assert load_dataset(str(root)).checksum() != before


class TestMetadata:
    def write(self, root: Path, text: str, name: str = "metadata.csv") -> str:
        for split in ("train", "test"):
            (root / split / name).write_text(text)
        return str(root)

    def test_class_folders_win_over_columns_which_is_said(self, tmp_path: Path) -> None:
        rows = "".join(f"{kind}/{row}.png,{30 + row}\n" for kind, count in PETS.items() for row in range(count))
        root = self.write(write_splits(tmp_path), "file_name,age\n" + rows)
        with pytest.warns(DataWarning, match=r"the classes are the folders cat, dog; --label-column takes a column of"):
            data = load_dataset(root)
        assert (data.classes, data.labels.tolist()) == (("cat", "dog"), [0, 0, 0, 1, 1])
        with pytest.warns(DataWarning):
            assert load_dataset(root, label_column="age").labels.tolist() == [30, 31, 32, 30, 31]

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("metadata.csv", "file_name,kind\n1.png,cat\n0.png,dog\n"),
            ("metadata.jsonl", '{"file_name": "1.png", "kind": "cat"}\n{"file_name": "0.png", "kind": "dog"}\n'),
        ],
    )
    def test_without_class_folders_a_table_gives_the_labels(self, tmp_path: Path, name: str, text: str) -> None:
        write_classes(tmp_path, {"train": 2, "test": 2})
        data = load_dataset(self.write(tmp_path, text, name))
        assert (data.classes, data.labels.tolist()) == (("cat", "dog"), [1, 0])

    def test_an_image_without_a_row_is_named(self, tmp_path: Path) -> None:
        write_classes(tmp_path, {"train": 2, "test": 2})
        with pytest.raises(DataError, match=r"row 1 of the train split of .* has no label in the column 'kind'"):
            load_dataset(self.write(tmp_path, "file_name,kind\n0.png,cat\n"))

    def test_beside_class_folders_a_table_of_something_else_does_no_harm_and_is_said(self, tmp_path: Path) -> None:
        root = self.write(write_splits(tmp_path), "licence\nMIT\n")
        with pytest.warns(DataWarning) as said:
            assert load_dataset(root).classes == ("cat", "dog")
        assert any("metadata.csv has no column 'file_name'" in str(warning.message) for warning in said)

    def test_a_file_that_is_named_twice_is_refused_and_one_that_is_not_there_is_said(self, tmp_path: Path) -> None:
        write_classes(tmp_path, {"train": 2, "test": 2})
        with pytest.raises(DataError, match=r"metadata.csv has two rows for 0.png"):
            load_dataset(self.write(tmp_path, "file_name,kind\n0.png,cat\n0.png,dog\n1.png,cat\n"))
        with pytest.warns(DataWarning, match=r"metadata.csv that are not there: 7.png"):
            load_dataset(self.write(tmp_path, "file_name,kind\n0.png,cat\n7.png,dog\n1.png,dog\n"))

    def test_a_table_that_names_no_files_is_refused(self, tmp_path: Path) -> None:
        write_classes(tmp_path, {"train": 2, "test": 2})
        with pytest.raises(DataError, match=r"metadata.csv has no column 'file_name'"):
            load_dataset(self.write(tmp_path, "name,kind\n0.png,cat\n"))


class TestParquet:
    @pytest.mark.parametrize(
        "name", ["train-00000-of-00001", "Train", "train-00000-of-00001-a1b2c3", "train_0", "data/train", "train/0000"]
    )
    def test_the_split_is_the_name_of_the_file_or_of_its_folder(self, tmp_path: Path, name: str) -> None:
        write_plain(tmp_path / "source", [2, 0, 1])
        target = tmp_path / "plain" / f"{name}.parquet"
        target.parent.mkdir(parents=True)
        (tmp_path / "source" / "train-00000-of-00001.parquet").rename(target)
        data = load_dataset(str(tmp_path / "plain"))
        assert (data.labels.tolist(), data.classes) == ([2, 0, 1], ("0", "1", "2"))

    @pytest.mark.parametrize("name", ["images", "0000", "test_tube"])
    def test_a_single_file_of_another_name_is_the_training_split(self, tmp_path: Path, name: str) -> None:
        file = write_plain(tmp_path, [0, 1]) / "train-00000-of-00001.parquet"
        file.rename(tmp_path / f"{name}.parquet")
        assert len(load_dataset(str(tmp_path))) == 2

    def test_splits_of_other_names_can_be_chosen(self, tmp_path: Path) -> None:
        write_plain(tmp_path, [0, 1], "fold1")
        write_plain(tmp_path, [0], "fold2")
        assert len(load_dataset(str(tmp_path), "fold2")) == 1
        with pytest.raises(MissingSplitError, match="has no split 'train'; it has fold1, fold2"):
            load_dataset(str(tmp_path))

    def test_configuration_is_chosen_among_several(self, tmp_path: Path) -> None:
        write_plain(tmp_path / "small", [0, 1])
        write_plain(tmp_path / "large", [0, 1, 2])
        with pytest.raises(DataError, match="several configurations, large, small: choose one by --dataset-config"):
            load_dataset(str(tmp_path))
        assert len(load_dataset(str(tmp_path), config="large")) == 3
        with pytest.raises(DataError, match="has no configuration 'none'; it has large, small"):
            load_dataset(str(tmp_path), config="none")
        write_plain(tmp_path, [0])
        with pytest.warns(DataWarning, match="the Parquet files in large, small below"):
            assert len(load_dataset(str(tmp_path))) == 1

    def test_the_parts_of_a_split_are_joined_and_a_missing_one_is_noticed(self, tmp_path: Path) -> None:
        for part, labels in enumerate(([0, 1], [2])):
            file = write_plain(tmp_path / "source", labels) / "train-00000-of-00001.parquet"
            file.rename(tmp_path / "source" / f"train-{part:05}-of-00002.parquet")
        assert load_dataset(str(tmp_path / "source")).labels.tolist() == [0, 1, 2]
        (tmp_path / "source" / "train-00001-of-00002.parquet").unlink()
        with pytest.raises(DataError, match=r"has 1 of the 2 files like train-00000-of-00002.parquet"):
            load_dataset(str(tmp_path / "source"))

    def test_parts_that_name_their_classes_differently_are_refused(self, tmp_path: Path) -> None:
        for part, names in enumerate((["cat", "dog"], ["dog", "cat"])):
            features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
            file = write_split(tmp_path, {"image": images(1), "label": [0]}, features) / "train-00000-of-00001.parquet"
            file.rename(tmp_path / f"train-{part:05}-of-00002.parquet")
        with pytest.raises(DataError, match="differ in their columns or class names"):
            load_dataset(str(tmp_path))

    def test_a_file_that_is_rewritten_with_the_same_time_is_read_anew(self, tmp_path: Path) -> None:
        file = write_plain(tmp_path, [0, 1]) / "train-00000-of-00001.parquet"
        times = os.stat(file).st_mtime_ns
        load_dataset(str(tmp_path))
        write_plain(tmp_path, [1, 0])
        os.utime(file, ns=(times, times))
        assert load_dataset(str(tmp_path)).labels.tolist() == [1, 0]

    def test_images_beside_parquet_files_are_left_out_which_is_said(self, tmp_path: Path) -> None:
        write_classes(write_plain(tmp_path, [0, 1]), {"train/cat": 1})
        with pytest.warns(DataWarning, match=r"images left out of .*, which has Parquet files: .*train/cat/0.png"):
            assert len(load_dataset(str(tmp_path))) == 2

    def test_a_damaged_file_is_named(self, tmp_path: Path) -> None:
        file = write_plain(tmp_path, [0, 1]) / "train-00000-of-00001.parquet"
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(DataError, match=r"train-00000-of-00001.parquet cannot be read as a Parquet file"):
            load_dataset(str(tmp_path))


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds neither Parquet files nor images; there is nothing"):
        load_dataset(str(tmp_path))
    (tmp_path / "train.zip").touch()
    with pytest.raises(DataError, match=r"holds neither Parquet files nor images; there is train.zip"):
        load_dataset(str(tmp_path))


def test_a_folder_in_a_folder_is_chosen_as_a_configuration(tmp_path: Path) -> None:
    write_splits(tmp_path / "small")
    write_splits(tmp_path / "large", {"cat": 9, "dog": 9})
    assert len(load_dataset(str(tmp_path), config="large")) == 18
    with pytest.raises(DataError, match="is a folder of images, which has no configuration 'none'"):
        load_dataset(str(tmp_path), config="none")
