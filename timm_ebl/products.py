"""The two linear maps of a convolution, as fast as they go."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Products"]


class Products:
    """A convolution and its transpose, for many calls with the same weight.

    On a CPU, in 32 bits and without autograd, the weight is packed as oneDNN wants it, which spares it a reordering in
    every call; elsewhere it is made channels-last, and cast to 16 bits under autocast.

    Args:
        convolution: A convolution of stride 1, in one group.
        lower: Shape ``(B, C, H, W)`` of its input; other batches are served as well.
    """

    def __init__(self, convolution: nn.Conv2d, lower: torch.Size) -> None:
        self.weight, self.bias, self.padding = convolution.weight, convolution.bias, convolution.padding
        self.lower = [*lower]
        self.upper = [lower[0], convolution.out_channels, *lower[2:]]
        self.packs = (
            self.weight.device.type == "cpu"
            and self.weight.dtype == torch.float32
            and torch.backends.mkldnn.is_available()
            and torch._C._get_mkldnn_enabled()
            and not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"))
            and not (torch.compiler.is_compiling() or torch.jit.is_tracing())
        )

    @cached_property
    def up(self) -> Callable[[Tensor], Tensor]:
        """The convolution with its bias."""
        if self.packs:
            return self._packed(self.weight, self.bias, self.lower)
        return lambda lower: F.conv2d(lower, self._kernel, self.bias, padding=self.padding)

    @cached_property
    def down(self) -> Callable[[Tensor], Tensor]:
        """The transposed convolution, as one with the kernel turned about where the weight is packed."""
        if self.packs:
            turned = self.weight.contiguous(memory_format=torch.channels_last).flip(2, 3).transpose(0, 1)
            return self._packed(turned, None, self.upper)
        return lambda routed: F.conv_transpose2d(routed, self._kernel, padding=self.padding)

    @cached_property
    def _kernel(self) -> Tensor:
        kernel, device = self.weight, self.weight.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            kernel = kernel.to(torch.get_autocast_dtype(device))
        return kernel.contiguous(memory_format=torch.channels_last)

    def _packed(self, weight: Tensor, bias: Tensor | None, shape: list[int]) -> Callable[[Tensor], Tensor]:
        padding, ones = list(self.padding), [1, 1]
        packed = torch._C._nn.mkldnn_reorder_conv2d_weight(
            weight.detach().contiguous().to_mkldnn(), padding, ones, ones, 1, shape
        )
        convolve = torch.ops.mkldnn._convolution_pointwise
        return lambda x: convolve(x, packed, bias, padding, ones, ones, 1, "none", [], "")
