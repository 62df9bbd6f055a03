"""Image classification data sets as 8-bit tensors in memory.

The named sets come from the Hugging Face Hub through the ``datasets`` library, or from copies of them in the Hub's
layout; a sample of Fashion-MNIST is part of the package; any other set is a local folder or an id on the Hub.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import torch
from pyarrow.parquet import read_table
from torch import Tensor

from .errors import DataError
from .source import read_folder, read_hub
from .spec import DATASETS, EMBEDDED, DatasetSpec
from .transforms import decode_images

__all__ = ["ImageDataset", "collate", "list_datasets", "load_dataset"]


def list_datasets() -> list[str]:
    """Return the names of the known data sets, the embedded sample included."""
    return list(DATASETS)


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Labelled images in memory, of one size, for a `torch.utils.data.DataLoader`.

    With ``DataLoader(dataset, batch_size, collate_fn=collate)`` every batch is fetched by one index operation.

    Attributes:
        images: uint8 tensor of shape ``(N, C, H, W)``, with one channel if all images are grey and three otherwise.
        labels: int64 tensor of shape ``(N,)`` with values in ``0 .. len(classes) - 1``.
        classes: Names of the classes.
        name: Name of the data set, for messages.
        spec: Source and preparation.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    name: str
    spec: DatasetSpec

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return one image of shape ``(C, H, W)`` and its label, a scalar tensor."""
        return self.images[index], self.labels[index]

    def __getitems__(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Return a batch: images of shape ``(B, C, H, W)`` and labels of shape ``(B,)``."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        return self.images[rows], self.labels[rows]

    def subset(self, indices: Sequence[int] | Tensor) -> ImageDataset:
        """Return the data set of the images at ``indices``, in that order."""
        images, labels = self.__getitems__(indices)
        return replace(self, images=images, labels=labels)

    def split(self, fraction: float, seed: int) -> tuple[ImageDataset, ImageDataset]:
        """Hold out a part of every class.

        Args:
            fraction: Part held out, between 0 and 1; rounded to a whole number of images in each class.
            seed: Seed of the choice; the same seed gives the same parts.

        Returns:
            The rest and the part held out, disjoint, each in the original order.

        Raises:
            DataError: The fraction is not between 0 and 1, or one of the parts would be empty.
        """
        if not 0 < fraction < 1:
            raise DataError(f"the fraction to hold out must lie between 0 and 1, got {fraction}.")
        generator = torch.Generator().manual_seed(seed)
        held_out = torch.zeros(len(self), dtype=torch.bool)
        for label in range(len(self.classes)):
            rows = (self.labels == label).nonzero().flatten()
            chosen = torch.randperm(len(rows), generator=generator)[: round(fraction * len(rows))]
            held_out[rows[chosen]] = True
        if held_out.all() or not held_out.any():
            raise DataError(f"holding out {fraction} of every class of {self.name} leaves one of the parts empty.")
        return self.subset((~held_out).nonzero().flatten()), self.subset(held_out.nonzero().flatten())

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the mean and the standard deviation of every channel, in units of the full intensity 255."""
        counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in self.images.unbind(1)])
        share, levels = counts.double() / counts.sum(1, keepdim=True), torch.arange(256).double() / 255
        mean = share @ levels
        std = (share * (levels - mean[:, None]).square()).sum(1).sqrt()
        return tuple(mean.tolist()), tuple(std.tolist())


def collate(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the batch as it is: the ``collate_fn`` of a loader over an `ImageDataset`."""
    return batch


def load_dataset(
    name: str | None,
    split: str = "train",
    *,
    config: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    image_size: int = 32,
    root: str | Path | None = None,
) -> ImageDataset:
    """Load one split of a data set into memory.

    The images have one channel if all are grey, else three. One that fits into ``image_size`` is centred on black; any
    other is resized (bilinear) so that its shorter side is ``image_size``, and the centre is cut out.

    Args:
        name: A name in `list_datasets`; else a local folder, of Parquet files in the Hub's layout or of images
            (``train/<class>/*.png``); else an id ``owner/name`` on the Hub. ``None`` for the embedded sample.
        split: Name of the split.
        config: Configuration, for sets that have several.
        image_column: Column of the images, if their type does not tell.
        label_column: Column of the labels, if their type does not tell.
        revision: Branch, tag or commit on the Hub.
        token: Access token for the Hub.
        image_size: Height and width of the images in pixels.
        root: Folder with copies in the Hub's layout (``root/uoft-cs/cifar10/..``), used in place of the Hub.

    Returns:
        The images and labels of the split.

    Raises:
        DataError: The data set, split or column does not exist or is ambiguous, the Hub cannot be reached, the split is
            empty, an image cannot be decoded, or a label is out of range.
    """
    if image_size < 1:
        raise DataError(f"image_size must be at least 1 pixel, got {image_size}.")
    name = EMBEDDED if name is None else name
    spec, folder = _locate(name, root)
    if folder is not None and revision is not None:
        raise DataError(f"a revision can be chosen on the Hub only, and {name} is read from {folder}.")
    if name == EMBEDDED and config is not None:
        raise DataError(f"the embedded sample has no configuration {config!r}.")
    if name == EMBEDDED:
        splits = {file.stem: datasets.Dataset(read_table(file)) for file in folder.glob("*.parquet")}
    elif folder is not None:
        splits = read_folder(folder, config or spec.config, split)
    else:
        splits = read_hub(spec.hub_id, config or spec.config, revision, token)
    if split not in splits:
        raise DataError(f"{name} has no split {split!r}; it has {', '.join(splits)}.")
    data, source = splits[split], f"the {split} split of {name}"
    if not data:
        raise DataError(f"{source} is empty.")
    image_column = _find_column("image", data.features, image_column or spec.image_column, source)
    label_column = _find_column("label", data.features, label_column or spec.label_column, source)
    labels, classes = _read_labels(data, label_column, source)
    files = (cell["bytes"].as_py() or cell["path"].as_py() for cell in data.data.column(image_column))
    try:
        images = decode_images(files, len(data), image_size)
    except ValueError as error:
        raise DataError(f"in {source}, {error}") from error
    return ImageDataset(images, labels, classes, name, spec)


def _locate(name: str, root: str | Path | None) -> tuple[DatasetSpec, Path | None]:
    """Return the specification and the folder of a data set; ``None`` stands for the Hub."""
    if name == EMBEDDED:
        return DATASETS[name], Path(__file__).parent / "embedded"
    spec = DATASETS.get(name)
    if spec is None and (folder := Path(name).expanduser()).is_dir():
        return DatasetSpec(), folder
    if spec is None and not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise DataError(
            f"{name!r} is neither a known data set ({', '.join(DATASETS)}) nor a local folder nor an id owner/name."
        )
    spec = spec or next((known for known in DATASETS.values() if known.hub_id == name), DatasetSpec(name))
    return spec, None if root is None else Path(root, spec.hub_id).expanduser()


def _find_column(kind: str, features: datasets.Features, chosen: str | None, source: str) -> str:
    """Return the column chosen, if its type allows, or the only one of the type that says most."""
    named_type = datasets.Image if kind == "image" else datasets.ClassLabel
    named = [column for column, feature in features.items() if isinstance(feature, named_type)]
    values = [column for column, feature in features.items() if isinstance(feature, datasets.Value)]
    integers = [column for column in values if kind == "label" and re.match("u?int", features[column].dtype)]
    candidates = named or integers
    if chosen in named + integers or (chosen is None and len(candidates) == 1):
        return chosen or candidates[0]
    if not candidates:
        raise DataError(f"{source} has no {kind} column; its columns are {', '.join(features)}.")
    problem = f"{chosen!r} is no {kind} column" if chosen else f"there are several {kind} columns"
    option = f"{kind}_column= (--{kind}-column on the command line)"
    raise DataError(f"{problem} in {source}; choose one of {', '.join(named + integers)} by {option}.")


def _read_labels(data: datasets.Dataset, column: str, source: str) -> tuple[Tensor, tuple[str, ...]]:
    """Return the labels as int64 and the names of the classes; plain integers, below 2**16, are their own names."""
    stored = data.data.column(column).cast("int64").fill_null(-1)
    labels = torch.from_numpy(stored.to_numpy().copy())
    names = getattr(data.features[column], "names", None)
    count = 2**16 if names is None else len(names)
    outside = ((labels < 0) | (labels >= count)).nonzero()
    if len(outside):
        row = int(outside[0])
        raise DataError(f"row {row} of {source} has the label {labels[row]}, outside the classes 0 to {count - 1}.")
    return labels, tuple(names or map(str, range(int(labels.max()) + 1)))
