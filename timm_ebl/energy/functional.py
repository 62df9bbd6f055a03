"""The energy of a state, and sums over its layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["State", "energy_from_drives", "inner", "norm", "weigh"]

State = tuple[Tensor, ...]
"""Layers ``(s_1, .., o)``, each with the batch first; the input is not part of the state."""


def energy_from_drives(state: State, drives: Sequence[Tensor]) -> Tensor:
    """Energy ``(B,)`` of a state, ``sum_k <s_k, s_k / 2 - drive_k>``, in at least 32 bits.

    Args:
        state: The layers ``(s_1, .., o)``.
        drives: For every layer the sum of the drives into it, of its shape.
    """
    return torch.stack([inner(torch.sub(s, d, alpha=2), s) / 2 for s, d in zip(state, drives, strict=True)]).sum(0)


def inner(a: Tensor, b: Tensor) -> Tensor:
    """``<a, b>`` of each sample, ``(B,)``, summed in at least 32 bits."""
    density = a * b
    return density.sum(tuple(range(1, a.ndim)), dtype=torch.promote_types(density.dtype, torch.float32))


def norm(layers: Sequence[Tensor]) -> Tensor:
    """Norm of several layers together, of each sample, ``(B,)``, in at least 32 bits."""
    norms = [
        torch.linalg.vector_norm(s, dim=tuple(range(1, s.ndim)), dtype=torch.promote_types(s.dtype, torch.float32))
        for s in layers
    ]
    return torch.stack(norms).norm(dim=0)


def weigh(layer: Tensor, weights: Tensor) -> Tensor:
    """Each sample of a layer ``(B, ..)`` times its weight, ``(B,)``."""
    return layer * weights.view(-1, *[1] * (layer.ndim - 1))
