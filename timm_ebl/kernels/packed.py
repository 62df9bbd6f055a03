"""Convolutions as oneDNN computes them."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from .native import pack_convolution, packed_convolution
from .plain import Plain

__all__ = ["Packed"]


class Packed(Plain):
    """`Plain` on a CPU without autograd; the kernel is packed once as oneDNN wants it, instead of in every call.

    Args:
        kernel: The kernel ``(C', C, h, w)``, float32 or bfloat16.
        stride: Its step in each direction.
        padding: Zeros around the image in each direction.
        left_over: Rows and columns of the padded image that no step reaches.
        lower: Shape ``(B, C, H, W)`` of the lower layer; other batches are served as well.
    """

    def __init__(
        self, kernel: Tensor, stride: list[int], padding: list[int], left_over: list[int], lower: torch.Size
    ) -> None:
        super().__init__(kernel, stride, padding, left_over)
        self.lower, self.upper = lower, [lower[0], len(kernel), *lower[2:]]
        self._keeps_size = stride == [1, 1] and [2 * zeros + 1 for zeros in padding] == [*kernel.shape[2:]]

    def up(self, lower: Tensor, bias: Tensor | None) -> Tensor:
        if is_dynamo_compiling():  # which can make nothing of a packed weight
            return super().up(lower, bias)
        return packed_convolution(lower, self._weight_up, bias, self.stride, self.padding)

    def down(self, upper: Tensor) -> Tensor:
        if not self._keeps_size or is_dynamo_compiling():
            return super().down(upper)
        return packed_convolution(upper, self._weight_down, None, self.stride, self.padding)

    @cached_property
    def _weight_up(self) -> Tensor:
        return pack_convolution(self.kernel, self.stride, self.padding, self.lower)

    @cached_property
    def _weight_down(self) -> Tensor:
        """The transposed convolution is a convolution with the kernel rotated by 180 degrees."""
        turned = self.kernel.flatten(2).transpose(0, 1).contiguous().flip(2)  # fast only if flat
        return pack_convolution(turned.unflatten(2, self.kernel.shape[2:]), self.stride, self.padding, self.upper)
