"""Parts of a training run: what a configuration builds."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from timm.optim import create_optimizer_v2
from torch import nn
from torch.optim import Optimizer

from ..data.catalogue import DATASETS, EMBEDDED, IMG_SIZE
from ..data.transforms import BatchTransform
from ..errors import ConfigError
from ..models.factory import family_of, list_networks
from ..relaxation.minimizer import Minimizer
from ..relaxation.model import EnergyModel
from .config import TrainConfig
from .rule import build_rule, free_phase

if TYPE_CHECKING:
    from ..data.dataset import ImageDataset
    from .origin import Origin

__all__ = [
    "build_model",
    "build_optimizer",
    "build_transform",
    "check_config",
]

_NO_ENERGY = (
    "The model '{}' has no energy to relax: choose one of timm.list_models(['dchn*', 'hopfield_resnet*', 'pcn*']), or "
    "a timm_ebl.EnergyModel that is registered with timm."
)

_OWN_MINIMIZER = (
    "The model '{}' has a minimiser of its own, and takes no sweeps, omega, order and start: leave out the options of "
    "the free phase, and --preset paper."
)

_NO_MODEL_KWARGS = {
    "order": "it is set by --order",
    "sweeps": "it is set by --free-sweeps",
    "omega": "it is set by --omega",
    "start": "it is set by --start",
    "compiled": "it is set by --compiled",
    "tolerance": "a run makes a fixed number of sweeps, --free-sweeps",
    "backward": "a run learns by --algo",
    "in_chans": "the data decide it, and --channels",
    "img_size": "it is set by --img-size",
    "device": "accelerate chooses it",
    "dtype": "weights are in 32 bits, and --mixed-precision sets what is computed in",
    "scriptable": "a run trains the model as it is",
    "exportable": "a run trains the model as it is",
    "features_only": "a run trains the whole model",
    "out_indices": "a run trains the whole model",
} | dict.fromkeys(
    ("checkpoint_path", "cache_dir", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict"),
    "weights to start from are named by --pretrained",
)
"""Arguments of `timm.create_model` that are no matter of ``--model-kwargs``, and why."""


def build_transform(config: TrainConfig, train: ImageDataset) -> BatchTransform:
    """Augmentation and normalisation of the configured data set.

    It is normalised as configured, else as published (`timm_ebl.data.catalogue`), else by statistics of its
    training split.

    Raises:
        ConfigError: The configured normalisation has not one value for each channel, or the square of ``--cutout`` is
            larger than the images.
    """
    spec, (channels, *size) = train.spec, train.images.shape[1:]
    if config.cutout > max(size):
        raise ConfigError(
            f"--cutout {config.cutout} is larger than the images of {train.name}, which have {size[0]} x {size[1]} "
            "pixels: take a smaller square."
        )
    published = (spec.mean, spec.std) if spec.mean and len(spec.mean) == channels else None
    mean, std = (config.mean, config.std) if config.mean else published or train.statistics()
    if {len(mean), len(std)} != {channels}:
        raise ConfigError(
            f"The images of {train.name} have {channels} channel{'s' * (channels > 1)}, and so many values go with "
            f"--mean and --std; got {len(mean)} and {len(std)}."
        )
    augmentation = spec.padding, spec.flip, config.randaugment, config.cutout
    return BatchTransform(mean, std, *(augmentation if config.aug else ()))


def check_config(config: TrainConfig) -> None:
    """Build what a configuration asks for and throw it away, before data are loaded. It draws random numbers.

    Raises:
        ConfigError: The rule, the model or the optimiser cannot be built, or the data options contradict each other.
    """
    model = _create_model(config, config.model or "dchn_tiny_cifar10")
    build_rule(config, model)
    build_optimizer(config, model)
    dataset = config.dataset or EMBEDDED
    if config.data_root and (dataset == EMBEDDED or (dataset not in DATASETS and Path(dataset).is_dir())):
        raise ConfigError(
            f"--data-root holds copies of data sets of the Hub, and {dataset} is none: leave one of the two out."
        )


def build_model(config: TrainConfig, train: ImageDataset, origin: Origin | None = None) -> EnergyModel:
    """The configured model, fitted to the channels and classes of the data; its lowest interactions may be frozen.

    A model that takes the settings of a free phase as arguments, as a DCHN does, relaxes by those of the run; any other
    one by its own `EnergyModel.minimizer`, in training and in evaluation.

    Args:
        config: The configuration, which agrees with the checkpoint (`Origin.settle`).
        train: The training split.
        origin: The checkpoint that it starts from. Where its outputs are other classes the read-out is a fresh one.

    Raises:
        ConfigError: timm does not know the model, it is no energy model, or the data do not fit it.
    """
    name = config.model or default_model(train)
    model = _create_model(config, name, origin, in_chans=train.images.shape[1], num_classes=len(train.classes))
    if model.num_classes < len(train.classes):
        raise ConfigError(f"{train.name} has {len(train.classes)} classes, the model {model.num_classes} outputs.")
    try:
        with torch.no_grad():
            model.answer(train.images[:1].float())
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"The images of {train.name} do not fit the model: {error}") from None
    if origin and not origin.has_classes(train.classes):
        if not hasattr(model, "reset_classifier"):
            raise ConfigError(f"{origin.name} has other classes than {train.name}, and no reset_classifier.")
        model.reset_classifier(model.num_classes)
    for part in _parts(model)[: config.freeze]:
        part.requires_grad_(False)
    return model


def _parts(model: EnergyModel) -> list[nn.Module]:
    """The parts that have a learning rate each, from the input upwards: the interactions, else the whole model."""
    return list(getattr(model, "interactions", [model]))


def _created(
    source: Mapping[str, Any],
    fitted: Mapping[str, int],
    phase: Mapping[str, Any],
    given: Mapping[str, Any],
    saved: bool,
) -> tuple[nn.Module, bool]:
    """A model, and whether it has a minimiser of its own; of a saved one the size is left out if it takes none."""
    sizes = [fitted, {key: value for key, value in fitted.items() if key != "img_size"}][: 1 + saved]
    for own, arguments in ((False, phase), (True, {})):
        for size in sizes:
            try:
                return timm.create_model(**source, **{**size, **arguments, **given}), own
            except TypeError as error:
                if not any(f"argument {key!r}" in str(error) for key in (*phase, "img_size")):
                    raise
                refusal = error
    raise refusal


def _create_model(config: TrainConfig, name: str, origin: Origin | None = None, **fitted: int) -> EnergyModel:
    """The model of that name with the configured arguments, and with weights if it starts from a checkpoint."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        known = ", ".join(list_networks())
        raise ConfigError(f"Unknown model {name!r}: choose one of {known}, or one that --import MODULE registers.")
    checkpoints = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in checkpoints:
        raise ConfigError(f"There is no checkpoint {name!r}: {architecture} has {', '.join(checkpoints) or 'none'}.")
    if tag:
        raise ConfigError(
            f"--model {name} names a checkpoint: --pretrained {name} starts from its weights, --model {architecture} "
            "from none."
        )
    given = dict(config.model_kwargs)
    other = next((key for key in given if key in _NO_MODEL_KWARGS), None)
    if other:
        raise ConfigError(f"--model-kwargs takes no {other}: {_NO_MODEL_KWARGS[other]}.")
    if config.img_size not in (None, IMG_SIZE) or origin:
        fitted["img_size"] = config.img_size
    source = {"model_name": f"local-dir:{origin.folder}" if origin else name, "pretrained": origin is not None}
    phase = free_phase(config)
    try:
        model, own = _created(source, fitted, phase, dict(config.model_kwargs), origin is not None)
    except TypeError as error:
        family = family_of(name)
        known = ", ".join(key for key in signature(family).parameters if key not in _NO_MODEL_KWARGS) if family else ""
        takes = f"; a {family.__name__} takes {known}" if family else ""
        raise ConfigError(f"The model {name!r} cannot be built ({error}){takes}.") from None
    except (MemoryError, RuntimeError, ValueError) as error:
        raise ConfigError(f"The model {name!r} cannot be built: {error}") from error
    if not (isinstance(model, EnergyModel) and isinstance(model, nn.Module)):
        raise ConfigError(_NO_ENERGY.format(name))
    if own and phase != free_phase(TrainConfig()):
        raise ConfigError(_OWN_MINIMIZER.format(name))
    if not own:  # "compiled" is no argument: who loads the checkpoint need not wait for a compiler
        model.minimizer = Minimizer(**phase, compiled=config.compiled)
    lacking = next(
        (attribute for attribute in ("pretrained_cfg", "num_classes") if not hasattr(model, attribute)), None
    )
    if lacking:
        raise ConfigError(
            f"The model {name!r} has no {lacking}: build it by timm.models.build_model_with_cfg, and set num_classes."
        )
    return model


def default_model(train: ImageDataset) -> str:
    """The tiny DCHN of a data set by name; of CIFAR-10 or Fashion-MNIST, by colour, if there is none."""
    name = f"dchn_tiny_{train.name.replace('-', '_')}"
    if timm.is_model(name):
        return name
    return "dchn_tiny_fashion_mnist" if train.images.shape[1] == 1 else "dchn_tiny_cifar10"


def build_optimizer(config: TrainConfig, model: EnergyModel) -> Optimizer:
    """The configured optimiser from timm.optim, with a learning rate for each interaction (weight and bias alike).

    Interactions that are frozen are left out. A model without `interactions` has one learning rate.

    Raises:
        ConfigError: The optimiser is unknown or has other options, it needs second derivatives, which a rule's update
            has not, the number of learning rates is neither one nor that of interactions, or all of those are frozen.
    """
    parts, whole = _parts(model), not hasattr(model, "interactions")
    if config.freeze >= len(parts):
        has = "no interactions" if whole else f"{len(parts)} interactions, and one at least must learn"
        raise ConfigError(f"--freeze is at most {len(parts) - 1}, not {config.freeze}: the model has {has}.")
    rates = config.lr * len(parts) if len(config.lr) == 1 else config.lr
    if len(rates) != len(parts):
        each = ": the model has no interactions" if whole else f" or {len(parts)}, one for each interaction"
        raise ConfigError(f"--lr is one rate{each}; got {len(rates)}.")
    groups = [{"params": list(part.parameters()), "lr": rate} for part, rate in zip(parts, rates, strict=True)]
    groups = groups[config.freeze :]
    betas = {} if config.opt_betas is None else {"betas": config.opt_betas}
    try:
        _check_optimizer(config)
        return create_optimizer_v2(
            groups,
            opt=config.opt,
            lr=rates[-1],
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            filter_bias_and_bn=False,
            **betas,
        )
    except (
        AssertionError,
        ImportError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:  # assertions: those that need a GPU
        known = ", ".join(timm.optim.list_optimizers(exclude_filters=["adahessian", "*adamp", "bnb*", "fused*"]))
        raise ConfigError(f"The optimiser {config.opt!r} cannot be built ({error}); timm.optim has {known}.") from None


def _check_optimizer(config: TrainConfig) -> None:
    info = timm.optim.get_optimizer_info(config.opt.lower().rpartition("_")[2])  # lookahead_NAME is one, too
    betas = info.num_betas if info.has_betas else 0
    if info.second_order:
        raise ValueError("it needs second derivatives, and a rule's update has none")
    if config.opt_betas is not None and len(config.opt_betas) != betas:
        raise ValueError(f"--opt-betas has {len(config.opt_betas)} values, and it takes {betas or 'none'}")
    if config.momentum != TrainConfig.momentum and not info.has_momentum:
        raise ValueError("it has no --momentum")
