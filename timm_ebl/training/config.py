"""Configuration of a training run: defaults, presets, recipes and the command line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..data.catalogue import CHANNELS, IMG_SIZE
from ..data.transforms import MOST_RANDAUGMENT
from ..errors import ConfigError
from ..relaxation.minimizer import Minimizer, Start
from ..relaxation.order import list_orders
from ..rules.cost import list_costs
from ..rules.rule import list_rules, rule_class, rule_options
from .finding import config_of
from .options import GROUPS, flag_of, option, read_settings
from .presets import FREE_PHASE, PRESETS, free_phase_of, preset, useless_for
from .tracking import TRACKERS
from .user_code import import_modules

__all__ = ["TrainConfig", "foreign_to", "read_recipe", "resolve"]

_OF_THE_RULE = ("beta", "cost", "linear_response", "settle", "companion", "damped")
"""Settings that are options of some rules (`rule_options`)."""

_OF_THE_PERTURBED = ("nudged_order", "nudged_omega")
"""Settings of perturbed phases: of rules whose second phase is one (`Rule.second_field`)."""

MOST = 1_000_000
"""Bound of whatever is counted."""

LARGEST_IMAGE = 1024
"""Bound of an image's height and width."""

_data, _model, _rule, _optimisation, _run, _logging = (partial(option, group) for group in GROUPS)


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `train_ebl.py`; every field is an option of the command line and a key of a recipe.

    Raises:
        ConfigError: A value is out of range, or does not go with the rule.
    """

    algo: str = _rule("c-ep", f"learning rule: {', '.join(list_rules())}")
    dataset: str | None = _data(None, "mnist, fashion-mnist, svhn, cifar10, cifar100, another Hub id, or a folder")
    data_root: str | None = _data(None, "folder with copies of Hub data sets in the Hub's layout, instead of the Hub")
    dataset_config: str | None = _data(None, "configuration of the data set on the Hub")
    dataset_revision: str | None = _data(None, "revision of the data set on the Hub")
    train_split: str | None = _data(None, "name of the training split; by default train")
    test_split: str | None = _data(
        None, "name of the test split; by default test, else validation, else a part of the training split"
    )
    image_column: str | None = _data(None, "column of the images, if there are several")
    label_column: str | None = _data(None, "column of the labels, if there are several")
    mean: tuple[float, ...] | None = _data(
        None,
        "mean of each channel, of 0 to 1, to normalise by; by default that of --pretrained, else the data set's",
        float,
        True,
    )
    std: tuple[float, ...] | None = _data(None, "deviation of each channel to normalise by, likewise", float, True)
    img_size: int | None = _data(
        None, f"height and width of the images in pixels; by default as --pretrained has them, else {IMG_SIZE}", int
    )
    channels: str | None = _data(
        None, f"{' or '.join(CHANNELS)}; by default as --pretrained has them, else what the images are"
    )
    aug: bool = _data(True, "augment training images; --no-aug leaves them as evaluation sees them", bool)
    randaugment: tuple[int, ...] = _data(
        (0, 0),
        "operations of torchvision's RandAugment on each training image, at most {}, and their magnitude, at most "
        "{}".format(*MOST_RANDAUGMENT),
        int,
        True,
    )
    cutout: int = _data(0, "side in pixels of a square of each training image that is set to the mean", int)
    model: str | None = _model(None, "timm model; by default that of --pretrained, else the tiny DCHN of the data set")
    pretrained: str | None = _model(
        None,
        "checkpoint to start from: a shipped one (dchn_small_cifar10.c_ep), hf-hub:OWNER/NAME or local-dir:FOLDER; the "
        "free phase is its own unless --preset or options say another, and the read-out new where classes are others",
    )
    freeze: int = _model(0, "interactions that keep their weights, from the lowest upwards", int)
    model_kwargs: Mapping[str, Any] = _model(None, "KEY=VALUE pairs for the model", dict, True)
    rule_kwargs: Mapping[str, Any] = _rule(None, "KEY=VALUE pairs for a rule of your own", dict, True)
    epochs: int = _optimisation(8, "passes over the training split", int)
    batch_size: int = _optimisation(32, "training images in a step, on each process", int)
    grad_accum_steps: int = _optimisation(1, "batches whose gradients are averaged in a step of the optimiser", int)
    skip_bad_batches: bool = _optimisation(False, "leave out a step whose gradient is not finite", bool)
    eval_batch_size: int = _run(250, "images in an evaluation step, on each process", int)
    beta: float | None = _rule(None, "strength of the perturbation; by default the model's", float)
    cost: str | None = _rule(None, f"what is descended: {', '.join(list_costs())}; by default the rule's")
    free_sweeps: int = _rule(Minimizer().sweeps, "sweeps of the free phase, in training and in evaluation", int)
    omega: tuple[float, ...] = _rule(
        Minimizer.omega, "over-relaxation in the free phase, or one for each sweep; 1 for none", float, True
    )
    order: str = _rule(Minimizer.order, f"order of update in the free phase: {', '.join(list_orders())}")
    nudged_sweeps: int | None = _rule(
        None, "sweeps of what follows: perturbed phases, unrolled sweeps or adjoint steps; by default the rule's", int
    )
    nudged_omega: tuple[float, ...] | None = _rule(
        None, "over-relaxation in the perturbed phases, or one for each sweep; by default the rule's", float, True
    )
    nudged_order: str | None = _rule(None, "order of update in the perturbed phases; by default the rule's")
    start: str = _rule(str(Minimizer.start), f"where a free phase starts: {', '.join(Start)}")
    warm_start: bool = _rule(
        False, "start training phases from the state that the last batch left, as the paper does", bool
    )
    linear_response: bool | None = _rule(
        None,
        "keep the free state's pooling routes in the perturbed phases and take it to be at rest (not in the paper); by "
        "default the rule's",
        bool,
    )
    settle: bool | None = _rule(
        None, "give the free state two more sweeps before the contrast (not in the paper); by default the rule's", bool
    )
    companion: bool | None = _rule(
        None,
        "in one-sided rules whose routes are followed, relax the unperturbed state as long as the perturbed one; by "
        "default the rule's",
        bool,
    )
    damped: bool | None = _rule(
        None, "update a nudged output by o <- u - beta (o - y), as the paper does, and not to its minimum at once", bool
    )
    compiled: bool = _run(
        False, "run sweeps as torch.compile makes them and, on a GPU, steps and answers as CUDA graphs", bool
    )
    opt: str = _optimisation("adamw", "optimiser, by its name in timm.optim; a DCHN has muon unless told otherwise")
    lr: tuple[float, ...] = _optimisation(
        (2e-3,), "learning rate, or one for each interaction, read-out last", float, True
    )
    min_lr: float = _optimisation(2e-6, "learning rate at the end of the cosine", float)
    warmup_epochs: int = _optimisation(0, "epochs in which the learning rate rises from 0, batch by batch", int)
    clip_grad: float | None = _optimisation(None, "largest norm of a step's gradient; longer ones are shortened", float)
    momentum: float = _optimisation(0.9, "momentum, where the optimiser has one", float)
    opt_betas: tuple[float, ...] | None = _optimisation(None, "betas, where the optimiser has them", float, True)
    weight_decay: float = _optimisation(0.0, "weight decay of weights and biases", float)
    model_ema: bool = _optimisation(False, "evaluate and keep a moving average of the weights", bool)
    model_ema_decay: float = _optimisation(0.9998, "part of that average that a step leaves as it was", float)
    model_ema_warmup: bool = _optimisation(True, "let that part rise to it, 1 - t^(-2/3) after step t", bool)
    holdout: float = _data(
        0.1, "part of the training split held out to select the best epoch; 0 trains on all of it, to the last", float
    )
    seed: int = _run(0, "seed of initialisation, held-out part, order and augmentation", int)
    mixed_precision: str | None = _run(None, "no, bf16 or fp16; by default as accelerate was launched")
    threads: int | None = _run(None, "CPU threads of each process; by default an equal share of the cores", int)
    imports: tuple[str, ...] | None = _run(
        None, "modules to import, on the Python path or in this folder: they register models and rules", str, True
    )
    output_dir: str | None = _run(None, "folder for the results; by default runs/ALGO-MODEL-SEED", aside=True)
    resume: bool = _run(False, "go on from the last checkpoint in --output-dir, if there is one", bool, aside=True)
    force: bool = _run(False, "with --resume: go on even under other settings than the run's", bool, aside=True)
    checkpoint_minutes: float = _run(
        10.0, "minutes between two checkpoints, beside those of every epoch", float, aside=True
    )
    keep_checkpoints: int = _run(2, "checkpoints to keep", int, aside=True)
    watch_every: int = _logging(50, "batches between two looks at states and weights", int, aside=True)
    log_with: tuple[str, ...] | None = _logging(None, f"trackers: {', '.join(TRACKERS)}", str, True, aside=True)
    push_to_hub: str | None = _run(None, "OWNER/NAME of a repository on the Hub to publish the result to", aside=True)

    def __post_init__(self) -> None:
        foreign = next((name for name in sorted(foreign_to(self.algo)) if getattr(self, name)), None)
        if foreign:
            options = ", ".join(rule_options(self.algo))
            raise ConfigError(f"Rule {self.algo!r} has no use for {flag_of(foreign)}: its options are {options}.")
        counts = ("epochs", "batch_size", "grad_accum_steps", "eval_batch_size", "free_sweeps", "nudged_sweeps")
        for name in (*counts, "threads", "keep_checkpoints", "watch_every"):
            count = getattr(self, name)
            self._require(name, count is None or 1 <= count <= MOST, f"at least 1 and at most {MOST:,}")
        self._require(
            "warmup_epochs", 0 <= self.warmup_epochs < self.epochs, f"at least 0 and below {self.epochs} epochs"
        )
        self._require("freeze", self.freeze >= 0, "at least 0")
        self._require("clip_grad", self.clip_grad is None or self.clip_grad > 0, "above 0")
        self._require("seed", 0 <= self.seed < 2**32, "at least 0 and below 2^32")
        for name in ("lr", "weight_decay", "min_lr", "momentum"):
            value = getattr(self, name)
            self._require(name, min(value if isinstance(value, tuple) else (value,)) >= 0, "at least 0")
        self._require("model_ema_decay", 0 <= self.model_ema_decay < 1, "at least 0 and below 1")
        for name in ("model_ema_decay", "model_ema_warmup"):
            if not self.model_ema and getattr(self, name) != getattr(TrainConfig, name):
                raise ConfigError(f"{flag_of(name)} goes with --model-ema.")
        self._require("holdout", 0 <= self.holdout <= 0.5, "between 0 and 0.5")
        self._require("std", self.std is None or min(self.std, default=0) > 0, "above 0")
        if (self.mean is None) != (self.std is None):
            raise ConfigError("--mean and --std go together, with a value for each channel.")
        fits = self.img_size is None or 1 <= self.img_size <= LARGEST_IMAGE
        self._require("img_size", fits, f"at least 1 and at most {LARGEST_IMAGE}")
        bounds = zip(self.randaugment, MOST_RANDAUGMENT, strict=False)
        fits = len(self.randaugment) == 2 and all(0 <= number <= most for number, most in bounds)
        allowed = "two numbers, operations from 0 to {} and their magnitude from 0 to {}".format(*MOST_RANDAUGMENT)
        self._require("randaugment", fits, allowed)
        self._require("cutout", 0 <= self.cutout <= LARGEST_IMAGE, f"at least 0 and at most {LARGEST_IMAGE}")
        if not self.aug and (self.randaugment[0] or self.cutout):
            raise ConfigError("--no-aug leaves training images as they are: leave out --randaugment and --cutout.")
        self._require("channels", self.channels in (None, *CHANNELS), " or ".join(CHANNELS))
        for name in ("omega", "nudged_omega"):
            omegas = getattr(self, name)
            self._require(name, omegas is None or all(0 < omega < 2 for omega in omegas), "above 0 and below 2")
        for name in ("order", "nudged_order"):
            known = getattr(self, name) is None or getattr(self, name) in list_orders()
            self._require(name, known, f"one of {', '.join(list_orders())}")
        self._require("cost", self.cost in (None, *list_costs()), f"one of {', '.join(list_costs())}")
        self._require("start", self.start in tuple(Start), f"one of {', '.join(Start)}")
        self._require("checkpoint_minutes", self.checkpoint_minutes > 0, "above 0")
        trackers = self.log_with is None or set(self.log_with) <= set(TRACKERS)
        self._require("log_with", trackers, f"one or more of {', '.join(TRACKERS)}")
        if self.resume and self.output_dir is None:
            raise ConfigError("--resume needs --output-dir, the folder of the run.")
        if self.force and not self.resume:
            raise ConfigError("--force goes with --resume.")
        precisions = (None, "no", "bf16", "fp16")
        self._require("mixed_precision", self.mixed_precision in precisions, "no, bf16 or fp16")

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise ConfigError(f"{flag_of(name)} is {allowed}, not {getattr(self, name)!r}.")

    def decisive(self) -> dict[str, Any]:
        """The settings that decide the result of a run, as `to_dict` gives them."""
        aside = {spec.name for spec in dataclasses.fields(self) if spec.metadata.get("aside")}
        return {name: value for name, value in self.to_dict().items() if name not in aside}

    def to_dict(self) -> dict[str, Any]:
        """The settings that the model has a use for, in types that YAML and JSON hold."""
        return _without(json.loads(json.dumps(dataclasses.asdict(self))), useless_for(self.model))


def foreign_to(algo: str) -> set[str]:
    """Settings that a rule has no use for."""
    try:
        options = rule_options(algo)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    foreign = {name for name in _OF_THE_RULE if name not in options}
    second = rule_class(algo).second_field
    if second not in options:
        return foreign | {"nudged_sweeps", *_OF_THE_PERTURBED}
    return foreign | ({*_OF_THE_PERTURBED} if second != "perturbed" else set())


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The settings of a YAML recipe, ``preset`` among them if it names one (`resolve`).

    Raises:
        ConfigError: The file cannot be read, is no mapping, or has an unknown key or a value of another type.
    """
    return read_settings(path, {spec.name: spec for spec in dataclasses.fields(TrainConfig)}, {"preset": str})


def resolve(*layers: Mapping[str, Any]) -> TrainConfig:
    """The configuration of some settings over others, over the preset that they name, over the defaults.

    A preset, and settings below those that name the rule, set what the rule has a use for: the baselines take the free
    phase and the number of sweeps from them. The first settings, as those of a file, set what the model has a use for.
    A preset is that of the family of the model, or of the checkpoint that the run starts from
    (`timm_ebl.training.presets`); where none is named, the free phase is the checkpoint's.

    Args:
        *layers: Settings, the last ones first in rank; ``preset`` may be one of them. Modules that they name
            (``imports``) are imported first.

    Raises:
        ConfigError: A value is out of range, or does not go with the rule or the model, a module cannot be imported, or
            there is no such checkpoint.
    """
    settings: dict[str, Any] = {}
    import_modules(next((layer["imports"] for layer in reversed(layers) if layer.get("imports")), ()))
    for layer in layers:
        if "algo" in layer:
            settings = _without(settings, foreign_to(layer["algo"]))
        settings |= layer
    model, origin, saved = settings.get("model"), settings.get("pretrained"), {}
    if origin and not (model and (useless_for(model) or FREE_PHASE.keys() <= settings.keys())):
        described = config_of(origin)
        model, saved = described["architecture"], free_phase_of(described)
    useless = useless_for(model)
    if asked := next((name for layer in layers[1:] for name in sorted(useless) if layer.get(name)), None):
        raise ConfigError(f"Model {model!r} has no use for {flag_of(asked)}: its free phase is a forward pass.")
    foreign = foreign_to(settings.get("algo", TrainConfig.algo))
    perturbs = foreign.isdisjoint(_OF_THE_PERTURBED)
    named = settings.pop("preset", None)
    chosen = preset(named or PRESETS[0], model, settings.get("dataset"), perturbs) | ({} if named else saved)
    if "opt" in chosen and settings.get("opt", chosen["opt"]) != chosen["opt"]:  # another's rate and decay
        chosen = _without(chosen, {"opt", "lr", "weight_decay"})
    return TrainConfig(**_without(_without(chosen, foreign) | settings, useless))


def _without(settings: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}
