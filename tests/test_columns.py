"""Which columns hold images and labels, and what they say: as ``datasets``, pandas and polars write them."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from pictures import encode_deep, images, pixels, write_plain, write_split
from pyarrow.parquet import write_table

from timm_ebl.data.dataset import ImageDataset, load_dataset
from timm_ebl.errors import DataError

FILES = [image["bytes"] for image in images(4)]
STRUCT = pa.struct({"bytes": pa.large_binary(), "path": pa.large_string()})
NAMES = datasets.ClassLabel(names=["a", "b"])


def load(folder: Path, split: str = "train", **columns: object) -> ImageDataset:
    """Write columns as they are, without what ``datasets`` adds to them, and load them."""
    folder.mkdir(exist_ok=True)
    options = {name: columns.pop(name) for name in ("image_column", "label_column") if name in columns}
    write_table(pa.table(columns), folder / f"{split}.parquet")
    return load_dataset(str(folder), split, **options)


def load_labels(folder: Path, labels: object, split: str = "train", **options: str) -> ImageDataset:
    return load(folder, split, image=FILES[: len(labels)], label=labels, **options)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view(), STRUCT])
def test_images_are_files_or_structs_of_bytes_and_path(tmp_path: Path, kind: pa.DataType) -> None:
    cells = [{"bytes": file, "path": "0.png"} for file in FILES] if pa.types.is_struct(kind) else FILES
    data = load(tmp_path / "d", image=pa.array(cells, kind), label=[0, 1, 0, 1])
    for row, image in enumerate(data.images):
        assert torch.equal(image.permute(1, 2, 0), torch.from_numpy(pixels(row, 32, 3)))


def test_paths_of_images_start_from_the_folder_of_the_table(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "0.bin").write_bytes(FILES[0])
    cells = pa.array([{"bytes": None, "path": "0.bin"}], STRUCT)
    data = load(tmp_path / "d", image=cells, label=[0])
    assert torch.equal(data.images[0].permute(1, 2, 0), torch.from_numpy(pixels(0, 32, 3)))


@pytest.mark.parametrize(
    ("labels", "expected", "classes"),
    [
        (["dog", "cat", "dog"], [1, 0, 1], ("cat", "dog")),
        (pa.array(["dog", "cat", "dog"], pa.large_string()), [1, 0, 1], ("cat", "dog")),
        (pa.array(["dog", "cat", "dog"], pa.string_view()), [1, 0, 1], ("cat", "dog")),
        (pa.array(["dog", "cat", "dog"]).dictionary_encode(), [1, 0, 1], ("cat", "dog")),
        ([True, False, True], [1, 0, 1], ("False", "True")),
        ([1.0, 0.0, 2.0], [1, 0, 2], ("0", "1", "2")),
        (np.array([1, 0, 2], dtype=np.uint8), [1, 0, 2], ("0", "1", "2")),
    ],
)
def test_labels_may_be_texts_truth_values_and_whole_numbers_of_any_type(
    tmp_path: Path, labels: object, expected: list[int], classes: tuple[str, ...]
) -> None:
    data = load_labels(tmp_path / "d", labels)
    assert (data.labels.tolist(), data.classes) == (expected, classes)
    assert data.labels.dtype == torch.int64
    assert load_labels(tmp_path / "d", labels, label_column="label").labels.tolist() == expected


def test_texts_stand_for_the_same_classes_in_all_splits(tmp_path: Path) -> None:
    load_labels(tmp_path / "d", ["cat", "dog", "fox"])
    test = load_labels(tmp_path / "d", ["fox", "cat"], "test")
    assert (test.labels.tolist(), test.classes) == ([2, 0], ("cat", "dog", "fox"))


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["cat", None], "row 1 of the train split of .* has no label in the column 'label'"),
        ([0, None], "row 1 of .* has no label"),
        ([0.0, float("nan")], "row 1 of .* has no label"),
        ([0.0, 0.5], "row 1 of .* has the label 0.5, which is no whole number"),
        ([0.0, float("inf")], "row 1 of .* has the label inf, outside the classes"),
        (pa.array([0, 2**63 + 1], pa.uint64()), "row 1 of .* has the label 9223372036854775809, outside the classes"),
        ([[0, 1], [1]], r"has no label column; its columns are image \(binary\), label \(list<.*int64>\)"),
    ],
)
def test_labels_that_cannot_be_used_are_named_by_row(tmp_path: Path, labels: object, words: str) -> None:
    with pytest.raises(DataError, match=words):
        load_labels(tmp_path / "d", labels)


def test_a_column_of_too_many_texts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timm_ebl.data.columns.MOST_CLASSES", 2)
    with pytest.raises(DataError, match=r"the column 'label' of .* has 3 different texts, which are no classes"):
        load_labels(tmp_path / "d", ["a", "b", "c"])


def test_columns_of_other_types_are_named_with_their_types(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no image column; its columns are image \(string\), label \(int64\)"):
        load(tmp_path / "d", image=["0.png"], label=[0])


def test_structs_of_other_types_are_no_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no image column; its columns are image \(struct<path: int64>\), label"):
        load(tmp_path / "d", image=[{"path": 1}], label=[0])


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.table([pa.array([FILES[0]]), pa.array([0]), pa.array([1])], ["image", "label", "label"])
    write_table(table, tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"train.parquet has two columns of one name: label"):
        load_dataset(str(tmp_path))


def test_several_class_labels(tmp_path: Path) -> None:
    columns = {"image": images(2), "fine": [0, 1], "coarse": [1, 0]}
    folder = str(write_split(tmp_path / "d", columns, {"image": datasets.Image(), "fine": NAMES, "coarse": NAMES}))
    with pytest.raises(DataError, match=r"several label columns: choose one of fine, coarse by --label-column \("):
        load_dataset(folder)
    assert load_dataset(folder, label_column="coarse").labels.tolist() == [1, 0]


def test_several_images(tmp_path: Path) -> None:
    columns = {"left": images(2, first=0), "right": images(2, first=2), "label": [0, 1]}
    features = {"left": datasets.Image(), "right": datasets.Image(), "label": NAMES}
    folder = str(write_split(tmp_path / "pairs", columns, features))
    with pytest.raises(DataError, match=r"left, right by --image-column \(image_column="):
        load_dataset(folder)
    chosen = load_dataset(folder, image_column="right")
    assert torch.equal(chosen.images[0].permute(1, 2, 0), torch.from_numpy(pixels(2, 32, 3)))


def test_of_several_suitable_columns_the_one_called_label_is_taken_or_one_is_to_be_chosen(tmp_path: Path) -> None:
    assert load(tmp_path / "d", image=FILES, age=[30, 31, 32, 33], label=list("abba")).labels.tolist() == [0, 1, 1, 0]
    options = {"image": FILES, "age": [30, 31, 32, 33], "kind": list("abba")}
    with pytest.raises(DataError, match="several label columns: choose one of age, kind by --label-column"):
        load(tmp_path / "e", **options)
    assert load(tmp_path / "e", **options, label_column="kind").labels.tolist() == [0, 1, 1, 0]


def test_class_label_goes_before_integers(tmp_path: Path) -> None:
    columns = {"label": [8, 9], "image": images(2), "kind": [1, 0]}
    features = {"label": datasets.Value("int32"), "image": datasets.Image(), "kind": NAMES}
    assert load_dataset(str(write_split(tmp_path / "ids", columns, features))).labels.tolist() == [1, 0]


def test_absent_columns(tmp_path: Path) -> None:
    folder = write_split(tmp_path / "bare", {"image": images(1)}, {"image": datasets.Image()})
    with pytest.raises(DataError, match=r"has no label column; its columns are image \(Image\)"):
        load_dataset(str(folder))
    folder = write_split(tmp_path / "numbers", {"label": [1]}, {"label": datasets.Value("int64")})
    with pytest.raises(DataError, match=r"has no image column; its columns are label \(int64\)"):
        load_dataset(str(folder))


@pytest.mark.parametrize("option", ["image_column", "label_column"])
def test_chosen_column_of_another_type(tmp_path: Path, option: str) -> None:
    folder = str(write_plain(tmp_path / "plain", [0, 1]))
    wrong = {"image_column": "label", "label_column": "image"}[option]
    with pytest.raises(DataError, match=f"has no {option.split('_')[0]} column '{wrong}': choose one of"):
        load_dataset(folder, **{option: wrong})


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_images_of_16_bits_are_refused_in_every_mode(tmp_path: Path, channels: int) -> None:
    """Pillow would keep the upper 8 bits, which are 0 in images that use 8 to 12."""
    deep = encode_deep(np.full((8, 8, channels), 200))
    with pytest.raises(DataError, match="the image in row 1 has more than 8 bits per channel: convert it"):
        load(tmp_path / "d", image=[FILES[0], deep], label=[0, 1])
