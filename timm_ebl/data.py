"""Image classification data sets as 8-bit tensors in memory.

The named sets come from the Hugging Face Hub through the ``datasets`` library, or from copies of them in the Hub's
layout; a sample of Fashion-MNIST is part of the package; any other set is a local folder or an id on the Hub.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:  # these take a second to import, which nobody who only builds a network should wait for
    import datasets
    import pyarrow

__all__ = ["DATASETS", "DataError", "DatasetSpec", "ImageDataset", "collate", "list_datasets", "load_dataset"]

_EMBEDDED = "fashion-mnist-sample"
_EMBEDDED_FOLDER = Path(__file__).parent / "embedded"
_MAX_INTEGER_CLASSES = 2**16


class DataError(ValueError):
    """A data set cannot be loaded or used as asked; the message says why and what can be done."""


@dataclass(frozen=True)
class DatasetSpec:
    """Where a data set is found and how its images are prepared for training.

    Attributes:
        hub_id: Id on the Hugging Face Hub; ``None`` for a set that does not come from there.
        config: Configuration of the set on the Hub.
        image_column: Column of the images; ``None`` to find it by its type.
        label_column: Column of the labels; ``None`` to find it by its type.
        mean: Mean of every channel in units of 255; ``None`` where it is to be measured on the training split.
        std: Standard deviation of every channel, likewise.
        padding: Edge padding in pixels of the random crop.
        flip: Whether training images are mirrored left to right at random.
    """

    hub_id: str | None = None
    config: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    padding: int = 4
    flip: bool = False


_MNIST = DatasetSpec("ylecun/mnist", "mnist", "image", "label", (0.1307,), (0.3081,), padding=2)
_FASHION_MNIST = DatasetSpec(
    "zalando-datasets/fashion_mnist", "fashion_mnist", "image", "label", (0.2860,), (0.3530,), padding=2, flip=True
)
_SVHN = DatasetSpec(
    "ufldl-stanford/svhn", "cropped_digits", "image", "label", (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
)
_CIFAR10 = DatasetSpec(
    "uoft-cs/cifar10", "plain_text", "img", "label", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), flip=True
)
_CIFAR100 = DatasetSpec(
    "uoft-cs/cifar100", "cifar100", "img", "fine_label", (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), flip=True
)

DATASETS: dict[str, DatasetSpec] = {
    "mnist": _MNIST,
    "fashion-mnist": _FASHION_MNIST,
    "svhn": _SVHN,
    "cifar10": _CIFAR10,
    "cifar100": _CIFAR100,
    _EMBEDDED: replace(_FASHION_MNIST, hub_id=None, config=None),
}
"""The data sets known by name."""


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
        levels = torch.arange(256, dtype=torch.float64) / 255
        means, deviations = [], []
        for channel in self.images.unbind(1):
            share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
            mean = (share * levels).sum()
            means.append(mean.item())
            deviations.append((share * (levels - mean).square()).sum().sqrt().item())
        return tuple(means), tuple(deviations)


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

    Grey images are kept as one channel if all are grey; anything else is converted to RGB. An image that fits into
    ``image_size`` is centred on black; any other is resized (bilinear) so that its shorter side is ``image_size``, and
    the centre is cut out.

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
    name = _EMBEDDED if name is None else name
    spec = DATASETS.get(name)
    on_hub = False
    if name == _EMBEDDED:
        splits = _read_embedded()
    elif spec is None and Path(name).is_dir():
        spec = DatasetSpec()
        splits = _read_folder(Path(name), config, split)
    else:
        spec = spec or _spec_of_id(name)
        config = config or spec.config
        on_hub = root is None
        splits = (
            _read_hub(spec.hub_id, config, revision, token)
            if root is None
            else _read_folder(Path(root, spec.hub_id), config, split)
        )
    if revision is not None and not on_hub:
        raise DataError(f"a revision can be chosen on the Hub only, and {name} is not loaded from there.")
    if split not in splits:
        raise DataError(f"{name} has no split {split!r}; it has {', '.join(splits)}.")
    data = splits[split]
    if not len(data):
        raise DataError(f"the split {split!r} of {name} is empty.")
    source = f"the split {split!r} of {name}"
    image_column, label_column = _find_columns(
        data.features, image_column or spec.image_column, label_column or spec.label_column, source
    )
    labels, classes = _read_labels(data, label_column, source)
    images = _decode(data.data.column(image_column), image_size, source)
    return ImageDataset(images, labels, classes, name, spec)
