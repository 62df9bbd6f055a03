"""What a run says about itself, read and checked: ``metrics.jsonl``, ``summary.json``, ``config.json``, its card."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import timm
from huggingface_hub import ModelCard

from ..arguments import is_number
from ..errors import CheckpointError
from ..models.weights import CONFIG, read_config

if TYPE_CHECKING:
    from .config import TrainConfig

__all__ = [
    "CARD",
    "EVALUATION",
    "METRIC",
    "NEARNESS",
    "TEXT",
    "card_error",
    "check_record",
    "precision_of",
    "read_metrics",
    "read_model_config",
    "read_summary",
]

CARD = "README.md"

METRIC = "error_rate"
"""Type of the figure in a model card that is the test error (%)."""

LARGEST_SIDE = 4096
"""Pixels of the largest images that a ``config.json`` may ask for."""


class Kind(NamedTuple):
    """What a value must be.

    Attributes:
        allows: Whether a value is that.
        words: The same in words.
    """

    allows: Callable[[Any], bool]
    words: str

    def or_null(self) -> Kind:
        """This, or nothing."""
        return Kind(lambda value: value is None or self.allows(value), f"{self.words} or null")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and is_number(value)


def _is_normalisation(value: Any) -> bool:
    return isinstance(value, list) and 1 <= len(value) <= 4 and all(is_number(v) and abs(v) < 1e9 for v in value)


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(_is_whole(v) and 0 < v <= LARGEST_SIDE for v in value)


TEXT = Kind(lambda value: isinstance(value, str), "a text")
COUNT = Kind(lambda value: _is_whole(value) and 0 <= value < 2**63, "a whole number of at least 0")
NUMBER = Kind(is_number, "a number")
PERCENT = Kind(lambda value: is_number(value) and 0 <= value <= 100, "a number from 0 to 100")
DISTANCE = Kind(lambda value: is_number(value) and 0 <= value < 1e9, "a number of at least 0")
SECONDS = Kind(lambda value: is_number(value) and 0 <= value < 1e12, "a number of seconds")
MAPPING = Kind(lambda value: isinstance(value, dict), "a mapping")
TEXTS = Kind(lambda value: isinstance(value, list) and all(map(TEXT.allows, value)), "a list of texts")
VERSIONS = Kind(lambda value: isinstance(value, dict) and all(map(TEXT.allows, value.values())), "a mapping to texts")
ERRORS = Kind(lambda value: isinstance(value, dict) and all(map(PERCENT.allows, value.values())), "a mapping to errors")
SIZE = Kind(_is_size, f"three whole numbers of at most {LARGEST_SIDE}")
NORMALISATION = Kind(_is_normalisation, "a list of a number for each channel")

METRICS = {
    "epoch": COUNT,
    "train_error": PERCENT,
    "held_out_error": PERCENT.or_null(),
    "energy": NUMBER,
    "residual": NUMBER,
    "seconds": SECONDS,
}
AVERAGED = {"held_out_error_unaveraged": PERCENT}
RUN = {"algo": TEXT, "model": TEXT, "dataset": TEXT, "epochs": COUNT, "seed": COUNT, "seconds": SECONDS}
RESULT = {
    "best_epoch": COUNT,
    "held_out_error": PERCENT.or_null(),
    "test_error": PERCENT,
    "test_images": COUNT,
    "versions": VERSIONS,
}
ASIDE = {
    "device": TEXT.or_null(),
    "mixed_precision": TEXT.or_null(),
    "training_images": COUNT,
    "data": TEXT,
    "pretrained_sha256": TEXT.or_null(),
    "other_seeds": ERRORS,
    "note": TEXT,
}
EVALUATION = {
    "dataset": TEXT.or_null(),
    "config": TEXT.or_null(),
    "revision": TEXT.or_null(),
    "image_column": TEXT.or_null(),
    "label_column": TEXT.or_null(),
    "images": COUNT,
    "error": PERCENT,
}
NEARNESS = {"images": COUNT, "median": DISTANCE, "percentile_95": DISTANCE, "same_class": COUNT, "unsettled": COUNT}
PRETRAINED = {"input_size": SIZE, "mean": NORMALISATION, "std": NORMALISATION}


def check_record(source: str, record: Any, required: Mapping[str, Kind], allowed: Mapping[str, Kind]) -> None:
    """Refuse a record that lacks an entry, or has one of another kind.

    Args:
        source: Where it comes from, for the message.
        record: The record.
        required: Entries that it must have.
        allowed: Entries that it may have; others are not looked at.

    Raises:
        CheckpointError: It is no mapping, an entry is missing or of another kind.
    """
    if not isinstance(record, dict):
        raise CheckpointError(f"{source} is a mapping, not {record!r:.80}.")
    for name, kind in {**required, **allowed}.items():
        if name in record and not kind.allows(record[name]):
            raise CheckpointError(f"{source}: {name} is {kind.words}, not {record[name]!r:.80}.")
        if name in required and name not in record:
            raise CheckpointError(f"{source} lacks {name}, {kind.words}.")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}).") from None


def _parse(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}).") from None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The metrics of a run, a mapping for each epoch.

    Raises:
        CheckpointError: The file cannot be read, has no epoch, or an entry that is missing or of another kind.
    """
    epochs = [_parse(path, line) for line in _read(path).splitlines()]
    if not epochs:
        raise CheckpointError(f"{path} has no epoch: the run has not got so far.")
    for number, epoch in enumerate(epochs, 1):
        check_record(f"{path}, line {number}", epoch, METRICS, AVERAGED)
    return epochs


def read_summary(path: Path) -> dict[str, Any]:
    """The summary of a run; that of a completed one has a result.

    Raises:
        CheckpointError: The file cannot be read, or has an entry that is missing or of another kind.
    """
    summary = _parse(path, _read(path))
    check_record(str(path), summary, {}, {"status": TEXT})
    completed = summary.get("status", "completed") == "completed"
    check_record(str(path), summary, RUN | (RESULT if completed else {}), ASIDE)
    return summary


def precision_of(summary: Mapping[str, Any], recipe: TrainConfig) -> str:
    """The precision of a run (``no`` for 32 bits): of its summary or, where that has none, of its settings."""
    return summary.get("mixed_precision") or recipe.mixed_precision or "no"


def read_model_config(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a checkpoint.

    Raises:
        CheckpointError: timm does not know the model, or an entry is missing or of another kind.
        WeightsError: The file cannot be read.
    """
    path = folder / CONFIG
    config = read_config(path)
    if not timm.is_model(config["architecture"]):
        raise CheckpointError(f"{path}: {config['architecture']!r:.80} is no model that timm knows.")
    optional = {"label_names": TEXTS, "evaluation": MAPPING, "sha256": TEXT.or_null()}
    check_record(str(path), config, {"pretrained_cfg": MAPPING, "model_args": MAPPING}, optional)
    shown = f"{path}: pretrained_cfg"
    check_record(shown, config["pretrained_cfg"], PRETRAINED, {})
    channels = {len(config["pretrained_cfg"][name]) for name in ("mean", "std")}
    if channels != {config["pretrained_cfg"]["input_size"][0]} or min(config["pretrained_cfg"]["std"]) <= 0:
        raise CheckpointError(f"{shown} has not a mean and a std above 0 for each channel of its input_size.")
    return config


def card_error(path: Path) -> float:
    """The test error (%) that a model card reports in its ``model-index``.

    Raises:
        CheckpointError: The card cannot be read, or reports none.
    """
    try:
        results = ModelCard.load(path).data.eval_results or []
        return next(float(result.metric_value) for result in results if result.metric_type == METRIC)
    except Exception as error:  # YAML, encoding and schema errors have no common type
        raise CheckpointError(f"The card {path} reports no test error ({type(error).__name__}).") from None
