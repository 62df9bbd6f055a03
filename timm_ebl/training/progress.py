"""How far a run has come, and what it has found so far."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor

if TYPE_CHECKING:
    from ..energy.functional import State

__all__ = ["Averages", "Progress", "duration"]

_SHARED = (
    "epoch",
    "step",
    "epochs",
    "weights",
    "skipped",
    "warnings",
    "warned",
    "lowest_residual",
    "epoch_began",
)


@dataclass
class Averages:
    """Sums over images of what a loop reports, kept on the device until they are asked for.

    Attributes:
        sums: Sum of every quantity over the images of this process, a scalar tensor each.
        images: Number of these images.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    images: int = 0

    def add(self, **values: Tensor) -> None:
        """Add a batch of values ``(B,)`` of every quantity."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach().double().sum()
        self.images += len(value)

    def include(self, others: Averages) -> None:
        """Add what was summed up apart."""
        for name, total in others.sums.items():
            self.sums[name] = self.sums.get(name, 0) + total
        self.images += others.images

    def means(self) -> dict[str, float]:
        """Mean of every quantity over all images so far, of this process."""
        return {name: float(total) / self.images for name, total in self.sums.items()}

    def reduced(self, accelerator: Accelerator) -> dict[str, float]:
        """The same over all processes."""
        names = list(self.sums)
        totals = torch.stack([*(self.sums[n] for n in names), torch.full_like(self.sums[names[0]], self.images)])
        *sums, images = accelerator.reduce(totals, reduction="sum").tolist()
        return {name: total / images for name, total in zip(names, sums, strict=True)}


@dataclass
class Progress:
    """How far a run has come: with weights, optimiser and random numbers, all that it needs to go on.

    Attributes:
        epoch: The epoch under way, from 1; one more than the run has once all are done.
        step: Batches of that epoch that this process has trained on.
        averages: Training metrics of that epoch so far.
        state: State that the last batch's second phase left, where the next one of this epoch starts from it.
        epochs: Metrics of the epochs that are done.
        weights: Weights of the best of them.
        skipped: Bad batches left out so far.
        warnings: What the watch has said.
        warned: What it need not say again.
        lowest_residual: The lowest mean residual that the watch has seen.
        seconds: Time spent before this process took over.
        epoch_began: Time spent before the epoch under way.
    """

    epoch: int = 1
    step: int = 0
    averages: Averages = field(default_factory=Averages)
    state: State | None = None
    epochs: list[dict[str, float | None]] = field(default_factory=list)
    weights: dict[str, Tensor] | None = None
    skipped: int = 0
    warnings: list[str] = field(default_factory=list)
    warned: list[str] = field(default_factory=list)
    lowest_residual: float | None = None
    seconds: float = 0.0
    epoch_began: float = 0.0
    clock: float = field(default_factory=time.monotonic)

    @property
    def best(self) -> dict[str, float | None]:
        """Metrics of the best epoch on the held-out part, the first of several; the last epoch's if there is none."""
        if self.epochs[-1]["held_out_error"] is None:
            return self.epochs[-1]
        measured = [epoch for epoch in self.epochs if epoch["held_out_error"] is not None]
        return min(measured, key=lambda epoch: epoch["held_out_error"])

    def elapsed(self) -> float:
        """Seconds spent on the run so far, interruptions left out."""
        return self.seconds + time.monotonic() - self.clock

    def finish_epoch(self, metrics: dict[str, float | None], weights: dict[str, Tensor]) -> bool:
        """Note the metrics of the epoch under way, keep the weights if they are the best, and go to the next epoch.

        Returns:
            Whether they are the best so far.
        """
        seconds = self.elapsed()
        self.epochs.append({"epoch": self.epoch, **metrics, "seconds": seconds - self.epoch_began})
        self.epoch_began = seconds
        self.epoch += 1
        self.restart_epoch()
        if better := self.best is self.epochs[-1]:
            self.weights = {name: weight.detach().clone() for name, weight in weights.items()}
        return better

    def restart_epoch(self) -> None:
        """Forget the epoch under way."""
        self.step, self.averages, self.state = 0, Averages(), None

    def shared(self) -> dict[str, Any]:
        """What is the same on every process."""
        return {name: getattr(self, name) for name in _SHARED} | {"seconds": self.elapsed()}

    def local(self) -> dict[str, Any]:
        """What each process has for itself."""
        return {"sums": self.averages.sums, "images": self.averages.images, "state": self.state}

    def restore(self, shared: dict[str, Any], local: dict[str, Any] | None, device: torch.device) -> None:
        """Continue where `shared` and `local` were taken; without `local`, from the beginning of that epoch."""
        for name in (*_SHARED, "seconds"):
            setattr(self, name, shared[name])
        self.clock = time.monotonic()
        if self.weights is not None:
            self.weights = {name: weight.to(device) for name, weight in self.weights.items()}
        self.restart_epoch()
        if local is not None:
            self.step = shared["step"]
            self.averages = Averages({name: total.to(device) for name, total in local["sums"].items()}, local["images"])
            self.state = local["state"] and tuple(layer.to(device) for layer in local["state"])


def duration(seconds: float) -> str:
    """A time in words: seconds up to 99, minutes, or hours and minutes."""
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{seconds:.0f} s" if seconds < 99.5 else f"{hours} h {minutes} min" if hours else f"{minutes} min"
