"""Convolutions as PyTorch computes them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .native import convolution_weight_gradient

__all__ = ["Plain"]


class Plain:
    """A convolution with a kernel, its transpose and its gradient, on any device and with autograd.

    Args:
        kernel: The kernel ``(C', C, h, w)``, in the type of the products.
        stride: Its step in each direction.
        padding: Zeros around the image in each direction.
        left_over: Rows and columns of the padded image that no step reaches.
    """

    def __init__(self, kernel: Tensor, stride: list[int], padding: list[int], left_over: list[int]) -> None:
        self.kernel, self.stride, self.padding, self.left_over = kernel, stride, padding, left_over

    def up(self, lower: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution of ``(B, C, H, W)``, and a bias."""
        return F.conv2d(lower, self.kernel, bias, self.stride, self.padding)

    def down(self, upper: Tensor) -> Tensor:
        """The transposed convolution of ``(B, C', H', W')``."""
        return F.conv_transpose2d(upper, self.kernel, None, self.stride, self.padding, self.left_over)

    def gradient(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Gradient of ``sum_b <upper_b, up(lower_b)>`` in the kernel."""
        return convolution_weight_gradient(lower, upper, self.kernel, self.stride, self.padding)
