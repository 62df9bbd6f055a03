"""How near a network's answers are to their equilibria."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ..relaxation.descent import relative_change
from ..relaxation.minimizer import LEAST_TOLERANCE, MOST_SWEEPS
from .inference import prepare, same_error

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from ..data.dataset import ImageDataset
    from ..relaxation.minimizer import Minimizer
    from ..relaxation.model import EnergyModel
    from ..relaxation.record import Relaxation

__all__ = ["Nearness", "limit", "measure_nearness", "nearness"]

IMAGES = 200
"""How many images of a test split it is measured on: the first ones."""

MORE_SWEEPS = 200
"""Sweeps after which an image is given a class once more."""

AT_REST = 4 * LEAST_TOLERANCE
"""A state is at rest with a residual of so many units of its rounding."""


@dataclass(frozen=True)
class Nearness:
    """How near the answers to some images are to their equilibria.

    Attributes:
        images: How many images.
        median: Median of the distance ``|s - s_inf| / |s_inf|`` over all layers, ``s_inf`` where the minimiser of the
            answer ``s`` ends when it goes on (`limit`).
        percentile_95: Its 95th percentile.
        same_class: Images that have the same class after `MORE_SWEEPS` sweeps.
        unsettled: Images whose ``s_inf`` is not at rest.
    """

    images: int
    median: float
    percentile_95: float
    same_class: int
    unsettled: int

    def __str__(self) -> str:
        restless = f"; {self.unsettled} do not come to rest" if self.unsettled else ""
        return (
            f"median {100 * self.median:.2f} %, 95th percentile {100 * self.percentile_95:.2f} % of its norm in the "
            f"first {self.images} test images; {self.same_class} of them have the same class after {MORE_SWEEPS} "
            f"sweeps{restless}"
        )

    def agrees(self, other: Nearness | None) -> bool:
        """Whether another measurement differs by no more than rounding does from machine to machine."""
        if other is None or other.images != self.images:
            return False
        pairs = ((self.median, other.median), (self.percentile_95, other.percentile_95))
        near = all(math.isclose(*pair, rel_tol=0.05, abs_tol=1e-4) for pair in pairs)
        return near and same_error(*(100 * found.same_class / self.images for found in (self, other)), self.images)


def limit(
    model: EnergyModel, x: Tensor, minimizer: Minimizer, most: int = MOST_SWEEPS, start: Relaxation | None = None
) -> Relaxation:
    """Follow a free relaxation until its residual is at rounding; a sample that is at rest there stays as it is.

    Args:
        model: The network.
        x: Input ``(B, ..)``.
        minimizer: Order, start and over-relaxation of the sweeps; those of a sample whose residual has risen are not
            over-relaxed (`Minimizer.omega`).
        most: The sweeps after which it ends in any case; ``converged`` tells which samples are at rest.
        start: Where to start, if not where the minimiser does.
    """
    until_rest = replace(minimizer, sweeps=most, tolerance=AT_REST * torch.finfo(x.dtype).eps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that some are not at rest, which callers count
        return model.relax(x, start, minimizer=until_rest)


@torch.no_grad()
def nearness(model: EnergyModel, x: Tensor) -> Nearness | None:
    """Measure how near a network's answers, by its own minimiser, are to their equilibria.

    Args:
        model: The network.
        x: Input ``(B, ..)``.

    Returns:
        The measurement; ``None`` of a network whose free states are equilibria.
    """
    if model.rests:
        return None
    free, answer = model.minimizer, model.relax(x)
    later = limit(model, x, free, MORE_SWEEPS)
    end = limit(model, x, replace(free, omega=free.omega_of(MORE_SWEEPS)), start=later)
    away = relative_change(answer.state, end.state).double()
    median, high = away.quantile(away.new_tensor([0.5, 0.95])).tolist()
    same = int((answer.output.argmax(1) == later.output.argmax(1)).sum())
    return Nearness(len(x), median, high, same, int((~end.converged).sum()))


def measure_nearness(folder: Path, data: ImageDataset) -> Nearness | None:
    """Measure the network of the checkpoint in a folder on the first `IMAGES` images (`nearness`).

    Raises:
        CheckpointError: The weights cannot be used, or the images do not fit them.
    """
    model, normalise = prepare(folder, data.images)
    return nearness(model, normalise(data.images[:IMAGES]))
