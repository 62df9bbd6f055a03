"""The kinds of interactions that networks are made of: convolutions with pooling, dense ones, and none (Section 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arguments import as_plain, is_count
from ..energy.interaction import Interaction
from ..kernels.convolution import convolution
from ..kernels.dense import dense
from ..kernels.empty import EmptyOperator
from ..kernels.native import renew_weight
from ..kernels.pooling import AveragePooling, MaxPooling, NoPooling, Pooling

if TYPE_CHECKING:
    from ..kernels.operator import Operator

__all__ = ["AveragePooled", "ConvInteraction", "DenseInteraction", "EmptyInteraction", "RectifiedConv"]


class _Uniform(Interaction):
    is_linear = True
    weight: nn.Parameter
    bias: nn.Parameter | None

    def tensors(self) -> tuple[Tensor, ...]:
        renew_weight(self)
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def initialise(self, gain: float, bias_gain: float, generator: torch.Generator | None = None) -> None:
        fan_in = self.weight[0].numel()
        with torch.no_grad():
            for parameter, scale in ((self.weight, gain), (self.bias, bias_gain)):
                if parameter is not None:
                    bound = scale / fan_in**0.5
                    parameter.uniform_(-bound, bound, generator=generator)


class ConvInteraction(_Uniform, nn.Conv2d):
    """Convolution followed by max pooling: ``drive(s) = P(w * s) + b`` (paper, Section 3).

    Where an image is uniform, the values of a window are equal (on MNIST, at the feed-forward start, in almost half of
    the windows of the second layer), and rounding decides which of them is the maximum: two runs whose sums are rounded
    in another order (other batch, threads, device) may part there and end in different minima.

    Args:
        in_channels: Channels of the lower layer.
        out_channels: Channels of the upper layer.
        kernel_size: Side of the kernel; with padding, it keeps the image size if the stride is 1.
        pool: Side and stride of the pooling window; 1 for no pooling.
        stride: Step of the convolution.
        bias: Whether there is a bias.
        pads: Whether there are zeros around the image.
        **factory: ``device`` and ``dtype`` of the parameters.

    Raises:
        ValueError: The kernel's side is even, or the window or the stride is no whole number of at least 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        pool: int = 2,
        stride: int = 1,
        bias: bool = True,
        pads: bool = True,
        **factory,
    ) -> None:
        if not (is_count(kernel_size) and is_count(pool) and is_count(stride)) or kernel_size % 2 != 1:
            raise ValueError(
                "kernel_size is an odd whole number, and pool and stride are whole numbers of at least 1; got "
                f"{kernel_size!r}, {pool!r} and {stride!r}."
            )
        in_channels, out_channels, kernel_size, pool, stride = as_plain(
            (in_channels, out_channels, kernel_size, pool, stride)
        )
        super().__init__(
            in_channels, out_channels, kernel_size, stride, pads * (kernel_size // 2), bias=bias, **factory
        )
        self.pool = pool

    def shape(self, lower: torch.Size) -> torch.Size:
        lost = self.kernel_size[0] - 2 * self.padding[0]
        sides = ((side - lost) // step + 1 for side, step in zip(lower[1:], self.stride, strict=True))
        return torch.Size([self.out_channels, *(max(side, 0) // self.pool for side in sides)])

    def drive(self, lower: Tensor) -> Tensor:
        weight, *bias = self.tensors()
        pooled = self._pool(F.conv2d(lower, weight, None, self.stride, self.padding))
        return pooled + bias[0].view(-1, 1, 1) if bias else pooled

    def operator(self, lower_shape: torch.Size) -> Operator:
        weight, *bias = self.tensors()
        pooling = self._pooling() if self.pool > 1 else NoPooling()
        return convolution(weight, bias[0] if bias else None, lower_shape, [*self.stride], [*self.padding], pooling)

    def _pool(self, unpooled: Tensor) -> Tensor:
        """``P``."""
        return F.max_pool2d(unpooled, self.pool)

    def _pooling(self) -> Pooling:
        """What computes ``P`` and its adjoint."""
        return MaxPooling(self.pool)


class AveragePooled(ConvInteraction):
    """Convolution followed by average pooling, ``drive(s) = P(w * s) + b`` with a linear ``P``: there are no routes."""

    def _pool(self, unpooled: Tensor) -> Tensor:
        return F.avg_pool2d(unpooled, self.pool)

    def _pooling(self) -> Pooling:
        return AveragePooling(self.pool)


class RectifiedConv(ConvInteraction):
    """A convolution, pooled or not, whose call is the state of its upper layer, ``f(s) = relu(P(w * s) + b)``."""

    def forward(self, lower: Tensor, state: Tensor | None = None) -> Tensor:
        """``f(lower)``, or the state that is given."""
        if state is not None:
            return state
        weight, *bias = self.tensors()
        unpooled = F.conv2d(lower, weight, *bias or (None,), self.stride, self.padding)
        return F.relu(self._pool(unpooled) if self.pool > 1 else unpooled)

    def plain(self) -> nn.Module:
        """The same of PyTorch's own modules, which share the parameters."""
        sizes = self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding
        plain = nn.Conv2d(*sizes, bias=self.bias is not None, device="meta")
        plain.weight, plain.bias = self.weight, self.bias
        return nn.Sequential(plain, nn.MaxPool2d(self.pool), nn.ReLU())


class DenseInteraction(_Uniform, nn.Linear):
    """Dense interaction: ``drive(s) = W s + b``, the lower layer flattened (paper, Section 3)."""

    def shape(self, lower: torch.Size) -> torch.Size:
        return torch.Size([self.out_features])

    def drive(self, lower: Tensor) -> Tensor:
        weight, *bias = self.tensors()
        return F.linear(lower.flatten(1), weight, *bias)

    def operator(self, lower_shape: torch.Size) -> Operator:
        weight, *bias = self.tensors()
        return dense(weight, bias[0] if bias else None, lower_shape)

    def plain(self) -> nn.Module:
        """The same of PyTorch's own modules, which share the parameters; the lower layer is flat."""
        plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        plain.weight, plain.bias = self.weight, self.bias
        return plain


class EmptyInteraction(Interaction, nn.Identity):
    """Joins a layer to an output layer of no units, for a network without a read-out."""

    is_linear = True

    def shape(self, lower: torch.Size) -> torch.Size:
        return torch.Size([0])

    def drive(self, lower: Tensor) -> Tensor:
        return lower.flatten(1)[:, :0]

    def operator(self, lower_shape: torch.Size) -> Operator:
        return EmptyOperator(lower_shape[1:])
