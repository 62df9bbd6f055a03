"""The read-out of a network of maps: dense, of the whole last hidden layer, or none."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..energy.interaction import DenseInteraction, EmptyInteraction

__all__ = ["as_global_pool", "create_head", "resized"]


def create_head(features: int, num_classes: int, **factory) -> DenseInteraction | EmptyInteraction:
    """A read-out of so many units; of none, one that joins nothing."""
    return DenseInteraction(features, num_classes, **factory) if num_classes else EmptyInteraction()


def resized(weight: Tensor, before: torch.Size, after: torch.Size) -> Tensor:
    """A read-out of a map of one shape as that of another, by which a uniform map keeps its output."""
    maps = F.interpolate(weight.view(-1, *before), size=after[1:], mode="bilinear", antialias=True)
    return maps.flatten(1) * (before.numel() / after.numel())


def as_global_pool(global_pool: str, num_classes: int) -> str:
    """The pooling before the read-out, if there is such a one.

    Raises:
        ValueError: There is none, or it leaves a map where there are classes.
    """
    if global_pool not in ("flatten", ""):
        raise ValueError(
            f"A DCHN has a dense read-out of the whole last layer: global_pool is 'flatten' or '', not {global_pool!r}."
        )
    if num_classes and not global_pool:
        raise ValueError("A read-out needs a flat last layer: global_pool='' goes with num_classes=0 alone.")
    return global_pool
