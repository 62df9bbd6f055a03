"""The learning rates of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from timm.scheduler import CosineLRScheduler
from torch.optim import Optimizer

if TYPE_CHECKING:
    from .progress import Progress

__all__ = ["Schedule"]


class Schedule:
    """A linear rise from 0, batch by batch, then timm's cosine, epoch by epoch, as if there had been no rise.

    With rate ``r``, ``E`` epochs and ``W`` of them of the rise: ``r t / W`` at the time ``t < W`` in epochs, at the end
    of the batch; else ``m + (r - m) (1 + cos(pi t / E)) / 2`` at the start of the epoch. It follows from the progress
    alone.

    Args:
        optimizer: The optimiser; every group has its rate.
        epochs: ``E``.
        least: ``m``, the rate at the end of the cosine.
        warmup_epochs: ``W``.
    """

    def __init__(self, optimizer: Optimizer, epochs: int, least: float, warmup_epochs: int = 0) -> None:
        self.cosine = CosineLRScheduler(
            optimizer, max(2, epochs), least, warmup_t=warmup_epochs
        )  # of one epoch it is no cosine
        self.warmup_epochs = warmup_epochs

    def follow(self, progress: Progress, batches: int) -> None:
        """Set the rates for the next batch of the epoch under way, if there is one.

        Args:
            progress: Where the run is.
            batches: Batches of an epoch.
        """
        time = progress.epoch - 1
        if time < self.warmup_epochs:
            time += min(progress.step + 1, batches) / batches
        self.cosine.step(time)
