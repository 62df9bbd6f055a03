"""Parts of a training run: what a configuration builds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import timm
from timm.optim import create_optimizer_v2
from torch.optim import Optimizer

from .config import TrainConfig
from .data import ImageDataset
from .errors import ConfigError
from .minimize import Minimizer
from .network import HopfieldNetwork
from .rules import ContrastiveRule, Rule, create_rule, rule_options
from .transforms import BatchTransform

__all__ = [
    "build_model",
    "build_optimizer",
    "build_rule",
    "build_transform",
    "free_phase",
]


def build_transform(config: TrainConfig, train: ImageDataset) -> BatchTransform:
    """Augmentation and normalisation of the configured data set.

    It is normalised as configured, else as published (`timm_ebl.spec`), else by statistics of its training split.

    Raises:
        ConfigError: The configured normalisation has not one value for each channel.
    """
    spec, channels = train.spec, train.images.shape[1]
    published = (spec.mean, spec.std) if spec.mean and len(spec.mean) == channels else None
    mean, std = (config.mean, config.std) if config.mean else published or train.statistics()
    if {len(mean), len(std)} != {channels}:
        raise ConfigError(
            f"The images of {train.name} have {channels} channel{'s' * (channels > 1)}, and so many values go with "
            f"--mean and --std; got {len(mean)} and {len(std)}."
        )
    return BatchTransform(mean, std, spec.padding, spec.flip)


def free_phase(config: TrainConfig) -> dict[str, Any]:
    """The configured fields of the free phase's `Minimizer`, which a DCHN takes as arguments too."""
    return {"order": config.order, "sweeps": config.free_sweeps, "omega": config.omega, "start": config.start}


def build_model(config: TrainConfig, train: ImageDataset) -> HopfieldNetwork:
    """The configured model, fitted to the channels and classes of the data.

    Raises:
        ConfigError: timm does not know the model, it is no energy model, or the data do not fit it.
    """
    name = config.model or default_model(train)
    if not timm.is_model(name):
        known = ", ".join(timm.list_models("dchn*"))
        raise ConfigError(f"Unknown model {name!r}: choose one of {known}, or another timm model with an energy.")
    fitted = {"in_chans": train.images.shape[1], "num_classes": len(train.classes)}
    if config.img_size != TrainConfig.img_size:
        fitted["img_size"] = config.img_size
    try:
        model = timm.create_model(name, **(fitted | free_phase(config) | dict(config.model_kwargs)))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"The model {name!r} cannot be built ({error}); models with an energy are timm.list_models('dchn*')."
        ) from None
    if not isinstance(model, HopfieldNetwork):
        raise ConfigError(f"The model {name!r} has no energy to relax: choose one of timm.list_models('dchn*').")
    if model.num_classes < len(train.classes):
        raise ConfigError(f"{train.name} has {len(train.classes)} classes, the model {model.num_classes} outputs.")
    try:
        model.check_input(train.images[:1].float())
    except ValueError as error:
        raise ConfigError(f"The images of {train.name} do not fit the model: {error}") from None
    # Not an argument of the model: who loads the checkpoint need not wait for a compiler.
    model.minimizer = replace(model.minimizer, compiled=config.compiled)
    return model


def default_model(train: ImageDataset) -> str:
    """The tiny DCHN of a data set by name; of CIFAR-10 or Fashion-MNIST, by colour, if there is none."""
    name = f"dchn_tiny_{train.name.replace('-', '_')}"
    if timm.is_model(name):
        return name
    return "dchn_tiny_fashion_mnist" if train.images.shape[1] == 1 else "dchn_tiny_cifar10"


def build_rule(config: TrainConfig) -> Rule:
    """The configured rule; the baselines take their second phase's order and over-relaxation from the paper.

    Raises:
        ConfigError: beta does not go with the rule.
    """
    default = create_rule(config.algo)
    second = {"sweeps": config.nudged_sweeps, "compiled": config.compiled}
    if isinstance(default, ContrastiveRule):
        second |= {"order": config.nudged_order, "omega": config.nudged_omega}
    options = {
        "free": Minimizer(**free_phase(config), compiled=config.compiled),
        "second": replace(default.second, **_given(second)),
        "beta": config.beta,
        "hold_routes": config.hold_routes,
        "settle": config.settle,
        "companion": config.companion,
        "damped": config.damped,
    }
    allowed = rule_options(config.algo)
    try:
        return create_rule(config.algo, **{name: value for name, value in _given(options).items() if name in allowed})
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def build_optimizer(config: TrainConfig, model: HopfieldNetwork) -> Optimizer:
    """The configured optimiser from timm.optim, with a learning rate for each interaction (weight and bias alike).

    Raises:
        ConfigError: The optimiser is unknown, lacks a library or a GPU, or needs second derivatives, or the number of
            learning rates is neither one nor that of interactions.
    """
    interactions = list(model.interactions)
    rates = config.lr * len(interactions) if len(config.lr) == 1 else config.lr
    if len(rates) != len(interactions):
        raise ConfigError(f"--lr is one rate or {len(interactions)}, one for each interaction; got {len(rates)}.")
    groups = [{"params": list(i.parameters()), "lr": rate} for i, rate in zip(interactions, rates, strict=True)]
    betas = {} if config.opt_betas is None else {"betas": config.opt_betas}
    try:
        optimizer = create_optimizer_v2(
            groups,
            opt=config.opt,
            lr=rates[0],
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            filter_bias_and_bn=False,
            **betas,
        )
        if getattr(optimizer, "is_second_order", False):
            raise ValueError("it needs second derivatives, which no rule here computes")
    except (AssertionError, ImportError, RuntimeError, TypeError, ValueError) as error:
        known = ", ".join(timm.optim.list_optimizers(exclude_filters=["adahessian", "*adamp", "bnb*", "fused*"]))
        raise ConfigError(f"The optimiser {config.opt!r} cannot be built ({error}); timm.optim has {known}.") from None
    return optimizer
