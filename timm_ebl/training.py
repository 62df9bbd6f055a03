"""Parts of a training run: what a configuration builds, an epoch of training, an evaluation."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any, NamedTuple

import timm
import torch
from accelerate import Accelerator
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from tqdm import tqdm

from .config import ConfigError, TrainConfig
from .data import ImageDataset, collate, load_dataset
from .energy import State
from .minimize import Minimizer
from .network import HopfieldNetwork
from .rules import ContrastiveRule, Rule, create_rule, squared_error
from .transforms import BatchTransform

__all__ = [
    "Splits",
    "build_loader",
    "build_model",
    "build_optimizer",
    "build_rule",
    "build_transform",
    "evaluate",
    "load_splits",
    "set_threads",
    "train_epoch",
]


class Splits(NamedTuple):
    """The data of a run: what trains, what selects the best epoch, what is measured once at the end."""

    train: ImageDataset
    held_out: ImageDataset
    test: ImageDataset


def set_threads(accelerator: Accelerator, threads: int | None = None) -> None:
    """Give this process its share of the CPU cores; ``accelerate launch`` leaves each process a single one.

    Args:
        accelerator: Knows the device and the number of processes.
        threads: Number of threads; ``None`` for all cores divided by the processes, if the device is a CPU.
    """
    if threads is None and accelerator.device.type == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = max(1, cores // accelerator.num_processes)
    if threads is not None:
        torch.set_num_threads(threads)


def load_splits(config: TrainConfig) -> Splits:
    """The splits of the configured data set; the held-out part is taken from its training split, class by class."""

    def load(split: str) -> ImageDataset:
        return load_dataset(
            config.dataset,
            split,
            config=config.dataset_config,
            image_column=config.image_column,
            label_column=config.label_column,
            revision=config.dataset_revision,
            root=config.data_root,
        )

    train, test = load("train"), load("test")
    if train.images.shape[1] != test.images.shape[1] or train.classes != test.classes:
        raise ConfigError(
            "The training and the test split differ in channels or classes: they cannot be used together."
        )
    return Splits(*train.split(config.holdout, config.seed), test)


def build_transform(train: ImageDataset) -> BatchTransform:
    """Augmentation and normalisation of a data set, with statistics of its training split where none are published."""
    spec = train.spec
    mean, std = (spec.mean, spec.std) if spec.mean else train.statistics()
    return BatchTransform(mean, std, spec.padding, spec.flip)


def build_model(config: TrainConfig, train: ImageDataset) -> HopfieldNetwork:
    """The configured model, fitted to the channels and classes of the data.

    Raises:
        ConfigError: timm does not know the model, or it is no energy model.
    """
    name = config.model or default_model(train)
    if not timm.is_model(name):
        known = ", ".join(timm.list_models("dchn*"))
        raise ConfigError(f"Unknown model {name!r}: choose one of {known}, or another timm model with an energy.")
    minimizer = {"order": config.order, "sweeps": config.free_sweeps, "omega": config.omega, "start": config.start}
    fitted = {"in_chans": train.images.shape[1], "num_classes": len(train.classes)}
    try:
        model = timm.create_model(name, **(fitted | minimizer | dict(config.model_kwargs)))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"The model {name!r} cannot be built ({error}); models with an energy are timm.list_models('dchn*')."
        ) from None
    if not isinstance(model, HopfieldNetwork):
        raise ConfigError(f"The model {name!r} has no energy to relax: choose one of timm.list_models('dchn*').")
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
    free = Minimizer(order=config.order, sweeps=config.free_sweeps, omega=config.omega, start=config.start)
    second = {"sweeps": config.nudged_sweeps}
    options: dict[str, Any] = {}
    if isinstance(default, ContrastiveRule):
        second |= {"order": config.nudged_order, "omega": config.nudged_omega}
        options |= {"hold_routes": config.hold_routes, "paired": config.paired}
    given = {name: value for name, value in second.items() if value is not None}
    options |= {"free": free, "second": replace(default.second, **given)}
    if config.beta is not None:
        options["beta"] = config.beta
    try:
        return create_rule(config.algo, **options)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def build_optimizer(config: TrainConfig, model: HopfieldNetwork) -> Optimizer:
    """The configured optimiser from timm.optim, with a learning rate for each interaction (weight and bias alike).

    Raises:
        ConfigError: The optimiser is unknown, or the number of learning rates is neither one nor that of interactions.
    """
    interactions = list(model.interactions)
    rates = config.lr * len(interactions) if len(config.lr) == 1 else config.lr
    if len(rates) != len(interactions):
        raise ConfigError(f"--lr is one rate or {len(interactions)}, one for each interaction; got {len(rates)}.")
    groups = [{"params": list(i.parameters()), "lr": rate} for i, rate in zip(interactions, rates, strict=True)]
    betas = {} if config.opt_betas is None else {"betas": config.opt_betas}
    try:
        return create_optimizer_v2(
            groups,
            opt=config.opt,
            lr=rates[0],
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            filter_bias_and_bn=False,
            **betas,
        )
    except (TypeError, ValueError) as error:
        known = ", ".join(timm.optim.list_optimizers(exclude_filters=["*adamp", "bnb*", "fused*"]))
        raise ConfigError(f"The optimiser {config.opt!r} cannot be built ({error}); timm.optim has {known}.") from None


def build_loader(data: ImageDataset, batch_size: int, seed: int | None = None) -> DataLoader:
    """Batches of 8-bit images and labels; shuffled from a seed, or in order without one."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return DataLoader(data, batch_size, shuffle=seed is not None, generator=generator, collate_fn=collate)


class Averages:
    """Sums over images of what a loop reports, kept on the device until they are asked for."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.sums: dict[str, Tensor] = {}
        self.images = 0

    def add(self, **values: Tensor) -> None:
        """Add a batch of values ``(B,)`` of every quantity."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach().double().sum()
        self.images += len(value)

    def means(self) -> dict[str, float]:
        """Mean of every quantity over all images so far, of this process."""
        return {name: float(total) / self.images for name, total in self.sums.items()}

    def reduced(self) -> dict[str, float]:
        """The same over all processes."""
        names = list(self.sums)
        device = self.accelerator.device
        totals = torch.tensor([*(float(self.sums[n]) for n in names), self.images], device=device)
        *sums, images = self.accelerator.reduce(totals, reduction="sum").tolist()
        return {name: total / images for name, total in zip(names, sums, strict=True)}


def _wrong(output: Tensor, labels: Tensor) -> Tensor:
    return (output.argmax(1) != labels).double() * 100


def _cost(output: Tensor, labels: Tensor) -> Tensor:
    return squared_error(output, nn.functional.one_hot(labels, output.shape[1]))


def train_epoch(
    accelerator: Accelerator,
    task: nn.Module,
    loader: DataLoader,
    optimizer: Optimizer,
    transform: BatchTransform,
    generator: torch.Generator,
    *,
    warm_start: bool = False,
    start: State | None = None,
    title: str = "",
) -> tuple[dict[str, float], State | None]:
    """One pass over the training split.

    Args:
        accelerator: Runs the step: devices, precision, gradient accumulation.
        task: A prepared `timm_ebl.task.RuleTask`.
        loader: A prepared loader.
        optimizer: A prepared optimiser.
        transform: Augmentation and normalisation.
        generator: Source of the augmentation, on the training device.
        warm_start: Start every free phase from the state that the batch before left, as the paper does.
        start: That state for the first batch.
        title: What the progress bar shows.

    Returns:
        Means over the images of ``error`` (%), ``cost``, ``energy`` and ``residual``, and the state that the last
        batch left (``None`` without warm start).
    """
    task.train()
    averages = Averages(accelerator)
    with tqdm(loader, title, leave=False, disable=None if accelerator.is_local_main_process else True) as bar:
        for step, (images, labels) in enumerate(bar):
            x = transform.train(images, generator)
            with accelerator.accumulate(task):
                result = task(x, labels, start if start is not None and len(start[0]) == len(x) else None)
                accelerator.backward(result["loss"])
                optimizer.step()
                optimizer.zero_grad()
            if warm_start:
                start = result["state"]
            output = result["output"]
            averages.add(
                error=_wrong(output, labels),
                cost=_cost(output, labels),
                energy=result["energy"],
                residual=result["residual"],
            )
            if step % 10 == 0:
                bar.set_postfix({name: f"{mean:.4g}" for name, mean in averages.means().items()}, refresh=False)
    return averages.reduced(), start


@torch.no_grad()
def evaluate(
    accelerator: Accelerator, model: HopfieldNetwork, loader: DataLoader, transform: BatchTransform
) -> dict[str, float]:
    """Error (%) and cost of the model's own relaxation over a split; every image counts once.

    Args:
        accelerator: Gathers the results of all processes.
        model: The model, not wrapped.
        loader: A prepared loader.
        transform: Normalisation.
    """
    model.eval()
    averages = Averages(accelerator)
    for images, labels in loader:
        with accelerator.autocast():
            output = model(transform.eval(images)).float()
        error, cost = accelerator.gather_for_metrics((_wrong(output, labels), _cost(output, labels)))
        averages.add(error=error, cost=cost)
    return averages.means()
