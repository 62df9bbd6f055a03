"""From the folder of a run to a checkpoint that can be shipped or published: measured, described and small."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from ..data.catalogue import DATASETS, EMBEDDED
from ..errors import CheckpointError
from ..models.factory import family_of
from ..models.weights import CONFIG, SHIPPED, WEIGHTS, read_config, read_weights
from ..training.equilibrium import measure_nearness
from ..training.files import temporary_folder, write_whole, writing
from ..training.finding import RECIPES, RECORDS
from ..training.inference import predict
from ..training.records import CARD, read_metrics
from ..training.trained import Evaluation, TrainedModel
from ..training.yaml12 import dump_yaml
from .card import render_card

if TYPE_CHECKING:
    from ..data.dataset import ImageDataset
    from ..training.config import TrainConfig

__all__ = ["package", "stage"]

_MACHINE = ("data_root", "output_dir", "push_to_hub")
"""Settings that belong to the machine of the run, and to no recipe for others."""

_ROUNDING = 0.05
"""Most points of test error by which weights in 16 bits may differ from those of the run."""

_SAMPLE = "sample"
"""End of the tag of what was trained on the embedded sample."""


def package(
    run: TrainedModel,
    tag: str | None = None,
    others: Sequence[TrainedModel] = (),
    note: str | None = None,
    data_root: str | Path | None = None,
    dataset: str | None = None,
    force: bool = False,
    weights: Path = SHIPPED,
    records: Path = RECIPES,
) -> str:
    """Make a run part of the package: its weights as package data, its record beside the recipes.

    Args:
        run: The run.
        tag: What follows the model's name; by default the rule's name with underscores, and that of the data where the
            model's name does not tell them. After a run on the embedded sample it ends in ``sample``.
        others: Runs of the same recipe with other seeds, whose errors the card reports as well.
        note: A sentence for the card's limits.
        data_root: Folder with copies of Hub data sets.
        dataset: Folder with the data set, if it is not where the recipe says.
        force: Replace what has that name.
        weights: Folder of the package's weights.
        records: Folder of the records.

    Returns:
        The checkpoint's name, ``<model>.<tag>``.

    Raises:
        CheckpointError: The run is not what its summary says, or has not ended, the model is none of the package, the
            tag is none for it, or another checkpoint has the name.
        DataError: Its test split cannot be loaded.
    """
    if not records.is_dir():
        raise CheckpointError(f"There is no folder {records}: a run is packaged in a clone of the repository.")
    model = run.config["architecture"]
    if family_of(model) is None:
        raise CheckpointError(
            f"{model} is no model of the package, which could not load it: publish sends such a run to the Hub."
        )
    tag = _default_tag(run) if tag is None else tag
    if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9_-]*", tag):
        raise CheckpointError(f"A --tag has letters, digits, - and _, and no more; not {tag!r}.")
    if _is_of_sample(run) and not tag.endswith(_SAMPLE):
        raise CheckpointError(f"The tag of a run on the embedded sample ends in {_SAMPLE!r}, unlike {tag!r}.")
    name = f"{model}.{tag}"
    there = _describe(TrainedModel(name, weights / name, records / name))
    if there and not force:
        raise CheckpointError(f"{there} is there already: --force replaces it, --tag gives this run another name.")
    if there:
        print(f"replacing {there}")
    test = run.test_split(data_root, dataset)
    with temporary_folder() as folder:
        with writing(folder):
            stage(run, folder, name, name, test, others, note, compact=True)
        for target, files in ((weights / name, (WEIGHTS, CONFIG)), (records / name, (CARD, *RECORDS))):
            target.mkdir(parents=True, exist_ok=True)
            for file in files:
                write_whole(target / file, lambda path, file=file: shutil.copyfile(folder / file, path))
    return name


def _is_of_sample(run: TrainedModel) -> bool:
    return run.recipe.dataset in (None, EMBEDDED)


def _default_tag(run: TrainedModel) -> str:
    """The rule, and the data where the model's name does not tell them."""
    rule = run.recipe.algo.replace("-", "_")
    data = _SAMPLE if _is_of_sample(run) else re.sub("[^A-Za-z0-9]+", "_", Path(_portable(run.recipe.dataset)).name)
    return (
        rule
        if re.fullmatch(f"(dchn|hopfield_resnet13|pcn_vgg5)_(small_|tiny_)?{data}", run.config["architecture"])
        else f"{rule}_{data}"
    )


def _describe(checkpoint: TrainedModel) -> str | None:
    """What the folders of a checkpoint hold, in words; ``None`` if there is nothing."""
    if not any(folder and folder.exists() for folder in (checkpoint.weights, checkpoint.records)):
        return None
    try:
        found, summary = checkpoint.evaluation, checkpoint.summary
    except CheckpointError:
        return f"{checkpoint.name} (incomplete or damaged)"
    measured = f"{found.error:.2f} % test error on {found.images:,} images"
    return f"{checkpoint.name} ({measured}, {summary['epochs']} epochs, seed {summary['seed']})"


def stage(
    run: TrainedModel,
    target: Path,
    name: str,
    model: str,
    test: ImageDataset,
    others: Sequence[TrainedModel] = (),
    note: str | None = None,
    compact: bool = False,
) -> Evaluation:
    """Write a checkpoint's files into a folder: weights, configuration, card and records.

    The error and the distance from equilibrium are measured, from the file that is written.

    Args:
        run: The run.
        target: An empty folder.
        name: Name of the checkpoint.
        model: What the card loads it by.
        test: The test split.
        others: Runs of the same recipe with other seeds.
        note: A sentence for the card's limits.
        compact: Store the weights in 16 bits if that moves the test error by 0.05 points at most, else as they are.

    Returns:
        What was measured.

    Raises:
        CheckpointError: The run is not what its summary says, or has not ended.
    """
    for file in RECORDS:
        if not run.record(file).is_file():
            raise CheckpointError(f"{run.weights} is no finished run: it has no {file}.")
    read_metrics(run.record("metrics.jsonl"))
    status = run.summary.get("status", "completed")
    if status != "completed":
        raise CheckpointError(f"The run {run.weights} {status}: there is nothing to publish.")
    _check_others(run, others)
    shutil.copyfile(run.weights / CONFIG, target / CONFIG)
    shutil.copyfile(run.weights / WEIGHTS, target / WEIGHTS)
    measured = run.evaluate(predict(target, test), test)
    if compact:
        measured = _round_weights(target, run, test, measured)
    measured = replace(measured, dataset=_portable(run.recipe.dataset))
    _check_summary(run, measured)
    measured = replace(measured, equilibrium=measure_nearness(target, test))

    summary: dict[str, Any] = {**run.summary, "dataset": _portable(run.summary["dataset"])}
    summary |= {"test_error": measured.error, "test_images": measured.images}
    if others:
        summary["other_seeds"] = {str(other.summary["seed"]): other.summary["test_error"] for other in others}
    if note:
        summary["note"] = note
    config = {**run.config, "evaluation": asdict(measured)}
    config["sha256"] = hashlib.sha256((target / WEIGHTS).read_bytes()).hexdigest()
    recipe = replace(run.recipe, **_portable_settings(run))
    texts = {
        CONFIG: json.dumps(config, indent=2) + "\n",
        "summary.json": json.dumps(summary, indent=2) + "\n",
        "args.yaml": dump_yaml(recipe.to_dict()),
        CARD: render_card(name, model, recipe, summary, config),
    }
    for file, text in texts.items():
        (target / file).write_text(text, encoding="utf-8")
    for file in ("metrics.jsonl", "curves.png"):
        shutil.copyfile(run.record(file), target / file)
    return measured


def _round_weights(folder: Path, run: TrainedModel, test: ImageDataset, measured: Evaluation) -> Evaluation:
    """Round the weights in a folder to 16 bits if they are as good; return the evaluation of what is there then."""
    exact = read_weights(folder / WEIGHTS)
    config = read_config(folder / CONFIG)
    (folder / CONFIG).write_text(json.dumps(config | {"sha256": None}), encoding="utf-8")  # that of other weights
    half = {key: value.half() for key, value in exact.items()}
    if all(bool(value.isfinite().all()) for value in half.values()):
        save_file(half, folder / WEIGHTS, metadata={"format": "pt"})
        rounded = run.evaluate(predict(folder, test), test)
        if abs(rounded.error - measured.error) <= _ROUNDING:
            return rounded
        save_file(exact, folder / WEIGHTS, metadata={"format": "pt"})
    return measured


def _portable(name: str | None) -> str | None:
    """The name of a data set or checkpoint without the folders of this machine; a folder's is none of `DATASETS`."""
    if name is None or name in DATASETS or not (os.path.isabs(name) or os.path.isdir(os.path.expanduser(name))):
        return name
    base = Path(name).name
    return f"{base}-folder" if base in DATASETS else base


def _portable_settings(run: TrainedModel) -> dict[str, Any]:
    source = run.recipe.pretrained and run.recipe.pretrained.removeprefix("local-dir:")
    return {**dict.fromkeys(_MACHINE), "dataset": _portable(run.recipe.dataset), "pretrained": _portable(source)}


def _check_summary(run: TrainedModel, measured: Evaluation) -> None:
    """Refuse weights that are not those of the summary."""
    claimed = run.summary["test_error"]
    if not run.agrees(claimed, measured):
        raise CheckpointError(
            f"The weights in {run.weights} have {measured.error:.2f} % test error on {measured.images:,} images, but "
            f"its summary.json says {claimed:.2f} %: these are other weights, or other data."
        )


def _check_others(run: TrainedModel, others: Sequence[TrainedModel]) -> None:
    def recipe(checkpoint: TrainedModel) -> TrainConfig:
        return replace(checkpoint.recipe, **_portable_settings(checkpoint), seed=0)

    seeds = [run.summary["seed"]]
    for other in others:
        if (status := other.summary.get("status", "completed")) != "completed":
            raise CheckpointError(f"{other.weights} {status}: it has no test error.")
        if recipe(other) != recipe(run):
            raise CheckpointError(f"{other.weights} has another recipe than {run.weights}: only the seed may differ.")
        if other.summary["seed"] in seeds:
            raise CheckpointError(f"{other.weights} has the seed {other.summary['seed']} of another run.")
        seeds.append(other.summary["seed"])
