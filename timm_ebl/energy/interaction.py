"""Interactions between two layers (paper, Section 3).

An interaction between a lower layer ``s`` and an upper layer ``o`` adds ``-<o, drive(s)>`` to the energy. Its drive is
linear up to pooling, and contains a bias of the upper layer. With ``feedback(o) = d <o, drive(s)> / d s``, the energy
is minimised over one layer, all others fixed and pooling linearised at its present argmax, by the sum of the drives
that come in and the feedbacks of the interactions that go out, clipped to the layer's bounds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arguments import is_count
from ..kernels.convolution import convolution
from ..kernels.dense import dense
from ..kernels.empty import EmptyOperator
from ..kernels.native import renew_weight
from ..kernels.operator import AutogradOperator, Operator
from ..kernels.pooling import AveragePooling, MaxPooling, NoPooling, Pooling

__all__ = ["AveragePooled", "ConvInteraction", "DenseInteraction", "EmptyInteraction", "Interaction"]


class Interaction(ABC):
    """What joins a layer to one above it: contributes ``-<upper, drive(lower)>`` to the energy.

    A new kind needs `shape` and `drive`, and `initialise` if it has parameters to draw.
    """

    @abstractmethod
    def shape(self, lower: torch.Size) -> torch.Size:
        """Shape of one sample of the upper layer, given that of the lower one."""

    @abstractmethod
    def drive(self, lower: Tensor) -> Tensor:
        """The drive ``(B, *upper_shape)`` of a lower state ``(B, *lower_shape)``, differentiable: the definition."""

    def operator(self, lower_shape: torch.Size) -> Operator:
        """The drive for the many sweeps of a relaxation with the present parameters; by default autograd makes it.

        Args:
            lower_shape: Shape ``(B, *lower_shape)`` of the lower layer; other batches are served as well.
        """
        return AutogradOperator(self.drive, self.tensors())

    def forward(self, lower: Tensor, state: Tensor | None = None) -> Tensor:
        """The upper layer's state, for hooks to see; without one the drive into it, unbounded.

        Args:
            lower: State of the lower layer, ``(B, *lower_shape)``.
            state: State of the upper layer, ``(B, *upper_shape)``.
        """
        return self.drive(lower) if state is None else state

    def tensors(self) -> tuple[Tensor, ...]:
        """What the drive is computed from: the parameters, or what pruning, a norm or the like makes of them now."""
        return tuple(self.parameters())

    def initialise(  # noqa: B027 (whoever has no parameters need not write it)
        self, gain: float, bias_gain: float, generator: torch.Generator | None = None
    ) -> None:
        """Draw weights from ``U(+-gain / sqrt(fan_in))`` and biases from ``U(+-bias_gain / sqrt(fan_in))``.

        By default nothing is drawn.
        """

    def __prepare_scriptable__(self) -> NoReturn:
        """Refuse `torch.jit.script`, which meets an interaction by itself only in a graph of `torch.fx`.

        Raises:
            TypeError: Always; a network that is scripted itself is traced instead.
        """
        raise TypeError(
            "TorchScript cannot hold the relaxation in a graph of torch.fx: give torch.jit.script the network itself."
        )


class _Uniform(Interaction):
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
        kernel_size: Side of the kernel; the padding keeps the image size if the stride is 1.
        pool: Side and stride of the pooling window; 1 for no pooling.
        stride: Step of the convolution.
        bias: Whether there is a bias.
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
        **factory,
    ) -> None:
        if not (is_count(kernel_size) and is_count(pool) and is_count(stride)) or kernel_size % 2 != 1:
            raise ValueError(
                "kernel_size is an odd whole number, and pool and stride are whole numbers of at least 1; got "
                f"{kernel_size!r}, {pool!r} and {stride!r}."
            )
        super().__init__(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=bias, **factory)
        self.pool = pool

    def shape(self, lower: torch.Size) -> torch.Size:
        sides = ((side - 1) // step + 1 for side, step in zip(lower[1:], self.stride, strict=True))
        return torch.Size([self.out_channels, *(side // self.pool for side in sides)])

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


class EmptyInteraction(Interaction, nn.Identity):
    """Joins a layer to an output layer of no units, for a network without a read-out."""

    def shape(self, lower: torch.Size) -> torch.Size:
        return torch.Size([0])

    def drive(self, lower: Tensor) -> Tensor:
        return lower.flatten(1)[:, :0]

    def operator(self, lower_shape: torch.Size) -> Operator:
        return EmptyOperator(lower_shape[1:])
