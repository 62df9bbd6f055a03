"""Interactions between neighbouring layers (paper, Section 3).

A layered Hopfield network has an input ``s_0 = x``, hidden layers ``s_1 .. s_{L-1}`` with units in ``[0, 1]`` and an
output layer ``s_L = o`` with real units. Interaction ``k`` joins layer ``k - 1`` to layer ``k``:

    E(theta, x, s) = 1/2 sum_k |s_k|^2 - sum_k <s_k, drive_k(s_{k-1})>

where ``drive_k`` is linear up to pooling and contains the bias of layer ``k``. Writing
``feedback_k(s_k) = d <s_k, drive_k(s_{k-1})> / d s_{k-1}``, the energy is minimised over one layer, all others fixed
and pooling linearised at its present argmax, by ``s_k = clip(drive_k(s_{k-1}) + feedback_{k+1}(s_{k+1}), 0, 1)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .matrix import Matrix
from .prepared import Prepared
from .products import Map, Products
from .values import is_count

__all__ = [
    "AveragePooled",
    "ConvInteraction",
    "DenseInteraction",
    "Drive",
    "EmptyInteraction",
    "Interaction",
    "cat_known",
    "is_watched",
    "of_samples",
]


class Drive(NamedTuple):
    """The bottom-up input to a layer, with what its top-down counterpart needs.

    Attributes:
        value: ``drive_k(s_{k-1})``, of the shape of ``s_k``; ``None`` if nothing needed it.
        route: For each unit of ``s_k`` the position that pooling chose below, once for all copies of a sample if they
            share it; ``None`` where nothing is pooled.
    """

    value: Tensor | None
    route: Tensor | None = None

    @classmethod
    def cat(cls, drives: Sequence[Drive]) -> Drive:
        """The drive into a layer of several batches, as that of one batch."""
        values, routes = zip(*drives, strict=True)
        shared = all(route is routes[0] for route in routes)
        return cls(cat_known(values), routes[0] if shared else cat_known(routes))

    def select(self, samples: Tensor) -> Drive:
        """The drive into a layer of some samples of the batch, given by a mask."""
        return Drive(*(of_samples(part, samples) for part in self))


class Interaction(ABC):
    """What joins a layer to the one above it: contributes ``-<upper, drive(lower)>`` to the energy.

    A class names it before the `nn.Module` that it is as well, whose ``forward`` it takes the place of.
    """

    @abstractmethod
    def shape(self, lower: torch.Size) -> torch.Size:
        """Shape of one sample of the upper layer, given that of the lower one."""

    def prepare(self, lower: torch.Size) -> Prepared | None:
        """What the many sweeps of a relaxation share, made once: the other methods take it as `prepared`.

        Args:
            lower: Shape ``(B, *lower_shape)`` of the lower layer.
        """
        return None

    @abstractmethod
    def drive(self, lower: Tensor, route: Tensor | None = None, prepared: Prepared | None = None) -> Drive:
        """Bottom-up input ``drive(lower)``, bias included.

        Args:
            lower: State of the lower layer, ``(B, *lower_shape)``.
            route: Positions to use in place of those that pooling would choose now ("held routes").
            prepared: What `prepare` returned, if it was asked.
        """

    @abstractmethod
    def feedback(
        self, upper: Tensor, route: Tensor | None, lower: torch.Size, prepared: Prepared | None = None
    ) -> Tensor:
        """Top-down input ``d <upper, drive(lower)> / d lower``, in a tensor of its own, which the caller may change.

        Args:
            upper: State of the upper layer, ``(B, *upper_shape)``.
            route: The route of the drive at the present lower state.
            lower: Shape ``(B, *lower_shape)`` of the result.
            prepared: What `prepare` returned, if it was asked.
        """

    def change(self, lower: Tensor, route: Tensor | None, prepared: Prepared | None = None) -> Tensor:
        """Change of the drive when the lower layer changes, its route held: ``drive(lower) - drive(0)``.

        Args:
            lower: Change of the lower layer, ``(B, *lower_shape)``.
            route: The held route.
            prepared: What `prepare` returned, for changes (`Prepared.for_changes`), if it was asked.
        """
        return self.drive(lower, route).value - self.drive(torch.zeros_like(lower), route).value

    @abstractmethod
    def gradient(
        self, lower: Tensor, upper: Tensor, route: Tensor | None, prepared: Prepared | None = None
    ) -> tuple[Tensor | None, ...]:
        """Gradient of ``sum_b <upper_b, drive(lower_b)>`` in each of the `tensors`.

        Args:
            lower: State of the lower layer, ``(B, *lower_shape)``.
            upper: State of the upper layer, ``(B, *upper_shape)``.
            route: The route of the drive at this lower state.
            prepared: What `prepare` returned, if it was asked.
        """

    def coupling(
        self, lower: Tensor, upper: Tensor, route: Tensor | None, prepared: Prepared | None = None
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """``sum_b <upper_b, drive(lower_b)>``, a scalar, and its gradient in each of the `tensors`: see `gradient`."""
        drive = self.drive(lower, route, prepared).value
        return (upper * drive).sum(), self.gradient(lower, upper, route, prepared)

    def forward(self, lower: Tensor, state: Tensor | None = None) -> Tensor:
        """The upper layer's state, for hooks to see; without one the drive into it, unbounded.

        Args:
            lower: State of the lower layer, ``(B, *lower_shape)``.
            state: State of the upper layer, ``(B, *upper_shape)``.
        """
        return self.drive(lower).value if state is None else state

    def tensors(self) -> tuple[Tensor, ...]:
        """What the drive is computed from: the parameters, or what pruning, a norm or the like makes of them now."""
        return tuple(self.parameters())

    @abstractmethod
    def initialise(self, gain: float, bias_gain: float, generator: torch.Generator | None = None) -> None:
        """Draw weights from ``U(+-gain / sqrt(fan_in))`` and biases from ``U(+-bias_gain / sqrt(fan_in))``."""

    def __prepare_scriptable__(self) -> NoReturn:
        """Refuse `torch.jit.script`, which meets an interaction by itself only in a graph of `torch.fx`.

        Raises:
            TypeError: Always; a network that is scripted itself is traced instead.
        """
        raise TypeError(
            "TorchScript cannot hold the relaxation in a graph of torch.fx: give torch.jit.script the network itself."
        )


def _makes_weight(hook: object) -> bool:
    """Whether a hook is one of pruning, `weight_norm` or the like, which set a weight anew before every call."""
    return type(hook).__module__.startswith("torch.nn.utils.")


def is_watched(module: nn.Module) -> bool:
    """Whether a module has hooks that a call of it should reach."""
    hooks = (module._forward_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or not all(map(_makes_weight, module._forward_pre_hooks.values()))


class _Uniform(Interaction):
    weight: nn.Parameter
    bias: nn.Parameter

    def tensors(self) -> tuple[Tensor, ...]:
        for hook in self._forward_pre_hooks.values():
            if _makes_weight(hook):
                hook(self, ())
        return self.weight, self.bias

    def change(self, lower: Tensor, route: Tensor | None, prepared: Prepared | None = None) -> Tensor:
        return self.drive(lower, route, prepared or self.prepare(lower.shape).for_changes()).value

    def coupling(
        self, lower: Tensor, upper: Tensor, route: Tensor | None, prepared: Prepared | None = None
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """The coupling is linear in weight and bias: it is their inner product with its gradient."""
        gradients = self.gradient(lower, upper, route, prepared)
        values = [(p.detach() * g).sum() for p, g in zip((self.weight, self.bias), gradients, strict=True)]
        return torch.stack(values).sum(), gradients

    def initialise(self, gain: float, bias_gain: float, generator: torch.Generator | None = None) -> None:
        fan_in = self.weight[0].numel()
        with torch.no_grad():
            for parameter, scale in ((self.weight, gain), (self.bias, bias_gain)):
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
        kernel_size: Side of the kernel; the padding keeps the image size.
        pool: Side and stride of the pooling window.
        **kwargs: ``device`` and ``dtype`` of the parameters.

    Raises:
        ValueError: The kernel's side is even, or the window has no extent.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, pool: int = 2, **kwargs) -> None:
        if not (is_count(kernel_size) and is_count(pool)) or kernel_size % 2 != 1:
            raise ValueError(
                f"kernel_size is an odd whole number and pool one of at least 1; got {kernel_size!r} and {pool!r}."
            )
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2, **kwargs)
        self.pool = pool

    def shape(self, lower: torch.Size) -> torch.Size:
        return torch.Size([self.out_channels, *(side // self.pool for side in lower[1:])])

    def prepare(self, lower: torch.Size) -> Products:
        """The products of the convolution, with the weight laid out for them once."""
        return Products(*self.tensors(), [*self.padding], lower)

    def drive(self, lower: Tensor, route: Tensor | None = None, prepared: Products | None = None) -> Drive:
        products = prepared or self.prepare(lower.shape)
        if route is not None and _is_shared(route, lower, products):
            return Drive(products.up(lower, partial(_gather, route=route)), route)
        unpooled = products.up(lower)
        if route is None and products.by_difference and products.is_rough:
            # Of values that 16 bits cannot tell apart, rounding would choose another one for each copy.
            _, route = F.max_pool2d(torch.lerp(*unpooled.chunk(2), 0.5), self.pool, return_indices=True)
        if route is None:
            return Drive(*F.max_pool2d(unpooled, self.pool, return_indices=True))
        return Drive(_gather(unpooled, route), route)

    def feedback(
        self, upper: Tensor, route: Tensor | None, lower: torch.Size, prepared: Products | None = None
    ) -> Tensor:
        products = prepared or self.prepare(lower)
        return products.down(*self._unpooling(upper, route, lower, products))

    def _unpooling(
        self, upper: Tensor, route: Tensor | None, lower: torch.Size, products: Products
    ) -> tuple[Tensor] | tuple[Tensor, Map]:
        """The upper layer and the map that unpools it, or, where each copy has a route of its own, what it makes."""
        if not _is_shared(route, upper, products):
            return (self._unpool(upper, route, lower, products),)
        return upper, partial(self._unpool, route=route, lower=lower, products=products)

    def _unpool(self, upper: Tensor, route: Tensor | None, lower: torch.Size, products: Products) -> Tensor:
        """Every value at the position that pooling chose, zeros elsewhere; it lasts until the next call."""
        route = None if route is None else _of_each(route, upper)
        size = upper.shape[:2] + lower[2:]
        room = products.scratch(size, upper.dtype)
        adjoint, options = self._adjoint(route)
        if room is not None:
            return adjoint.grad_input(upper, room, *options, grad_input=room)
        like = torch.empty(size, dtype=upper.dtype, device=upper.device, memory_format=torch.channels_last)
        return adjoint.default(upper, like, *options)

    def _adjoint(self, route: Tensor | None) -> tuple[torch._ops.OpOverloadPacket, tuple[object, ...]]:
        """The adjoint of pooling, and what it takes beside the values and a tensor like the result."""
        window = (self.pool, self.pool)
        return torch.ops.aten.max_pool2d_with_indices_backward, (window, window, (0, 0), (1, 1), False, route)

    def gradient(
        self, lower: Tensor, upper: Tensor, route: Tensor | None, prepared: Products | None = None
    ) -> tuple[Tensor | None, ...]:
        products = prepared or self.prepare(lower.shape)
        bias = sum(upper.chunk(products.copies)).sum((0, 2, 3))
        return products.gradient(lower, *self._unpooling(upper, route, lower.shape, products)), bias


class AveragePooled(ConvInteraction):
    """Convolution followed by average pooling, ``drive(s) = P(w * s) + b`` with a linear ``P``: there are no routes."""

    def drive(self, lower: Tensor, route: Tensor | None = None, prepared: Products | None = None) -> Drive:
        products = prepared or self.prepare(lower.shape)
        return Drive(F.avg_pool2d(products.up(lower), self.pool))

    def _adjoint(self, route: Tensor | None) -> tuple[torch._ops.OpOverloadPacket, tuple[object, ...]]:
        window = (self.pool, self.pool)
        return torch.ops.aten.avg_pool2d_backward, (window, window, (0, 0), False, True, None)


def cat_known(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Several tensors as one of all their samples; ``None`` unless all are known."""
    return None if any(part is None for part in parts) else torch.cat(parts)


def of_samples(part: Tensor | None, samples: Tensor) -> Tensor | None:
    """Some samples, by a mask ``(B,)``, of a tensor that holds all once or several times, block after block, if any."""
    return None if part is None else part[samples.repeat(len(part) // len(samples))]


def _is_shared(route: Tensor | None, layer: Tensor, products: Products) -> bool:
    """Whether every copy of a sample has the same route, so that pooling is one linear map for all."""
    return not products.by_difference or route is None or len(route) < len(layer)


def _of_each(route: Tensor, layer: Tensor) -> Tensor:
    """The route of every sample, of copies that share theirs too."""
    samples = layer.shape[0]  # len() would tie an exported program to this batch size
    return route if route.shape[0] == samples else route.repeat(samples // route.shape[0], 1, 1, 1)


def _gather(unpooled: Tensor, route: Tensor) -> Tensor:
    """The values at the positions that pooling chose, channels last."""
    route = _of_each(route, unpooled)
    values, positions = (maps.permute(0, 2, 3, 1).flatten(1, 2) for maps in (unpooled, route))
    return values.gather(1, positions).unflatten(1, route.shape[2:]).permute(0, 3, 1, 2)


class DenseInteraction(_Uniform, nn.Linear):
    """Dense interaction: ``drive(s) = W s + b``, the lower layer flattened (paper, Section 3)."""

    def shape(self, lower: torch.Size) -> torch.Size:
        return torch.Size([self.out_features])

    def prepare(self, lower: torch.Size) -> Matrix:
        """The products of the matrix, with the weight laid out for them once."""
        return Matrix(*self.tensors(), lower)

    def drive(self, lower: Tensor, route: Tensor | None = None, prepared: Matrix | None = None) -> Drive:
        return Drive((prepared or self.prepare(lower.shape)).up(lower))

    def feedback(
        self, upper: Tensor, route: Tensor | None, lower: torch.Size, prepared: Matrix | None = None
    ) -> Tensor:
        return (prepared or self.prepare(lower)).down(upper)

    def gradient(
        self, lower: Tensor, upper: Tensor, route: Tensor | None, prepared: Matrix | None = None
    ) -> tuple[Tensor | None, ...]:
        return (prepared or self.prepare(lower.shape)).gradient(lower, upper), upper.sum(0)


class EmptyInteraction(Interaction, nn.Identity):
    """Joins a layer to an output layer of no units, for a network without a read-out."""

    def shape(self, lower: torch.Size) -> torch.Size:
        return torch.Size([0])

    def drive(self, lower: Tensor, route: Tensor | None = None, prepared: Prepared | None = None) -> Drive:
        return Drive(lower.new_empty(lower.shape[0], 0))

    def feedback(
        self, upper: Tensor, route: Tensor | None, lower: torch.Size, prepared: Prepared | None = None
    ) -> Tensor:
        return upper.new_zeros(lower)

    def gradient(
        self, lower: Tensor, upper: Tensor, route: Tensor | None, prepared: Prepared | None = None
    ) -> tuple[Tensor | None, ...]:
        return ()

    def initialise(self, gain: float, bias_gain: float, generator: torch.Generator | None = None) -> None:
        pass
