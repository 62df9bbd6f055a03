"""What the sweeps of a relaxation multiply: how much, and how fast alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from ..models.interactions import ConvInteraction
from ..relaxation.minimizer import PAPER
from ..relaxation.phase import EnergyPhase

if TYPE_CHECKING:
    from ..models.network import HopfieldNetwork

__all__ = ["median_seconds", "products", "sweep", "sweep_flops"]

_LEAST = 0.5  # seconds for which a short call is repeated in a turn


def sweep_flops(model: HopfieldNetwork, x: Tensor) -> int:
    """Floating-point operations of one sweep's products for one image, forward and transposed, without the input's."""
    call = products(model, x[:1])
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def products(model: HopfieldNetwork, x: Tensor) -> Callable[[], None]:
    """The products of one sweep on this batch, with nothing between them.

    The convolutions are PyTorch's own, on channels-last tensors.
    """
    calls: list[Callable[[], Tensor]] = []
    for interaction, lower in zip(list(model.interactions)[1:], model.state_shapes(x), strict=False):
        below, weight = torch.rand(lower, device=x.device, dtype=x.dtype), interaction.weight.detach()
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
    graph, relaxation = model.graph, model.relax(x)
    phase = EnergyPhase(graph, x, relaxation.state, cache=relaxation.known(graph, x))
    return partial(phase.sweep, PAPER.groups(graph.neighbours))


def median_seconds(calls: Sequence[Callable[[], object]], turns: int) -> list[float]:
    """Seconds of each of several calls, made by turns, a short one many times in a turn: the median over the turns."""
    timers = [Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads()) for call in calls]
    found = [[timer.blocked_autorange(min_run_time=_LEAST).median for timer in timers] for _ in range(turns)]
    return [statistics.median(column) for column in zip(*found, strict=True)]
