"""The checkpoint that a run starts from, and what it decides of the run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ..data.catalogue import CHANNELS, DATASETS, IMG_SIZE
from ..errors import CheckpointError, ConfigError
from ..models.weights import SHIPPED, WEIGHTS
from .inference import load_model
from .options import flag_of
from .presets import free_phase_of
from .trained import TrainedModel

if TYPE_CHECKING:
    from .config import TrainConfig

__all__ = ["Origin", "settle_config"]

_STRUCTURE = ("widths", "kernel_size", "pool", "pooling", "gains", "bias_gain")
"""Arguments of a DCHN that are a checkpoint's; the gains are those of a new read-out."""


@dataclass(frozen=True)
class Origin:
    """A checkpoint whose weights a run starts from.

    Attributes:
        name: What it was asked for by; of a shipped one the whole name.
        folder: Folder of its ``model.safetensors`` and ``config.json``.
        config: Its ``config.json``.
    """

    name: str
    folder: Path
    config: dict[str, Any]

    @classmethod
    def open(cls, name: str) -> Origin:
        """Find a checkpoint (`TrainedModel.open`) and see that its weights can be used.

        Raises:
            ConfigError: There is no such checkpoint, or it cannot be used.
        """
        try:
            checkpoint = TrainedModel.open(name)
            load_model(checkpoint.weights)
            is_shipped = checkpoint.weights.parent == SHIPPED
            return cls(checkpoint.name if is_shipped else name, checkpoint.weights, checkpoint.config)
        except CheckpointError as error:
            raise ConfigError(f"--pretrained {name}: {error}") from None

    @cached_property
    def sha256(self) -> str:
        """Checksum of its weights."""
        return hashlib.sha256((self.folder / WEIGHTS).read_bytes()).hexdigest()

    def has_classes(self, classes: Sequence[str]) -> bool:
        """Whether its outputs are these classes: their names, or their number where it has no names."""
        names = self.config.get("label_names")
        return self.config.get("num_classes") == len(classes) and (names is None or names == [*classes])

    def settle(self, config: TrainConfig) -> TrainConfig:
        """The configuration with the model, the kind of images and the normalisation of the checkpoint.

        Where images are read with other channels than the checkpoint's, each is normalised by the mean over those.

        Raises:
            ConfigError: The configuration asks for another model than the checkpoint's.
        """
        model, given = self.config["architecture"], dict(config.model_kwargs)
        trained = self.config["pretrained_cfg"]
        if config.model not in (None, model, f"{model}.{trained.get('tag')}", self.name):
            raise ConfigError(
                f"--pretrained {self.name} is a {model}, and --model {config.model} another: leave --model out."
            )
        structure = {key: value for key, value in self.config["model_args"].items() if key in _STRUCTURE}
        for key in given.keys() & {*_STRUCTURE}:
            if key not in structure or json.dumps(given[key]) != json.dumps(structure[key]):
                raise ConfigError(f"--pretrained {self.name} decides {key}: leave it out of {flag_of('model_kwargs')}.")
        channels, height, width = trained["input_size"]
        if channels not in (1, 3) or height != width:
            raise ConfigError(
                f"--pretrained {self.name} takes images of {channels} channels and {height} x {width} pixels, and a "
                "run has square ones of 1 or 3."
            )
        read = config.channels or CHANNELS[channels > 1]
        normalisation = {"mean": config.mean, "std": config.std}
        if config.mean is None:
            count = (1, 3)[CHANNELS.index(read)]
            normalisation = {
                key: tuple(trained[key]) if count == channels else (fmean(trained[key]),) * count
                for key in normalisation
            }
        return replace(
            config,
            pretrained=self.name,
            model=model,
            model_kwargs=structure | given,
            channels=read,
            img_size=config.img_size or height,
            **normalisation,
        )

    def describe(self, config: TrainConfig, classes: Sequence[str]) -> str:
        """What a run takes from it, in a line."""
        mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (config.mean, config.std))
        own, bounded = free_phase_of(self.config), self.config.get("model_args", {}).get("tolerance") is not None
        same = own and not bounded and all(getattr(config, name) == own[name] for name in own)
        taken = "the weights" + " and the free phase" * bool(same)
        head = "" if self.has_classes(classes) else f" but for a new read-out of {len(classes)} classes"
        return f"{taken} of {self.name}{head}; {config.channels} images less {mean}, divided by {std}"


def settle_config(config: TrainConfig) -> tuple[TrainConfig, Origin | None]:
    """The configuration with whole paths and with all that ``--pretrained`` decides, and the checkpoint.

    Raises:
        ConfigError: The checkpoint cannot be used, or the configuration contradicts it.
    """
    if config.dataset not in DATASETS:
        config = replace(config, dataset=_whole(config.dataset))
    config = replace(config, data_root=_whole(config.data_root), pretrained=_whole(config.pretrained))
    if config.pretrained is None:
        return replace(config, img_size=config.img_size or IMG_SIZE), None
    origin = Origin.open(config.pretrained)
    return origin.settle(config), origin


def _whole(name: str | None) -> str | None:
    """The whole path of a folder, which is the same for a command that is given elsewhere; other names as they are."""
    prefix, path = ("local-dir:", name[10:]) if name and name.startswith("local-dir:") else ("", name)
    folder = os.path.expanduser(path or "")
    return prefix + os.path.abspath(folder) if os.path.isdir(folder) else name
