"""Convolutions with pooling as operators of single states, of pairs and of changes.

A learning rule contrasts two states of the same input, and rounding leaves few digits of a difference that is small
beside the states. The products of two such copies are therefore those of their mean and of their difference: a rounded
mean is the same for both, and the difference keeps its digits, in 16 bits too. So do the products of a change of state.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .autocast import has_autocast
from .native import has_bfloat16_units
from .operator import Drive, Operator, inner_product
from .packed import Packed
from .pair import ROUGH, apart, copies_of, wide
from .plain import Plain
from .pooling import Images, NoPooling, Pooling
from .winograd import Winograd, is_served

__all__ = ["convolution"]

_NO_POOLING = NoPooling()


def convolution(
    weight: Tensor,
    bias: Tensor | None,
    lower_shape: torch.Size,
    stride: list[int],
    padding: list[int],
    pooling: Pooling,
) -> Operator:
    """``P(w * s) + b`` for many calls with the same weight; under autocast the products are computed in its type.

    On a CPU without autograd the weight is packed as oneDNN wants it (`timm_ebl.kernels.packed`), or prepared for
    Winograd's algorithm (`timm_ebl.kernels.winograd`) where layers are wide; elsewhere PyTorch convolves
    (`timm_ebl.kernels.plain`).

    Args:
        weight: The kernels ``(C', C, h, w)``, in one group.
        bias: The bias ``(C',)``, if any.
        lower_shape: Shape ``(B, C, H, W)`` of the lower layer; other batches are served as well.
        stride: Step of the convolution in each direction.
        padding: Zeros around the image in each direction.
        pooling: What follows the convolution.
    """
    device, dtype = weight.device.type, weight.dtype
    if has_autocast(device):
        dtype = torch.get_autocast_dtype(device)
    kernel = weight.to(dtype)
    down, across = (lower_shape[2 + i] + 2 * padding[i] - weight.shape[2 + i] for i in (0, 1))
    size, left_over = (down // stride[0] + 1, across // stride[1] + 1), [down % stride[0], across % stride[1]]
    packs = _packs(device, dtype)
    engine: Plain
    if not packs:
        engine = Plain(kernel.contiguous(memory_format=torch.channels_last), stride, padding, left_over)
    elif dtype == torch.float32 and is_served(kernel, stride, padding, lower_shape):
        engine = Winograd(kernel)
    else:
        engine = Packed(kernel, stride, padding, left_over, lower_shape)
    offset = None if bias is None else bias.to(dtype)
    return _OfStates(engine, pooling, Images(size, packs), weight, bias, offset, dtype)


def _packs(device: str, dtype: torch.dtype) -> bool:
    """Whether oneDNN takes the weight: of a packed one neither autograd nor a trace nor a compiler makes anything."""
    return (
        device == "cpu"
        and not (torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling())
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and (dtype == torch.float32 or (dtype == torch.bfloat16 and has_bfloat16_units()))
    )


@dataclass(eq=False, repr=False)
class _Convolution(Operator):
    """What the three operators share.

    Attributes:
        engine: What computes the products.
        pooling: What follows the convolution.
        images: Where the upper layer is unpooled to.
        weight: The weight.
        bias: The bias, if any.
        offset: The bias in the type of the products.
        dtype: That type.
    """

    engine: Plain
    pooling: Pooling
    images: Images
    weight: Tensor
    bias: Tensor | None
    offset: Tensor | None
    dtype: torch.dtype

    def coupling(self, lower: Tensor, upper: Tensor, route: Tensor | None) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        found, of_bias = self._gradients(lower, upper, route)
        layout = torch.empty_like(self.weight)
        of_weight = layout.copy_(found)
        if self.bias is None:
            return inner_product((self.weight,), (of_weight,)), (of_weight,)
        gradients = of_weight, of_bias
        return inner_product((self.weight, self.bias), gradients), gradients

    @abstractmethod
    def _gradients(self, lower: Tensor, upper: Tensor, route: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The gradients in the weight and in the bias, should there be one."""

    def pair(self) -> Operator:
        return _OfPair(**vars(self))

    def changes(self) -> Operator:
        return _OfChanges(**vars(self))

    def _narrow(self, x: Tensor) -> Tensor:
        if x.dtype == self.dtype and x.is_contiguous(memory_format=torch.channels_last):
            return x
        return x.to(self.dtype, memory_format=torch.channels_last)

    def _scaled(self, x: Tensor, largest: float = 1.0) -> tuple[Tensor, Tensor | None]:
        """A tensor in the products' type and what it is to be multiplied by.

        float16 has room neither for small numbers nor for large sums: there, the largest entry becomes ``largest``.
        """
        if self.dtype != torch.float16 or not x.numel():
            return self._narrow(x), None
        scale = x.abs().amax() / largest
        scale = scale.where(scale > 0, 1)
        return self._narrow(x / scale), scale

    def _change_up(self, change: Tensor, pooling: Pooling, route: Tensor | None) -> Tensor:
        """What a change of the lower layer makes of the drive."""
        change, scale = self._scaled(change)
        found = wide(pooling.hold(self.engine.up(change, None), route))
        return found if scale is None else found.mul_(scale)

    def _change_down(self, change: Tensor, pooling: Pooling, route: Tensor | None) -> Tensor:
        """What a change of the upper layer makes of the feedback."""
        change, scale = self._scaled(change)
        found = wide(self.engine.down(pooling.unpool(change, route, self.images)))
        return found if scale is None else found.mul_(scale)

    def _weight_gradient(self, lower: Tensor, upper: Tensor, pooling: Pooling, route: Tensor | None) -> Tensor:
        (lower, a), (upper, b) = self._scaled(lower, 0.125), self._scaled(upper)
        gradient = wide(self.engine.gradient(lower, pooling.unpool(upper, route, self.images)))
        return gradient if a is None else gradient * (a * b)


class _OfStates(_Convolution):
    """Of single states, multiplied as they are."""

    def drive(self, lower: Tensor, route: Tensor | None = None) -> Drive:
        unpooled = self.engine.up(self._narrow(lower), self.offset)
        if route is None:
            return Drive(*self.pooling.pool(unpooled))
        return Drive(self.pooling.hold(unpooled, route), route)

    def feedback(self, upper: Tensor, route: Tensor | None) -> Tensor:
        return self.engine.down(self.pooling.unpool(self._narrow(upper), route, self.images))

    def _gradients(self, lower: Tensor, upper: Tensor, route: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self._weight_gradient(lower, upper, self.pooling, route), upper.sum((0, 2, 3))


class _OfChanges(_Convolution):
    """Of changes of states."""

    def drive(self, lower: Tensor, route: Tensor | None = None) -> Drive:
        return Drive(self._change_up(lower, self.pooling, route), route)

    def feedback(self, upper: Tensor, route: Tensor | None) -> Tensor:
        return self._change_down(upper, self.pooling, route)

    def _gradients(self, lower: Tensor, upper: Tensor, route: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self._weight_gradient(lower, upper, self.pooling, route), None


class _OfPair(_Convolution):
    """Of two copies of every sample, by mean and difference, in at least 32 bits."""

    def drive(self, lower: Tensor, route: Tensor | None = None) -> Drive:
        # Pooling is one linear map for both copies, or is done to each.
        shared = not self.pooling.chooses or (route is not None and route.shape[0] < lower.shape[0])
        pooling = self.pooling if shared else _NO_POOLING
        first, second = copies_of(lower)
        mean = self.engine.up(self._narrow(torch.lerp(first, second, 0.5)), self.offset)
        mean = wide(pooling.hold(mean, route))
        both = apart(mean, self._change_up(second - first, pooling, route))
        if shared:
            return Drive(both, route)
        if route is None and self.dtype in ROUGH:
            # Of values that 16 bits cannot tell apart, rounding would choose another one for each copy.
            _, route = self.pooling.pool(torch.lerp(*both.chunk(2), 0.5))
            return Drive(self.pooling.hold(both, torch.cat([route, route])), route)
        if route is None:
            return Drive(*self.pooling.pool(both))
        return Drive(self.pooling.hold(both, route), route)

    def feedback(self, upper: Tensor, route: Tensor | None) -> Tensor:
        upper, pooling, route = self._unpooling(upper, route)
        first, second = copies_of(upper)
        mean = self._change_down(torch.lerp(first, second, 0.5), pooling, route)
        return apart(mean, self._change_down(second - first, pooling, route))

    def _gradients(self, lower: Tensor, upper: Tensor, route: Tensor | None) -> tuple[Tensor, Tensor | None]:
        # u1 l1 + u2 l2 = (u1 + u2) (l1 + l2) / 2 + (u2 - u1) (l2 - l1) / 2
        below, above = upper.chunk(2)
        of_bias = (below + above).sum((0, 2, 3))
        upper, pooling, route = self._unpooling(upper, route)
        (one, two), (below, above) = copies_of(lower), copies_of(upper)
        total = self._weight_gradient(torch.lerp(one, two, 0.5), below + above, pooling, route)
        return total + self._weight_gradient(two - one, above - below, pooling, route) / 2, of_bias

    def _unpooling(self, upper: Tensor, route: Tensor | None) -> tuple[Tensor, Pooling, Tensor | None]:
        """The upper layer, the adjoint of pooling and its route; where each copy has its own, it is done already."""
        if route is None or route.shape[0] < upper.shape[0]:
            return upper, self.pooling, route
        return self.pooling.unpool(upper, route, self.images), _NO_POOLING, None
