"""The parts of a run's data: what trains, what selects the best epoch, what is measured at the end."""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from ..data.catalogue import IMG_SIZE
from ..data.columns import note, some
from ..data.dataset import ImageDataset, load_dataset
from ..errors import DataError, MissingSplitError

if TYPE_CHECKING:
    from .config import TrainConfig

__all__ = ["TEST_SHARE", "Splits", "empty_classes", "load_splits", "load_test"]

TEST_SHARE = 0.2
"""Part of the training split that is the test split where a data set has none."""


class Splits(NamedTuple):
    """The data of a run: what trains, what selects the best epoch, if anything, what is measured once at the end."""

    train: ImageDataset
    held_out: ImageDataset | None
    test: ImageDataset

    def checksum(self) -> str:
        """The first digits of a SHA-256 of all images, labels and names of classes."""
        parts = [*(part.checksum() for part in self if part), *self.train.classes]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def load_test(
    name: str | None, train_split: str | None = None, test_split: str | None = None, **options: Any
) -> ImageDataset:
    """The test split of a data set.

    It is the split asked for; else the one called ``test``; else ``validation``; else a fifth of the training split,
    held out class by class with the seed 0.

    Args:
        name: Name of the data set, as for `load_dataset`.
        train_split: Name of the training split; ``train`` by default.
        test_split: Name of the test split.
        **options: Other arguments of `load_dataset`.

    Raises:
        DataError: The split cannot be loaded.
    """
    found = _load_named_test(name, test_split, options)
    if found is None:
        found = _hold_out_test(load_dataset(name, train_split or "train", **options))[1]
    return found


def _load_named_test(name: str | None, split: str | None, options: dict[str, Any]) -> ImageDataset | None:
    for candidate in (split,) if split else ("test", "validation"):
        try:
            return load_dataset(name, candidate, **options)
        except MissingSplitError:
            if split:
                raise
    return None


def _hold_out_test(train: ImageDataset) -> tuple[ImageDataset, ImageDataset]:
    """The rest of a training split, and the part of it that is the test split, which says so."""
    rest, test = train.hold_out(TEST_SHARE, seed=0)
    return rest, replace(test, split=f"a fifth of {train.split}")


def load_splits(config: TrainConfig) -> Splits:
    """The splits of the configured data set.

    The test split is that of `load_test`; the held-out part is taken from the training split, class by class.

    Raises:
        DataError: A split cannot be loaded, the splits are the same or differ in channels or classes, or there is one
            class only.
    """
    options = {
        "config": config.dataset_config,
        "image_column": config.image_column,
        "label_column": config.label_column,
        "revision": config.dataset_revision,
        "image_size": config.img_size or IMG_SIZE,
        "channels": config.channels,
        "root": config.data_root,
    }
    train = load_dataset(config.dataset, config.train_split or "train", **options)
    if len(train.labels.unique()) < 2:
        raise DataError(f"the {train.split} split of {train.name} has images of one class only: nothing can be learnt.")
    test = _load_named_test(config.dataset, config.test_split, options)
    if test is None:
        train, test = _hold_out_test(train)
        note(
            f"{train.name} has no test split: a fifth of its images, {len(test):,}, is held out for the test "
            "(--test-split chooses another split)."
        )
    elif test.split == train.split:
        raise DataError(f"{train.split!r} is the training and the test split of {train.name}: choose another of them.")
    elif config.test_split is None and test.split.casefold() != "test":
        note(f"{train.name} has no split 'test': {test.split!r} is its test split (--test-split chooses another).")
    if train.images.shape[1] != test.images.shape[1]:
        raise DataError(
            f"the images of the splits {train.split} and {test.split} differ in channels: bring both to grey or to "
            "colour by --channels."
        )
    _compare_names(train)
    test = _in_the_order_of(train, test)
    return Splits(*(train.hold_out(config.holdout, config.seed) if config.holdout else (train, None)), test)


def _in_the_order_of(train: ImageDataset, test: ImageDataset) -> ImageDataset:
    """The test split with labels that count the classes as the training split does.

    Raises:
        DataError: A class of the test split is not among those of the training split, or only in other letters.
    """
    empty = empty_classes(train)
    for name in (test.classes[label] for label in test.labels.unique().tolist()):
        known = name in train.classes and name not in empty
        alike = [] if known else [each for each in train.classes if each != name and _folded(each) == _folded(name)]
        if alike:
            raise DataError(
                f"the class {alike[0]!r} of the split {train.split} is called {name!r} in {test.split}: give them one "
                "name (they differ in case or in the form of their Unicode letters)."
            )
        if name not in train.classes:
            raise DataError(
                f"the split {test.split} has the class {name!r}, the split {train.split} only {some(train.classes)}."
            )
    return test.relabelled(train.classes)


def _compare_names(train: ImageDataset) -> None:
    """Refuse classes that look the same, and say which ones nearly do."""
    seen: dict[str, str] = {}
    for name in sorted({*train.classes} - {*empty_classes(train)}):
        known = seen.setdefault(_folded(name), name)
        if known != name and _composed(known) == _composed(name):
            raise DataError(
                f"{train.name} has the class {name!r} twice, in two forms of its Unicode letters or spaces."
            )
        if known != name:
            note(
                f"the classes {known!r} and {name!r} of {train.name} differ in the case or form of their letters only."
            )


def _composed(name: str) -> str:
    return " ".join(unicodedata.normalize("NFC", name).split())


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", _composed(name)).casefold()


def empty_classes(data: ImageDataset) -> list[str]:
    """Names of the classes that have no image."""
    counts = data.labels.bincount(minlength=len(data.classes)).tolist()
    return [name for name, count in zip(data.classes, counts, strict=True) if not count]
