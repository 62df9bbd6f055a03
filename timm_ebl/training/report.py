"""What a run says: how it was understood, how long it will take, and what each epoch has found."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from ..relaxation.minimizer import Minimizer
from ..relaxation.model import SETTLING_SWEEPS, EnergyModel
from ..rules.contrastive import ContrastiveRule
from ..rules.rule import Rule, rule_options
from .progress import Progress, duration
from .run_folder import device_name
from .splits import Splits, empty_classes

if TYPE_CHECKING:
    from .config import TrainConfig
    from .origin import Origin

__all__ = ["Report", "describe_rule"]

MINUTES = 5
"""Between two lines about the batches, where there is no progress bar."""

_SECOND = {"perturbed": "perturbed sweeps", "unrolled": "sweeps unrolled", "adjoint": "adjoint steps"}
"""What the sweeps of a second phase are called, by `Rule.second_field`."""

_FIRST = 3  # batches that are no measure: memory is taken, kernels are chosen or compiled
_MEASURED = (5, 5.0)  # batches and seconds after them that are one


class Report:
    """What a run says; of several processes the first one speaks.

    In a terminal `timm_ebl.training.engine` shows a progress bar; elsewhere, as in a log file, there is a line every
    few minutes.

    Args:
        accelerator: Knows the processes.
        progress: How far the run is.
        epochs: Epochs of the run.
    """

    def __init__(self, accelerator: Accelerator, progress: Progress, epochs: int) -> None:
        self.accelerator, self.progress, self.epochs = accelerator, progress, epochs
        self.batches = self.seen = 0
        self.estimated = False
        self.began = self.last = time.monotonic()
        self.in_terminal = sys.stderr.isatty()

    def say(self, text: str) -> None:
        """Write a line to stdout, above a progress bar if there is one."""
        if self.accelerator.is_main_process:
            tqdm.write(text, sys.stdout)

    def warn(self, text: str) -> None:
        """Write a warning to stderr."""
        if self.accelerator.is_main_process:
            tqdm.write(f"warning: {text}", sys.stderr)

    @contextmanager
    def passing_on(self, kind: type[Warning]) -> Iterator[None]:
        """Say the warnings of a kind that come inside, each once, even if an error ends it."""
        with warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always", kind)
            try:
                yield
            finally:
                for message in dict.fromkeys(str(warning.message) for warning in noted):
                    self.warn(message)

    def begin(
        self,
        config: TrainConfig,
        origin: Origin | None,
        data: Splits,
        model: nn.Module,
        rule: Rule,
        folder: Path,
        batches: int,
    ) -> None:
        """Say what will be done, on what.

        Args:
            config: The configuration, with the precision and the accumulation that accelerate was launched with.
            origin: The checkpoint that it starts from, if any.
            data: The splits.
            model: The model.
            rule: The rule.
            folder: Where the results go.
            batches: Batches of an epoch, on each process.
        """
        self.batches, processes = batches, self.accelerator.num_processes
        embedded = " (embedded; choose another with --dataset)" if config.dataset is None else ""
        train = "to train" if config.aug else "to train without augmentation"
        parts = zip(data, (train, "held out", "to test"), strict=True)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        step, summed = processes * config.batch_size * config.grad_accum_steps, config.grad_accum_steps
        factors = f" ({_count(processes, 'process', 'es')} x {_count(summed, 'batch', 'es')} of {config.batch_size})"
        device = f"{device_name(self.accelerator.device)}, {_count(processes, 'process', 'es')}"
        self.say(f"data:   {data.train.name}{embedded}")
        self.say(f"images: {', '.join(f'{len(part or ()):,} {use}' for part, use in parts)}")
        name = model.pretrained_cfg["architecture"]
        self.say(f"model:  {name}, {parameters:,} parameters, {model.num_classes} classes")
        if origin:
            self.say(f"from:   {origin.describe(config, data.train.classes)}")
        self.say(f"rule:   {describe_rule(config.algo, rule, model)}")
        self.say(
            f"steps:  {-(-batches // summed):,} an epoch, {_count(config.epochs, 'epoch')}, "
            f"{_count(step, 'image')} a step{factors if step > config.batch_size else ''}"
        )
        if config.model_ema:
            rises = " at most" * config.model_ema_warmup
            self.say(f"keeps:  the moving average of the weights, decay {config.model_ema_decay}{rises}")
        self.say(f"on:     {device}, {self._precision()}{', compiled' if config.compiled else ''}")
        self.say(f"to:     {folder}")
        for empty in empty_classes(data.train):
            self.warn(f"the class {empty!r} has no image to train on.")

    def _precision(self) -> str:
        if self.accelerator.mixed_precision != "no":
            return f"{self.accelerator.mixed_precision} (weights in float32)"
        device = self.accelerator.device
        rounds = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        return "float32" + (" (convolutions in TF32)" if rounds and torch.backends.cudnn.allow_tf32 else "")

    def batch(self) -> None:
        """After a batch: once an estimate for the whole run and, without a terminal, a line every few minutes."""
        now = time.monotonic()
        self.seen += 1
        if self.seen == _FIRST:
            self.began = self.last = now
        measured = self.seen - _FIRST, now - self.began
        if not all(have >= asked for have, asked in zip(measured, _MEASURED, strict=True)):
            return
        pace = measured[1] / measured[0]
        progress = self.progress
        left = duration(pace * (self.batches * (self.epochs - progress.epoch + 1) - progress.step))
        if not self.estimated:
            self.estimated = True
            self.say(f"takes:  about {duration(pace * self.batches)} an epoch on this device; {left} to go")
        elif not self.in_terminal and now - self.last >= 60 * MINUTES:
            self.last = now
            error = progress.averages.means().get("error") if progress.averages.images else None
            found = "" if error is None else f"error {error:.2f} %, "
            self.say(f"{self._epoch()}  batch {progress.step:,} of {self.batches:,}  {found}about {left} left")

    def epoch(self, metrics: Mapping[str, float | None]) -> None:
        """Say what an epoch that is done has found, in at most 80 columns.

        Args:
            metrics: ``epoch``, ``train_error`` (%), ``held_out_error`` (%, or ``None``) and ``seconds``.
        """
        self.estimated = True
        done = int(metrics["epoch"])
        left = self.progress.elapsed() / done * (self.epochs - done)
        held_out = metrics["held_out_error"]
        line = f"{self._epoch(done)}  error {metrics['train_error']:.2f} %"
        line += "" if held_out is None else f", held out {held_out:.2f} %"
        self.say(f"{line}  {duration(metrics['seconds'])}" + (f", {duration(left)} left" if left else ""))

    def end(self, summary: Mapping[str, Any], folder: Path) -> None:
        """Say what the run has found.

        Args:
            summary: ``test_error`` (%), ``best_epoch``, ``held_out_error`` (%, or ``None``) and ``seconds``.
            folder: Where the results are.
        """
        chosen = "the last one" if summary["held_out_error"] is None else "the best on the held-out part"
        self.say(
            f"test error {summary['test_error']:.2f} % after epoch {summary['best_epoch']}, {chosen}, "
            f"in {duration(summary['seconds'])}; results in {folder}"
        )

    def _epoch(self, number: int | None = None) -> str:
        return f"epoch {number or self.progress.epoch:{len(str(self.epochs))}d}/{self.epochs}"


def describe_rule(algo: str, rule: Rule, model: EnergyModel) -> str:
    """A rule in words, on one line: its name, its strength, and the sweeps of its phases.

    Args:
        algo: Its name.
        rule: The rule.
        model: What it trains; one that rests after a forward pass has no free sweeps.
    """
    rule = rule.fitted(model)
    parts, second = ["a forward pass"] * model.rests, rule.second_phase
    if rule.free is not None and not model.rests:
        start = "" if rule.free.start is Minimizer.start else f" from {rule.free.start}"
        parts.append(f"{_count(rule.free.sweeps, 'free sweep')}{start}")
    if not isinstance(rule, ContrastiveRule):
        if second is not None:
            parts.append(f"{second.sweeps} {_SECOND.get(rule.second_field, 'of what follows')}")
        return "; ".join(filter(None, (algo, ", ".join(parts))))
    if rule.settles and not model.rests:
        parts.append(f"{parts.pop() if parts else 'the free phase'} + {SETTLING_SWEEPS}")
    phases = sum(multiple != 0 for multiple in rule.nudging.value)
    parts.append(f"perturbed {phases} x {second.sweeps}" if phases > 1 else f"perturbed {second.sweeps}")
    parts += ["as many more free ones"] * (rule.accompanies and not model.rests)
    parts.append("routes held" if rule.linear_response else "routes followed")
    parts += ["damped"] * getattr(rule, "damped", False)
    beta = f", beta {rule.beta:g}" if "beta" in rule_options(algo) else ""
    return f"{algo}{beta}; {', '.join(parts)}"


def _count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number:,} {noun}{plural if number != 1 else ''}"
