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

from ..energy.perturbation import Nudged
from ..models.interactions import ConvInteraction
from ..relaxation.minimizer import PAPER
from .gradients import PRECISIONS

if TYPE_CHECKING:
    from ..models.layered import LayeredNetwork

__all__ = ["beyond", "median_seconds", "peaks", "products", "sweep", "sweep_flops"]

_LEAST = 0.5  # seconds for which a short call is repeated in a turn


def sweep_flops(model: LayeredNetwork, x: Tensor) -> int:
    """Floating-point operations of one sweep's products for one image, forward and transposed, without the input's."""
    call = products(model, x[:1])
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def products(model: LayeredNetwork, x: Tensor) -> Callable[[], None]:
    """The products of one sweep on this batch, with nothing between them.

    The convolutions are PyTorch's own, on channels-last tensors.
    """
    calls: list[Callable[[], Tensor]] = []
    for interaction, layer, _ in model.graph.edges:
        if layer is None:
            continue
        below, weight = torch.rand(model.state_shapes(x)[layer], device=x.device, dtype=x.dtype), interaction.weight
        weight, bias = weight.detach(), None if interaction.bias is None else interaction.bias.detach()
        if isinstance(interaction, ConvInteraction):
            below, weight = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (below, weight))
            steps = interaction.stride, interaction.padding
            above = F.conv2d(below, weight, bias, *steps)
            calls.append(partial(F.conv2d, below, weight, bias, *steps))
            calls.append(partial(F.conv_transpose2d, above, weight, None, *steps, beyond(interaction, below.shape)))
        else:
            below = below.flatten(1)
            calls += [partial(F.linear, below, weight, bias), partial(F.linear, below @ weight.t(), weight.t())]

    def all_of_them() -> None:
        for call in calls:
            call()

    return all_of_them


def sweep(model: LayeredNetwork, x: Tensor) -> Callable[[], None]:
    """One nudged sweep on this batch, without over-relaxation."""
    graph, relaxation = model.graph, model.relax(x)
    nudge = Nudged(relaxation.output, model.beta)
    phase = model.phase(graph, x, relaxation.state, nudge, relaxation.known(graph, x))
    return partial(phase.sweep, PAPER.groups(graph.neighbours))


def peaks(device: torch.device, precisions: Sequence[str]) -> str:
    """The speed of a large product of two matrices, in 32 bits and in other precisions, in words."""
    side, found = (8192 if device.type == "cuda" else 2048), []
    for name, dtype in (("float32", torch.float32), *((each, PRECISIONS[each]) for each in precisions)):
        matrix = torch.randn(side, side, device=device, dtype=dtype)
        (seconds,) = median_seconds([partial(torch.mm, matrix, matrix)], 1)
        found.append(f"{2 * side**3 / seconds / 1e9:.0f} GFLOP/s in {name}")
    return f"a {side}^3 matrix product runs at {', '.join(found)}"


def median_seconds(calls: Sequence[Callable[[], object]], turns: int) -> list[float]:
    """Seconds of each of several calls, made by turns, a short one many times in a turn: the median over the turns."""
    timers = [Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads()) for call in calls]
    found = [[timer.blocked_autorange(min_run_time=_LEAST).median for timer in timers] for _ in range(turns)]
    return [statistics.median(column) for column in zip(*found, strict=True)]


def beyond(interaction: ConvInteraction, lower: torch.Size) -> list[int]:
    """The rows and columns of a lower layer that no step of the convolution reaches."""
    sizes = zip(lower[2:], interaction.padding, interaction.kernel_size, interaction.stride, strict=True)
    return [(side + 2 * padding - kernel) % stride for side, padding, kernel, stride in sizes]
