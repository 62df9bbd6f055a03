"""Two states of the same samples in one batch, the first ones before the second ones: their mean and difference."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

__all__ = ["ROUGH", "apart", "copies_of", "wide"]

ROUGH = frozenset({torch.float16, torch.bfloat16})
"""The types of 16 bits."""


def wide(x: Tensor) -> Tensor:
    """A tensor in at least 32 bits."""
    return x.float() if x.dtype in ROUGH else x


def copies_of(x: Tensor) -> tuple[Tensor, Tensor]:
    """The two copies that a batch holds, in at least 32 bits."""
    return wide(x).chunk(2)


def apart(mean: Tensor, difference: Tensor) -> Tensor:
    """Two copies, of this mean and this difference, as one batch, images channels last."""
    count, *shape = mean.shape
    layout = torch.channels_last if len(shape) == 3 else torch.contiguous_format
    if is_dynamo_compiling():  # which cannot write into a part of a tensor in PyTorch 2.11
        halves = torch.sub(mean, difference, alpha=0.5), torch.add(mean, difference, alpha=0.5)
        return torch.cat(halves).to(difference.dtype, memory_format=layout)
    both = torch.empty((2 * count, *shape), dtype=difference.dtype, device=mean.device, memory_format=layout)
    torch.sub(mean, difference, alpha=0.5, out=both[:count])
    torch.add(mean, difference, alpha=0.5, out=both[count:])
    return both
