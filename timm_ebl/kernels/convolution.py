"""Convolutions as PyTorch and oneDNN compute them."""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Direct", "Packed"]

_ONES = [1, 1]


class Direct:
    """A convolution of stride 1 with a kernel, its transpose and its gradient, as PyTorch computes them.

    Args:
        kernel: The kernel ``(C', C, h, w)``, in the type of the products.
        padding: Zeros around the image, in each direction.
    """

    def __init__(self, kernel: Tensor, padding: list[int]) -> None:
        self.kernel, self.padding = kernel, padding

    def up(self, lower: Tensor, bias: Tensor | None = None) -> Tensor:
        """The convolution of ``(B, C, H, W)`` with its bias."""
        return F.conv2d(lower, self.kernel, bias, padding=self.padding)

    def down(self, upper: Tensor) -> Tensor:
        """The transposed convolution of ``(B, C', H, W)``."""
        return F.conv_transpose2d(upper, self.kernel, padding=self.padding)

    def gradient(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Gradient of ``sum_b <upper_b, up(lower_b)>`` in the kernel."""
        layout = torch.empty_like(self.kernel, memory_format=torch.channels_last)
        ones, zeros, needed = (1, 1), (0, 0), (False, True, False)
        backward = torch.ops.aten.convolution_backward.default
        return backward(upper, lower, layout, None, ones, self.padding, ones, False, zeros, 1, needed)[1]


class Packed(Direct):
    """The same on a CPU without autograd, the kernel packed once as oneDNN wants it, which else every call does.

    Args:
        kernel: The kernel ``(C', C, h, w)``, float32 or bfloat16.
        padding: Zeros around the image, in each direction.
        lower: Shape ``(B, C, H, W)`` of the lower layer; other batches are served as well.
    """

    def __init__(self, kernel: Tensor, padding: list[int], lower: list[int]) -> None:
        super().__init__(kernel, padding)
        self.lower, self.upper = lower, [lower[0], len(kernel), *lower[2:]]

    def up(self, lower: Tensor, bias: Tensor | None = None) -> Tensor:
        return self._convolve(lower, self._packed_up, bias)

    def down(self, upper: Tensor) -> Tensor:
        return self._convolve(upper, self._packed_down, None)

    def _convolve(self, x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
        convolve = torch.ops.mkldnn._convolution_pointwise.default
        return convolve(x, packed, bias, self.padding, _ONES, _ONES, 1, "none", (), "")

    @cached_property
    def _packed_up(self) -> Tensor:
        return self._pack(self.kernel, self.lower)

    @cached_property
    def _packed_down(self) -> Tensor:
        """The transposed convolution is one with the kernel turned about."""
        turned = self.kernel.flatten(2).transpose(0, 1).contiguous().flip(2)  # fast only if flat
        return self._pack(turned.unflatten(2, self.kernel.shape[2:]), self.upper)

    def _pack(self, kernel: Tensor, shape: list[int]) -> Tensor:
        flat = kernel.contiguous().to_mkldnn()
        return torch._C._nn.mkldnn_reorder_conv2d_weight(flat, self.padding, _ONES, _ONES, 1, shape)
