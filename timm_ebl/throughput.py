"""What the sweeps of a relaxation multiply: how much, and how fast alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from .interaction import ConvInteraction
from .minimize import PAPER
from .network import HopfieldNetwork
from .walk import Walk

__all__ = ["counted_flops", "layer_products", "products", "sweep", "sweep_flops"]


def counted_flops(call: Callable[[], object]) -> int:
    """Floating-point operations of the products that a call makes, as `FlopCounterMode` counts them.

    It knows no packed product, so that none are packed.
    """
    with warnings.catch_warnings(), FlopCounterMode(display=False) as counter:
        warnings.simplefilter("ignore")  # that oneDNN has no TF32 here
        with torch.backends.mkldnn.flags(enabled=False):
            call()
    return counter.get_total_flops()


def sweep_flops(model: HopfieldNetwork, x: Tensor) -> int:
    """Floating-point operations of one sweep's products for one image, forward and transposed, without the input's."""
    return 4 * sum(layer_products(model, x)[1:])


def layer_products(model: HopfieldNetwork, x: Tensor) -> list[int]:
    """Multiplications of each interaction's drive, for one image."""
    sample, found = x.shape[1:], []
    for interaction in model.interactions:
        positions = sample[1:].numel() if isinstance(interaction, ConvInteraction) else 1
        found.append(interaction.weight.numel() * positions)
        sample = interaction.shape(sample)
    return found


def products(model: HopfieldNetwork, x: Tensor) -> Callable[[], None]:
    """The products of one sweep on this batch, with nothing between them.

    The convolutions are PyTorch's own, on channels-last tensors.
    """
    calls: list[Callable[[], Tensor]] = []
    for interaction, lower in zip(list(model.interactions)[1:], model.state_shapes(x), strict=False):
        below, weight = torch.rand(lower, device=x.device), interaction.weight.detach()
        if isinstance(interaction, ConvInteraction):
            below, weight = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (below, weight))
            bias, padding = interaction.bias.detach(), interaction.padding
            above = F.conv2d(below, weight, bias, padding=padding)
            calls.append(partial(F.conv2d, below, weight, bias, padding=padding))
            calls.append(partial(F.conv_transpose2d, above, weight, padding=padding))
        else:
            below = below.flatten(1)
            calls += [
                partial(F.linear, below, weight, interaction.bias.detach()),
                partial(F.linear, below @ weight.t(), weight.t()),
            ]

    def all_of_them() -> None:
        for call in calls:
            call()

    return all_of_them


def sweep(model: HopfieldNetwork, x: Tensor) -> Callable[[], None]:
    """One sweep on this batch, without over-relaxation."""
    relaxation = model.relax(x)
    walk = Walk(model.interactions, x, relaxation.state, prepared=relaxation.prepared)
    return partial(walk.sweep, PAPER.groups(len(walk.state)))
