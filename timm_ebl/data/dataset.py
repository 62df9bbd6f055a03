"""Image classification data sets as 8-bit tensors in memory.

The named sets come from the Hugging Face Hub through the ``datasets`` library, or from copies of them in the Hub's
layout; a sample of Fashion-MNIST is part of the package; any other set is a local folder or an id on the Hub.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..errors import DataError, MissingSplitError
from .catalogue import CHANNELS, DATASETS, EMBEDDED, IMG_SIZE, SPLIT_NAMES, DatasetSpec, is_split_name, spec_of
from .columns import find_column, image_files, read_labels
from .decode import decode_images
from .folder import read_folder

__all__ = ["ImageDataset", "list_datasets", "load_dataset"]


def list_datasets() -> list[str]:
    """Return the names of the known data sets, the embedded sample included."""
    return list(DATASETS)


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Labelled images in memory, of one size: a data set as PyTorch's loaders and ``random_split`` expect one.

    `batch` fetches many images by one index operation.

    Attributes:
        images: uint8 tensor of shape ``(N, C, H, W)``, with one channel if the images are grey and three otherwise.
        labels: int64 tensor of shape ``(N,)`` with values in ``0 .. len(classes) - 1``.
        classes: Names of the classes.
        name: Name of the data set, for messages.
        spec: Source and preparation.
        split: Name of the split, as the data set has it.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    name: str
    spec: DatasetSpec
    split: str = "train"

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return one image of shape ``(C, H, W)`` and its label."""
        return self.images[index], int(self.labels[index])

    def batch(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Return a batch: images of shape ``(B, C, H, W)`` and labels of shape ``(B,)``."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        return self.images[rows], self.labels[rows]

    def subset(self, indices: Sequence[int] | Tensor) -> ImageDataset:
        """Return the data set of the images at ``indices``, in that order."""
        images, labels = self.batch(indices)
        return replace(self, images=images, labels=labels)

    def relabelled(self, classes: Sequence[str]) -> ImageDataset:
        """Return the data set with labels that count these classes, by name; as it is if an image has another one."""
        places = {name: place for place, name in enumerate(classes)}
        labels = torch.tensor([places.get(name, -1) for name in self.classes])[self.labels]
        return self if (labels < 0).any() else replace(self, labels=labels, classes=tuple(classes))

    def hold_out(self, fraction: float, seed: int) -> tuple[ImageDataset, ImageDataset]:
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
            raise DataError(
                f"holding out {fraction} of every class of {self.name} leaves one of the parts empty: too few images."
            )
        return self.subset((~held_out).nonzero().flatten()), self.subset(held_out.nonzero().flatten())

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the mean and the standard deviation of every channel, in units of the full intensity 255.

        Raises:
            DataError: A channel has one value only.
        """
        counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in self.images.unbind(1)])
        share, levels = counts.double() / counts.sum(1, keepdim=True), torch.arange(256).double() / 255
        mean = share @ levels
        std = (share * (levels - mean[:, None]).square()).sum(1).sqrt()
        constant = [channel for channel, deviation in enumerate(std.tolist()) if not deviation]
        if constant:
            value = self.images[0, constant[0], 0, 0]
            raise DataError(
                f"channel {constant[0]} of all images in the {self.split} split of {self.name} is {value} everywhere: "
                "there is nothing to normalise or to learn from."
            )
        return tuple(mean.tolist()), tuple(std.tolist())

    def checksum(self) -> str:
        """Return the SHA-256 of shape, pixels and labels."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.images.contiguous().numpy())
        digest.update(self.labels.contiguous().numpy())
        return digest.hexdigest()


def load_dataset(
    name: str | None,
    split: str = "train",
    *,
    config: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    image_size: int = IMG_SIZE,
    channels: str | None = None,
    root: str | Path | None = None,
) -> ImageDataset:
    """Load one split of a data set into memory.

    The images have one channel if all are grey, else three. One that fits into ``image_size`` is centred on black; of
    any other the largest square in the centre is resized (bilinear). They are turned as their EXIF orientation says;
    transparent pixels lie on white if what is drawn is dark, else on black (`timm_ebl.data.decode.flatten`). What is
    left out of a folder, and what had to be decided, is said by a `DataWarning`. Class labels of two splits may be
    numbered differently: ``test.relabelled(train.classes)`` counts them alike.

    Args:
        name: A name in `list_datasets`; else a local folder (`read_folder`), of Parquet files in the Hub's layout or of
            images (``train/<class>/*.png``); else an id ``owner/name`` on the Hub. ``None`` for the embedded sample.
        split: Name of the split, in any case; usual names stand for each other (``validation``, ``val``, ``valid``). A
            set of one split is its ``train``.
        config: Configuration, for sets that have several.
        image_column: Column of the images, if their type does not tell.
        label_column: Column of the labels, if their type does not tell.
        revision: Branch, tag or commit on the Hub.
        token: Access token for the Hub.
        image_size: Height and width of the images in pixels.
        channels: ``grey`` or ``colour``; by default what the images are.
        root: Folder with copies in the Hub's layout (``root/uoft-cs/cifar10/..``), used in place of the Hub.

    Returns:
        The images and labels of the split.

    Raises:
        MissingSplitError: The data set has no such split.
        DataError: The data set or column does not exist or is ambiguous, the Hub cannot be reached, the split is empty,
            an image cannot be decoded, or a label is missing or out of range.
    """
    if image_size < 1:
        raise DataError(f"image_size must be at least 1 pixel, got {image_size}.")
    if channels not in (None, *CHANNELS):
        raise DataError(f"channels is one of {', '.join(CHANNELS)}, not {channels!r}.")
    name = EMBEDDED if name is None else name
    spec, folder = _locate(name, root)
    if folder is not None and revision is not None:
        raise DataError(f"a revision can be chosen on the Hub only, and {name} is read from {folder}.")
    if name == EMBEDDED and config is not None:
        raise DataError(f"the embedded sample has no configuration {config!r}.")
    if folder is not None:
        usual = spec.config if spec.config and (folder / spec.config).is_dir() else None
        splits = read_folder(folder, config or usual)
    else:
        try:
            from .hub_source import read_hub  # which needs ``datasets``, and local data do not
        except ModuleNotFoundError as error:
            raise DataError(
                f"{name} is on the Hugging Face Hub, which is read by a package that is missing ({error.name}): "
                "install it, or give a local folder (--dataset PATH) or copies in the Hub's layout (--data-root PATH)."
            ) from None
        splits = read_hub(spec.hub_id, config or spec.config, revision, token)
    split = _find_split(splits, split, name)
    table, source = splits[split](), f"the {split} split of {name}"
    if not table.columns.num_rows:
        raise DataError(f"{source} is empty.")
    image_column = find_column("image", table, image_column or spec.image_column, source)
    label_column = find_column("label", table, label_column or spec.label_column, source)
    others = partial(map, lambda other: splits[other](), splits.keys() - {split})
    labels, classes = read_labels(table, others, label_column, source)
    try:
        images = decode_images(image_files(table, image_column), len(labels), image_size, channels)
    except ValueError as error:
        raise DataError(f"in {source}, {error}") from error
    return ImageDataset(images, labels, classes, name, spec, split)


def _find_split(names: Iterable[str], wanted: str, dataset: str) -> str:
    """The split of that name: as it is, else in another case, else by another usual name."""
    names = list(names)
    usual = next((same for same in SPLIT_NAMES.values() if wanted.casefold() in same), ())
    for candidates in ((wanted,), (wanted.casefold(),), usual):
        found = [name for name in names if name in candidates or name.casefold() in candidates]
        if wanted in found:
            return wanted
        if len(found) == 1:
            return found[0]
    if "train" in usual and len(names) == 1 and not is_split_name(names[0]):
        return names[0]
    raise MissingSplitError(
        f"{dataset} has no split {wanted!r}; it has {', '.join(names)} (--train-split and --test-split choose)."
    )


def _locate(name: str, root: str | Path | None) -> tuple[DatasetSpec, Path | None]:
    """Return the specification and the folder of a data set; ``None`` stands for the Hub."""
    if name == EMBEDDED:
        return DATASETS[name], Path(__file__).parents[1] / "embedded"
    if name not in DATASETS and (folder := Path(os.path.expanduser(name))).is_dir():
        return DatasetSpec(), folder
    if name not in DATASETS and not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise DataError(
            f"{name!r} is neither a known data set ({', '.join(DATASETS)}) nor a local folder nor an id owner/name."
        )
    spec = spec_of(name)
    return spec, None if root is None else Path(os.path.expanduser(root), spec.hub_id)
