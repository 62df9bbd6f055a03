"""How a run finds states: our default, the published procedure of a family of networks, or as a checkpoint does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.models import is_model_in_modules

from ..data.catalogue import DATASETS, EMBEDDED
from ..errors import ConfigError
from .options import read_option

__all__ = ["FREE_PHASE", "PRESETS", "free_phase_of", "preset", "useless_for"]

PRESETS = ("fast", "paper")
"""Our default, with a learning rate that goes with it, and the published procedure."""

FREE_PHASE: Mapping[str, tuple[Any, ...]] = {
    "free_sweeps": ("sweeps", int),
    "omega": ("omega", float, True),
    "order": ("order", str),
    "start": ("start", str),
}
"""Settings of the free phase: the argument of a network that each is, and its type as `read_option` takes it."""

_PLAIN = {
    "omega": (1.0,),
    "start": "zero",
    "nudged_omega": (1.0,),
    "nudged_order": "asynchronous",
    "linear_response": False,
    "settle": False,
    "damped": True,
}
"""What the published procedures share: sweeps without over-relaxation, from zero, and phases that follow the energy."""

_DCHN, _RESNET, _PCN = "dchn", "hopfield_resnet", "pcn"
"""Families, by the files that register their networks with timm."""

_FAST: Mapping[str, Mapping[str, Any]] = {
    # AdamW at 2e-3 does not teach a DCHN of a quarter of the paper's widths (README.md, "Learning rate and width").
    _DCHN: {"opt": "muon", "lr": (1e-3,), "weight_decay": 0.3},
    # Units in [0, 6] amplify more than those in [0, 1]: at a rate of 2e-3 the states run away to their bounds.
    _RESNET: {"free_sweeps": 15, "omega": (1.8,), "lr": (1e-3,)},
}

_BY_WIDTH: Mapping[str, Mapping[str, Any]] = {
    "dchn_tiny_": {},
    "dchn_small_": {"lr": (3e-4,)},
    "dchn_": {"lr": (1.5e-4,), "weight_decay": 0.6},
}
"""What a wider DCHN of the package needs of Muon, by the beginning of its name, the paper's widths last."""

_PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    # The comparative study, Section 4.1, and its released code.
    _DCHN: {"free_sweeps": 60, "nudged_sweeps": 15, "warm_start": True, "companion": True},
    # arXiv 2509.26003.
    _RESNET: {"free_sweeps": 120, "nudged_sweeps": 50, "beta": 0.1},
    # arXiv 2606.03584, PCN-VGG5; the free phase is a forward pass.
    _PCN: {"nudged_sweeps": 5, "beta": 0.02},
}

_OF_A_NETWORK: Mapping[str, Mapping[str, Any]] = {"pcn_vgg10": {"nudged_sweeps": 10, "beta": 0.05}}
"""What is published for a network of a family by itself."""

_OF_A_DATASET: Mapping[tuple[str, str], Mapping[str, Any]] = {
    # The released code normalises CIFAR-10 by three times its deviations.
    (_DCHN, "cifar10"): {"mean": DATASETS["cifar10"].mean, "std": DATASETS["cifar10"].paper_std},
    (_RESNET, "fashion-mnist"): {"beta": 0.15},
    (_RESNET, "cifar100"): {"beta": 0.15},
}


def preset(name: str, model: str | None, dataset: str | None, perturbs: bool = True) -> dict[str, Any]:
    """The settings of a preset.

    Args:
        name: Of `PRESETS`.
        model: The model. One of no family of the package, and none, which is a DCHN, have the procedure of the
            comparative study.
        dataset: The data set by name or Hub id, or ``None`` for the sample of Fashion-MNIST that the package has.
        perturbs: Whether the rule has perturbed phases. For the others, the sweeps published for a predictive coding
            network are too few for the gradient to reach its first layer, and are left to the model.

    Raises:
        ConfigError: There is no such preset.
    """
    if name not in PRESETS:
        raise ConfigError(f"Unknown preset {name!r}: choose one of {', '.join(PRESETS)}.")
    architecture, family = (model or "").partition(".")[0], _family_of(model)
    if name == "fast":
        ours = is_model_in_modules(architecture, [_DCHN])
        of_width = next((some for start, some in _BY_WIDTH.items() if ours and architecture.startswith(start)), {})
        return {**_FAST.get(family, {}), **of_width}
    of_dataset = _OF_A_DATASET.get((family, _published_name(dataset)), {})
    settings = {**_PLAIN, **_PUBLISHED[family], **_OF_A_NETWORK.get(architecture, {}), **of_dataset}
    if family == _PCN and not perturbs:
        del settings["nudged_sweeps"]
    return settings


def _family_of(model: str | None) -> str:
    architecture = (model or "").partition(".")[0]
    return next((file for file in _PUBLISHED if is_model_in_modules(architecture, [file])), _DCHN)


def useless_for(model: str | None) -> set[str]:
    """Settings that a model has no use for: those of the free phase, where that is a forward pass."""
    return {*FREE_PHASE, "warm_start"} if _family_of(model) == _PCN else set()


def free_phase_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the free phase that a checkpoint names in its ``config.json``; sweeps up to a tolerance are none.

    Raises:
        ConfigError: One of them is of another type.
    """
    named = {key: value for key, value in config.get("model_args", {}).items() if value is not None}
    if "tolerance" in named:
        named.pop("sweeps", None)
    return {
        name: read_option(f"{argument} of the checkpoint", named[argument], *kind)
        for name, (argument, *kind) in FREE_PHASE.items()
        if argument in named
    }


def _published_name(dataset: str | None) -> str | None:
    """The name of a data set in `DATASETS`, should it be one."""
    if dataset in (None, EMBEDDED):
        return "fashion-mnist"
    return next((name for name, spec in DATASETS.items() if dataset in (name, spec.hub_id)), None)
