"""A trained model with its record: what it was trained by, what it reached, and on which data that was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..data.catalogue import CHANNELS
from ..errors import CheckpointError, ConfigError, DataError, WeightsError
from ..models.weights import CONFIG
from .config import TrainConfig, read_recipe, resolve
from .equilibrium import Nearness, measure_nearness
from .finding import find_checkpoint
from .inference import predict, same_error
from .records import (
    CARD,
    EVALUATION,
    NEARNESS,
    TEXT,
    card_error,
    check_record,
    precision_of,
    read_model_config,
    read_summary,
)
from .splits import load_test
from .user_code import import_of

if TYPE_CHECKING:
    from ..data.dataset import ImageDataset

__all__ = ["Evaluation", "TrainedModel"]


@dataclass(frozen=True)
class Evaluation:
    """An error and the test split that it was measured on.

    Attributes:
        dataset: Name, folder or Hub id of the data set; ``None`` for the embedded sample.
        config: Its configuration.
        revision: Its revision on the Hub.
        image_column: Column of the images.
        label_column: Column of the labels.
        images: Number of test images.
        error: Share of them that the model gets wrong, in %.
        split_sha256: `ImageDataset.checksum` of the split; ``None`` where none was taken.
        train_split: Name of the training split, from which the test split is taken where the set has none.
        test_split: Name of the test split; ``None`` for what `load_test` finds.
        split: Name of the split that it found, of which it may have held out a part; ``None`` before it was measured.
        equilibrium: How near the answers are to their equilibria; ``None`` of equilibria, or if not measured.
    """

    dataset: str | None
    config: str | None
    revision: str | None
    image_column: str | None
    label_column: str | None
    images: int
    error: float
    split_sha256: str | None = None
    train_split: str | None = None
    test_split: str | None = None
    split: str | None = None
    equilibrium: Nearness | None = None

    def load(
        self, input_size: Sequence[int], root: str | Path | None = None, dataset: str | None = None
    ) -> ImageDataset:
        """The test split for inputs of shape ``(C, H, W)``, from the folder ``dataset`` if one is given.

        Raises:
            DataError: It cannot be loaded.
        """
        return load_test(
            dataset or self.dataset,
            self.train_split,
            self.test_split,
            config=self.config,
            image_column=self.image_column,
            label_column=self.label_column,
            revision=None if dataset or root else self.revision,
            image_size=input_size[-1],
            channels=CHANNELS[input_size[0] > 1],
            root=root,
        )


@dataclass(frozen=True)
class TrainedModel:
    """The files of a checkpoint.

    Attributes:
        name: How it is called in messages.
        weights: Folder of ``model.safetensors`` and ``config.json``.
        records: Folder of the recipe, the metrics, the summary, the curves and the card; ``None`` if they are not here.
    """

    name: str
    weights: Path
    records: Path | None

    @classmethod
    def open(cls, source: str | Path) -> TrainedModel:
        """Find a checkpoint (`find_checkpoint`).

        Modules that the recipe in a folder names (``imports``) are imported; those of what comes from the Hub must be
        imported before.

        Raises:
            CheckpointError: There is none, or a module cannot be imported.
        """
        found = find_checkpoint(source)
        if found.records is not None:
            _import_for(found.records, found.is_ours)
        return cls(found.name, found.weights, found.records)

    @property
    def is_packaged(self) -> bool:
        """Whether it has been measured and described, not only trained."""
        return "evaluation" in self.config

    @cached_property
    def config(self) -> dict[str, Any]:
        """Timm's ``config.json``."""
        try:
            return read_model_config(self.weights)
        except WeightsError as error:
            raise CheckpointError(str(error)) from None

    @cached_property
    def recipe(self) -> TrainConfig:
        """The resolved settings of the run."""
        try:
            return resolve(read_recipe(self.record("args.yaml")))
        except ConfigError as error:
            raise CheckpointError(str(error)) from None

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The result of the run."""
        return read_summary(self.record("summary.json"))

    @cached_property
    def evaluation(self) -> Evaluation:
        """The error that it claims: that of its ``config.json``, or, before it is packaged, of the run's summary."""
        try:
            if self.is_packaged:
                splits = dict.fromkeys(("split_sha256", "train_split", "test_split", "split"), TEXT.or_null())
                check_record(f"{self.name}: evaluation", self.config["evaluation"], EVALUATION, splits)
                claimed = dict(self.config["evaluation"])
                if (found := claimed.get("equilibrium")) is not None:
                    check_record(f"{self.name}: equilibrium", found, NEARNESS, {})
                    claimed["equilibrium"] = Nearness(**found)
                return Evaluation(**claimed)
            keys = {"config": "dataset_config", "revision": "dataset_revision"}
            names = ("dataset", "config", "revision", "image_column", "label_column", "train_split", "test_split")
            where = {name: getattr(self.recipe, keys.get(name, name)) for name in names}
            return Evaluation(**where, images=self.summary["test_images"], error=self.summary["test_error"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{self.name} does not say what was measured on which data ({error}).") from None

    def claims(self) -> dict[str, float]:
        """The errors (%) that its files report, by file."""
        claims = {CONFIG if self.is_packaged else "summary.json": self.evaluation.error}
        if self.records is not None and (self.records / CARD).is_file():
            claims[CARD] = card_error(self.records / CARD)
        return claims

    def agrees(self, claimed: float, measured: Evaluation) -> bool:
        """Whether an error (%) that its files report is the measured one, but for rounding.

        Measurements are in 32 bits. Before it is packaged, its files have the figure of the run: one in 16 bits may
        differ by up to half a point.
        """
        in_16_bits = not self.is_packaged and precision_of(self.summary, self.recipe) != "no"
        near = in_16_bits and abs(measured.error - claimed) <= 0.5
        return near or same_error(claimed, measured.error, measured.images)

    def test_split(self, root: str | Path | None = None, dataset: str | None = None) -> ImageDataset:
        """The split that it is measured on (`Evaluation.load`)."""
        try:
            test = self.evaluation.load(self.config["pretrained_cfg"]["input_size"], root, dataset)
        except DataError as error:
            if dataset:
                raise
            raise DataError(f"{error} The data set of {self.name}: --dataset FOLDER says where it is.") from error
        return test.relabelled(self.config.get("label_names", test.classes))

    def measure(self, test: ImageDataset) -> Evaluation:
        """Its evaluation, measured anew.

        Raises:
            CheckpointError: The weights cannot be used.
        """
        found = self.evaluate(predict(self.weights, test), test)
        return replace(found, equilibrium=measure_nearness(self.weights, test))

    def evaluate(self, outputs: Tensor, test: ImageDataset) -> Evaluation:
        """The evaluation of outputs ``(N, M)`` for the test split, without how near they are to equilibrium."""
        error = float((outputs.argmax(1) != test.labels).double().mean() * 100)
        measured = {"images": len(test), "error": error, "split_sha256": test.checksum(), "split": test.split}
        return replace(self.evaluation, **measured, equilibrium=None)

    def record(self, name: str) -> Path:
        """Path of one of its records.

        Raises:
            CheckpointError: The records are not here.
        """
        if self.records is None:
            raise CheckpointError(f"The records of {self.name} are not installed: they are in a clone of timm_ebl.")
        return self.records / name


def _import_for(folder: Path, ours: bool = True) -> None:
    try:
        import_of(folder, ours)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
