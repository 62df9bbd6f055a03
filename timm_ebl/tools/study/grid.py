"""The grid of a study: from a recipe to its cells, each an ordinary configuration of `train_ebl.py`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from ...data.catalogue import DATASETS, EMBEDDED
from ...errors import ConfigError
from ...training.config import TrainConfig, foreign_to, resolve
from ...training.options import read_option, read_setting
from ...training.origin import settle_config
from ...training.presets import PRESETS, useless_for
from ...training.yaml12 import read_yaml

__all__ = ["Cell", "Study", "read_study"]

_SPECS = {spec.name: spec for spec in dataclasses.fields(TrainConfig)}

_OF_THE_STUDY = ("output_dir", "resume", "force", "push_to_hub", "log_with")
"""Settings of a run that a study decides."""

_NOT_OPEN = ("threads", "mixed_precision")
"""Settings of a run that a machine would decide."""

_PARTS = ("settings", "grids", "cluster")

_NOT_IN_A_ROW = ("algo", "dataset", "seed")

_NETWORK = ("model", "pretrained")

_MEASURED = {"dataset_config": None, "label_column": None, "test_split": "test"}
"""Settings that decide by which labels a run is measured, and what they mean where they are left open."""


@dataclass(frozen=True)
class Cell:
    """A run of a study.

    Attributes:
        name: Name of its folder: the rule, the data set and what else the grid says of it.
        dataset: Name of its data set; of a folder the last part of its path, or as many as tell it from others.
        config: Its configuration.
        variant: The settings beside rule, data set and seed in which it differs from the study's common ones.
    """

    name: str
    dataset: str
    config: TrainConfig
    variant: Mapping[str, Any]

    @property
    def setting(self) -> str:
        """Its variant in words; empty where it has none."""
        return ", ".join(f"{name} {_text(value)}" for name, value in self.variant.items())

    @property
    def row(self) -> str:
        """What its row of the table is called: rule and variant."""
        return ", ".join(filter(None, [self.config.algo, self.setting]))


@dataclass(frozen=True)
class Study:
    """What a recipe asks for.

    Attributes:
        name: Name of the recipe.
        settings: What all cells have, as the recipe says it.
        cells: The runs, in the order in which they are started: a seed after the other, so that whole tables are there
            early.
        cluster: What the jobs of a cluster are given (`timm_ebl.tools.study.cluster`).
    """

    name: str
    settings: Mapping[str, Any]
    cells: tuple[Cell, ...]
    cluster: Mapping[str, Any]


def read_study(path: str | Path, data_root: str | None = None) -> Study:
    """The study of a recipe.

    A recipe has ``settings`` that all cells have, ``grids`` and, for a cluster, ``cluster``. A grid is a mapping of
    axes: of an option to its values, or of any other name to mappings of options that go together. Its cells are the
    combinations of one value from each axis; those of several grids are put together. A cell has one thread and 32 bits
    where the recipe says nothing else, however many run at once: its numbers do not depend on that.

    Args:
        path: The YAML file.
        data_root: Folder with copies of data sets of the Hub, for those cells that use one.

    Raises:
        ConfigError: The recipe cannot be read, asks for no cell or for one twice, or a cell cannot be run.
    """
    try:
        recipe = read_yaml(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"The recipe {path} cannot be read: {error}.") from None
    if not isinstance(recipe, dict) or not recipe.get("grids"):
        raise ConfigError(f"The recipe {path} has no 'grids': a list of mappings from options to lists of values.")
    unknown = [key for key in recipe if key not in _PARTS]
    if unknown:
        raise ConfigError(f"{path} has an unknown part {unknown[0]!r}: the parts are {', '.join(_PARTS)}.")
    for part in ("settings", "cluster"):
        if not isinstance(recipe.get(part) or {}, dict):
            raise ConfigError(f"{path}: {part} is a mapping, not {recipe[part]!r:.80}.")
    settings = {"threads": 1, "mixed_precision": "no"} | (recipe.get("settings") or {})
    common = _read(settings, str(path))
    layers = [layer for number, grid in enumerate(_grids(recipe, path), 1) for layer in _layers(grid, number, path)]
    configs = [_configure(common, layer, data_root, path) for layer in layers]
    _refuse_other_images(configs, path)
    tied = _tied_to_the_dataset(layers, configs)
    datasets = _datasets(configs)
    made = zip(configs, datasets, layers, strict=True)
    names = _names([_name(config, dataset, layer) for config, dataset, layer in made], configs)
    networks: dict[str | None, list[dict[str, Any]]] = {}
    for layer, config in zip(layers, configs, strict=True):
        network = {key: layer[key] for key in _NETWORK if key in layer}
        if network not in networks.setdefault(config.dataset, []):
            networks[config.dataset].append(network)
    cells = []
    for name, dataset, config, layer in zip(names, datasets, configs, layers, strict=True):
        own = {key: value for key, value in _settings(config, layer).items() if key in layer and key not in tied}
        usual = [_usual(common, layer, network).items() for network in networks[config.dataset]]
        said = dict(pair for pair in own.items() if not all(pair in each for each in usual))
        variant = {key: value for key, value in said.items() if key not in _NOT_IN_A_ROW}
        cells.append(Cell(name, dataset, config, variant))
    _refuse_twins(layers, cells, path)
    by_seed = sorted(cells, key=lambda cell: cell.config.seed)
    return Study(Path(path).stem, settings, tuple(by_seed), recipe.get("cluster") or {})


def _grids(recipe: Mapping[str, Any], path: str | Path) -> list[dict[str, Any]]:
    grids = recipe["grids"]
    if not isinstance(grids, list) or not all(isinstance(grid, dict) and grid for grid in grids):
        raise ConfigError(f"{path}: grids is a list of mappings from options to lists of values, not {grids!r:.80}.")
    return grids


def _layers(grid: Mapping[str, Any], number: int, path: str | Path) -> Iterator[dict[str, Any]]:
    """The settings of the cells of one grid, in the order of its axes, the last one first to change."""
    axes = []
    for axis, values in grid.items():
        where = f"{path}: grid {number}: {axis}"
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{where} is a list of values with at least one of them, not {values!r:.80}.")
        if axis not in (*_SPECS, "preset") and not all(isinstance(value, dict) and value for value in values):
            raise ConfigError(
                f"{where} is no option of train_ebl.py; an axis of another name has mappings of options as values."
            )
        bundles = [{axis: value} for value in values] if axis in (*_SPECS, "preset") else values
        axes.append([_read(bundle, where) for bundle in bundles])
    for bundles in product(*axes):
        keys = [key for bundle in bundles for key in bundle]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice:
            raise ConfigError(f"{path}: grid {number}: {twice} is set by two axes.")
        yield {key: value for bundle in bundles for key, value in bundle.items()}


def _read(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Settings in their types."""
    for key in settings:
        if key in _OF_THE_STUDY:
            raise ConfigError(f"{where}: {key} is decided by the study: leave it out.")
        if key not in (*_SPECS, "preset"):
            raise ConfigError(f"{where} has an unknown option {key!r}: train_ebl.py --help lists them.")
    return {
        key: read_option(f"{where}: preset", value, str) if key == "preset" else read_setting(_SPECS[key], value, where)
        for key, value in settings.items()
    }


def _configure(
    common: Mapping[str, Any], layer: Mapping[str, Any], data_root: str | None, path: str | Path
) -> TrainConfig:
    try:
        config = resolve(common, layer)
        if data_root and config.dataset not in (None, EMBEDDED) and not _is_folder(config.dataset):
            config = replace(config, data_root=data_root)
        for name in _NOT_OPEN:
            if getattr(config, name) is None:
                raise ConfigError(f"{name} may not be left open in a study: its numbers depend on it.")
        return settle_config(config)[0]
    except ConfigError as error:
        shown = ", ".join(f"{key} {_text(value)}" for key, value in layer.items())
        raise ConfigError(f"{path}: the cell {shown}: {error}") from None


def _refuse_twins(layers: list[dict[str, Any]], cells: list[Cell], path: str | Path) -> None:
    """Refuse cells with the same configuration, or in the same place of the table."""
    seen = set()
    for layer, cell in zip(layers, cells, strict=True):
        keys = {_digest(cell.config), (cell.row, cell.dataset, cell.config.seed)}
        if keys & seen:
            shown = ", ".join(f"{name} {_text(value)}" for name, value in layer.items())
            raise ConfigError(f"{path}: the cell {shown} is there twice: a cell is asked for by one grid, once.")
        seen |= keys


def _tied_to_the_dataset(layers: list[dict[str, Any]], configs: list[TrainConfig]) -> set[str]:
    """Options of the grids that a data set decides, such as the model of each."""
    values: dict[str, dict[str | None, set[str]]] = {name: {} for layer in layers for name in layer}
    for layer, config in zip(layers, configs, strict=True):
        settings, useless = _settings(config, layer), foreign_to(config.algo) | useless_for(config.model)
        for name in values.keys() - useless:
            found = values[name].setdefault(config.dataset, set())
            found.add(json.dumps(settings.get(name), sort_keys=True))
    several = len({config.dataset for config in configs}) > 1
    return {name for name, sets in values.items() if several and all(len(found) == 1 for found in sets.values())}


def _refuse_other_images(configs: list[TrainConfig], path: str | Path) -> None:
    """Refuse cells of one data set that are measured on unlike labels, which nothing can compare."""
    for dataset, (name, usual) in product(dict.fromkeys(config.dataset for config in configs), _MEASURED.items()):
        if len({getattr(config, name) or usual for config in configs if config.dataset == dataset}) > 1:
            raise ConfigError(
                f"{path}: {name} decides by which labels a run is measured, and no test compares runs by unlike ones: "
                "give it under settings, or make a study of each."
            )


def _settings(config: TrainConfig, layer: Mapping[str, Any]) -> dict[str, Any]:
    """A cell's settings, and the preset that its grid names."""
    return {"preset": layer.get("preset"), **config.to_dict()}


def _usual(common: Mapping[str, Any], layer: Mapping[str, Any], network: Mapping[str, Any]) -> dict[str, Any]:
    """What a cell of a network has by the common settings and its rule; empty where these need others."""
    named = {key: layer[key] for key in ("algo", "preset", "dataset") if key in layer}
    own = {key: common.get(key) for key in _NETWORK} | {"preset": common.get("preset", PRESETS[0])}
    try:
        return resolve(common, named | network).to_dict() | own
    except ConfigError:
        return {}


def _datasets(configs: list[TrainConfig]) -> list[str]:
    """Names of the data sets; a folder's is the shortest end of its path that names no other data set of these."""
    names = {config.dataset or EMBEDDED for config in configs}
    parts = {name: Path(name).parts if _is_folder(name) else (name,) for name in names}

    def end(name: str) -> str:
        own, others = parts[name], [parts[other] for other in names - {name}]
        unlike = (n for n in range(1, len(own)) if not any(other[-n:] == own[-n:] for other in others))
        return "/".join(own[-next(unlike, len(own)) :])

    return [end(config.dataset or EMBEDDED) for config in configs]


def _is_folder(dataset: str) -> bool:
    return dataset not in DATASETS and Path(dataset).expanduser().is_dir()


def _name(config: TrainConfig, dataset: str, layer: Mapping[str, Any]) -> str:
    rest = [f"{key}={_text(value)}" for key, value in layer.items() if key not in _NOT_IN_A_ROW]
    parts = [config.algo, dataset, *rest, f"seed={config.seed}"]
    return "_".join(re.sub(r"[^A-Za-z0-9.+=_-]+", "-", part).strip("-.") for part in parts)


def _names(names: list[str], configs: list[TrainConfig]) -> list[str]:
    """Names of which no two are alike, in any case, and none is too long for a file system."""
    folded = [name.casefold() for name in names]
    return [
        name if folded.count(name.casefold()) == 1 and len(name) <= 150 else f"{name[:150]}-{_digest(config)[:8]}"
        for name, config in zip(names, configs, strict=True)
    ]


def _digest(config: TrainConfig) -> str:
    return hashlib.sha256(json.dumps(config.decisive(), sort_keys=True).encode()).hexdigest()


def _text(value: Any) -> str:
    """A value in a name or a label."""
    if isinstance(value, Mapping):
        return " ".join(f"{key}={_text(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(map(_text, value))
    return value if isinstance(value, str) else json.dumps(value)
