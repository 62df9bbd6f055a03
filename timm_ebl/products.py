"""The products of a convolution with states, as fast and as exact as they go."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .winograd import Winograd, is_served

__all__ = ["Products"]


class Products:
    """A convolution, its transpose and its gradient, for many calls with the same weight.

    On a CPU without autograd the weight is packed as oneDNN wants it, which spares it a reordering in every call, or
    prepared for Winograd's algorithm (`timm_ebl.winograd`) where layers are wide; elsewhere it is made channels-last.
    Under autocast the products are computed in its type.

    A learning rule contrasts two states of the same input, and rounding leaves few digits of a difference that is small
    beside the states. The products of two such copies are therefore those of their mean and of their difference: a
    rounded mean is the same for both, and the difference keeps its digits, in 16 bits too.

    Args:
        convolution: A convolution of stride 1, in one group.
        lower: Shape ``(B, C, H, W)`` of its input; other batches are served as well.
    """

    def __init__(self, convolution: nn.Conv2d, lower: torch.Size) -> None:
        self.weight, self.bias, self.padding = convolution.weight, convolution.bias, [*convolution.padding]
        self.lower = [*lower]
        self.upper = [lower[0], convolution.out_channels, *lower[2:]]
        device = self.weight.device.type
        self.dtype = torch.get_autocast_dtype(device) if _has_autocast(device) else self.weight.dtype
        self.kernel = self.weight.to(self.dtype).contiguous(memory_format=torch.channels_last)
        self.packs = (
            device == "cpu"
            and torch.backends.mkldnn.is_available()
            and torch._C._get_mkldnn_enabled()
            and (self.dtype == torch.float32 or (self.dtype == torch.bfloat16 and _has_bfloat16()))
            and not (torch.is_grad_enabled() or torch.jit.is_tracing())
        )
        self.copies = 1

    def of_copies(self, copies: int) -> Products:
        """The same for a batch that holds every sample ``copies`` times, block after block."""
        other = copy(self)
        other.copies = copies
        return other

    @property
    def by_difference(self) -> bool:
        """Whether there are two copies, which are taken by their mean and their difference, in at least 32 bits."""
        return self.copies == 2

    @property
    def is_rough(self) -> bool:
        """Whether the products are rounded to 16 bits."""
        return self.dtype in (torch.float16, torch.bfloat16)

    @property
    def _uses_packed(self) -> bool:
        return self.packs and not torch.compiler.is_compiling()

    def up(self, lower: Tensor) -> Tensor:
        """The convolution of ``(B, C, H, W)`` with its bias."""
        return self._apply(self._up, lower, self.bias)

    def down(self, upper: Tensor) -> Tensor:
        """The transposed convolution of ``(B, C', H, W)``."""
        return self._apply(self._down, upper, None)

    def gradient(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Gradient of ``sum_b <upper_b, up(lower_b)>`` in the weight, of the weight's shape and type."""
        if not self.by_difference:
            return self._scaled_gradient(lower, upper).to(self.weight.dtype)
        # u1 l1 + u2 l2 = (u1 + u2) (l1 + l2) / 2 + (u2 - u1) (l2 - l1) / 2
        (one, two), (below, above) = _copies(lower), _copies(upper)
        total = self._scaled_gradient(torch.lerp(one, two, 0.5), below + above)
        return (total + self._scaled_gradient(two - one, above - below) / 2).to(self.weight.dtype)

    def _apply(self, product: Callable[[Tensor, Tensor | None], Tensor], x: Tensor, bias: Tensor | None) -> Tensor:
        if not self.by_difference:
            return product(self._narrow(x), bias)
        first, second = _copies(x)
        mean = _wide(product(self._narrow(torch.lerp(first, second, 0.5)), bias))
        difference, scale = self._scaled(second - first)
        difference = _wide(product(difference, None))
        if scale is not None:
            difference.mul_(scale)
        count, *shape = mean.shape
        both = torch.empty((2 * count, *shape), dtype=mean.dtype, device=mean.device, memory_format=torch.channels_last)
        torch.sub(mean, difference, alpha=0.5, out=both[:count])
        torch.add(mean, difference, alpha=0.5, out=both[count:])
        return both

    def _narrow(self, x: Tensor) -> Tensor:
        return x.to(self.dtype, memory_format=torch.channels_last)

    def _scaled(self, x: Tensor, largest: float = 1.0) -> tuple[Tensor, Tensor | None]:
        """A tensor in the products' type and what it is to be multiplied by.

        float16 has room neither for small numbers nor for large sums: there, the largest entry becomes ``largest``.
        """
        if self.dtype != torch.float16:
            return self._narrow(x), None
        scale = x.abs().amax() / largest
        scale = scale.where(scale > 0, 1)
        return self._narrow(x / scale), scale

    def _scaled_gradient(self, lower: Tensor, upper: Tensor) -> Tensor:
        (lower, a), (upper, b) = self._scaled(lower, 0.125), self._scaled(upper)
        gradient = _wide(self._weight_gradient(lower, upper))
        return gradient if a is None else gradient * (a * b)

    def _weight_gradient(self, lower: Tensor, upper: Tensor) -> Tensor:
        if self._uses_packed and self._winograd:
            return self._winograd.gradient(lower, upper)
        kernel = torch.empty_like(self.weight, dtype=self.dtype, memory_format=torch.channels_last)
        ones, zeros, needed = (1, 1), (0, 0), (False, True, False)
        backward = torch.ops.aten.convolution_backward
        return backward(upper, lower, kernel, None, ones, self.padding, ones, False, zeros, 1, needed)[1]

    def _up(self, lower: Tensor, bias: Tensor | None) -> Tensor:
        bias = None if bias is None else bias.to(self.dtype)
        if self._uses_packed:
            return self._winograd.up(lower, bias) if self._winograd else self._convolve(lower, self._packed_up, bias)
        return F.conv2d(lower, self.kernel, bias, padding=self.padding)

    def _down(self, upper: Tensor, _: None) -> Tensor:
        if self._uses_packed:
            return self._winograd.down(upper) if self._winograd else self._convolve(upper, self._packed_down, None)
        return F.conv_transpose2d(upper, self.kernel, padding=self.padding)

    def _convolve(self, x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
        convolve, ones = torch.ops.mkldnn._convolution_pointwise, [1, 1]
        return convolve(x, packed, bias, self.padding, ones, ones, 1, "none", [], "")

    @cached_property
    def _winograd(self) -> Winograd | None:
        served = self.dtype == torch.float32 and is_served(self.weight, self.padding, self.lower[2:])
        return Winograd(self.weight) if served else None

    @cached_property
    def _packed_up(self) -> Tensor:
        return self._pack(self.weight.to(self.dtype), self.lower)

    @cached_property
    def _packed_down(self) -> Tensor:
        """The transposed convolution is one with the kernel turned about."""
        turned = self.weight.to(self.dtype).flatten(2).transpose(0, 1).contiguous().flip(2)  # fast only if flat
        return self._pack(turned.unflatten(2, self.weight.shape[2:]), self.upper)

    def _pack(self, kernel: Tensor, shape: list[int]) -> Tensor:
        ones = [1, 1]
        return torch._C._nn.mkldnn_reorder_conv2d_weight(
            kernel.contiguous().to_mkldnn(), self.padding, ones, ones, 1, shape
        )


def _copies(x: Tensor) -> tuple[Tensor, Tensor]:
    """The two copies that a batch holds, in at least 32 bits."""
    first, second = _wide(x).chunk(2)
    return first, second


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _has_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _has_bfloat16() -> bool:
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()
