"""Where each named data set comes from, and how its images are prepared (paper, Section 4; released code)."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["CHANNELS", "DATASETS", "EMBEDDED", "IMG_SIZE", "SPLIT_NAMES", "DatasetSpec", "is_split_name", "spec_of"]

EMBEDDED = "fashion-mnist-sample"
"""Name of the sample that is part of the package."""

IMG_SIZE = 32
"""Height and width in pixels to which images are brought unless told otherwise."""

CHANNELS = ("grey", "colour")
"""What images can be decoded to: one channel, or red, green and blue."""

SPLIT_NAMES = {
    "train": ("train", "training"),
    "test": ("test", "testing", "eval", "evaluation"),
    "validation": ("validation", "val", "valid", "dev"),
}
"""What the usual splits are called, in any case."""


def is_split_name(name: str) -> bool:
    """Whether a folder or file of that name is taken for a split."""
    return any(name.casefold() in names for names in SPLIT_NAMES.values())


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
        paper_std: What the paper's released code, and that of Laborieux et al. (2021), divides by in place of it: for
            CIFAR-10 three times the standard deviation.
        padding: Edge padding in pixels of the random crop.
        flip: Whether training images are mirrored left to right at random.
    """

    hub_id: str | None = None
    config: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    paper_std: tuple[float, ...] | None = None
    padding: int = 4
    flip: bool = False


# fmt: off
DATASETS: dict[str, DatasetSpec] = {
    "mnist": DatasetSpec("ylecun/mnist", "mnist", "image", "label", (0.1307,), (0.3081,), padding=2),
    "fashion-mnist": DatasetSpec("zalando-datasets/fashion_mnist", "fashion_mnist", "image", "label",
                                 (0.2860,), (0.3530,), padding=2, flip=True),
    "svhn": DatasetSpec("ufldl-stanford/svhn", "cropped_digits", "image", "label",
                        (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "cifar10": DatasetSpec("uoft-cs/cifar10", "plain_text", "img", "label",
                           (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), (0.6069, 0.5982, 0.6030), flip=True),
    "cifar100": DatasetSpec("uoft-cs/cifar100", "cifar100", "img", "fine_label",
                            (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), flip=True),
}
# fmt: on
DATASETS[EMBEDDED] = replace(DATASETS["fashion-mnist"], hub_id=None, config=None)


def spec_of(name: str) -> DatasetSpec:
    """The entry of `DATASETS` by its name or its id on the Hub; for any other id one that says nothing else."""
    return DATASETS.get(name) or next((spec for spec in DATASETS.values() if spec.hub_id == name), DatasetSpec(name))
