"""The products of a convolution with states, as fast and as exact as they go."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .autocast import has_autocast
from .convolution import Direct, Packed
from .prepared import Prepared
from .winograd import Winograd, is_served

__all__ = ["Map", "Products", "apart", "copies_of"]

Map = Callable[[Tensor], Tensor]


def _same(x: Tensor) -> Tensor:
    return x


class Products(Prepared):
    """A convolution, its transpose and its gradient, for many calls with the same weight.

    On a CPU without autograd the weight is packed as oneDNN wants it, which spares it a reordering in every call, or
    prepared for Winograd's algorithm (`timm_ebl.kernels.winograd`) where layers are wide; elsewhere it is made
    channels-last. Under autocast the products are computed in its type.

    A learning rule contrasts two states of the same input, and rounding leaves few digits of a difference that is small
    beside the states. The products of two such copies are therefore those of their mean and of their difference: a
    rounded mean is the same for both, and the difference keeps its digits, in 16 bits too. So do the products of a
    change of state (`Prepared.for_changes`).

    Args:
        weight: The kernels ``(C', C, h, w)`` of a convolution of stride 1, in one group.
        bias: Its bias ``(C',)``.
        padding: Zeros around the image, in each direction.
        lower: Shape ``(B, C, H, W)`` of its input; other batches are served as well.

    Attributes:
        dtype: Type in which the products are computed.
        packs: Whether the weight is packed or prepared for Winograd's algorithm.
        engine: What computes the products of single states in that type.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, padding: list[int], lower: torch.Size) -> None:
        self.padding, device = padding, weight.device.type
        self.dtype = torch.get_autocast_dtype(device) if has_autocast(device) else weight.dtype
        self.result = weight.dtype
        self.kernel, self.bias = weight.to(self.dtype), None if bias is None else bias.to(self.dtype)
        self.packs = (
            device == "cpu"
            and torch.backends.mkldnn.is_available()
            and torch._C._get_mkldnn_enabled()
            and (self.dtype == torch.float32 or (self.dtype == torch.bfloat16 and _has_bfloat16()))
            and not (torch.is_grad_enabled() or torch.jit.is_tracing())
        )
        self._scratch: tuple[tuple[torch.Size, torch.dtype, bool], Tensor] | None = None
        self.engine: Direct | Winograd
        if not self.packs:
            self.engine = Direct(self.kernel.contiguous(memory_format=torch.channels_last), self.padding)
        elif self.dtype == torch.float32 and is_served(self.kernel, self.padding, lower):
            self.engine = Winograd(self.kernel)
        else:
            self.engine = Packed(self.kernel, self.padding, lower)

    @property
    def by_difference(self) -> bool:
        """Whether there are two copies, which are taken by their mean and their difference, in at least 32 bits."""
        return self.copies == 2

    @property
    def of_single_states(self) -> bool:
        """Whether states are multiplied as they are, neither changes nor by mean and difference."""
        return not (self.of_changes or self.by_difference)

    @property
    def is_rough(self) -> bool:
        """Whether the products are rounded to 16 bits."""
        return self.dtype in (torch.float16, torch.bfloat16)

    def up(self, lower: Tensor, pool: Map = _same) -> Tensor:
        """The convolution of ``(B, C, H, W)`` with its bias, then pooled.

        Args:
            lower: What to convolve.
            pool: A linear map, the same for all copies, which spares mean and difference what it leaves out.
        """
        engine = self._engine()
        if self.of_single_states:
            return pool(engine.up(self._narrow(lower), self.bias))
        return self._by_parts(lambda x, bias=None: pool(engine.up(x, bias)), lower, self.bias)

    def down(self, upper: Tensor, unpool: Map = _same) -> Tensor:
        """The transposed convolution of ``(B, C', H, W)``, which a linear map makes from what is given."""
        engine = self._engine()
        if self.of_single_states:
            return engine.down(unpool(self._narrow(upper)))
        return self._by_parts(lambda x: engine.down(unpool(x)), upper)

    def gradient(self, lower: Tensor, upper: Tensor, unpool: Map = _same) -> Tensor:
        """Gradient of ``sum_b <unpool(upper_b), up(lower_b)>`` in the weight, of the weight's type and layout."""
        like = torch.empty_like(self.kernel, dtype=self.result)
        return like.copy_(self._gradient(lower, upper, unpool))

    def _gradient(self, lower: Tensor, upper: Tensor, unpool: Map) -> Tensor:
        if not self.by_difference:
            return self._scaled_gradient(lower, upper, unpool)
        # u1 l1 + u2 l2 = (u1 + u2) (l1 + l2) / 2 + (u2 - u1) (l2 - l1) / 2
        (one, two), (below, above) = copies_of(lower), copies_of(upper)
        total = self._scaled_gradient(torch.lerp(one, two, 0.5), below + above, unpool)
        return total + self._scaled_gradient(two - one, above - below, unpool) / 2

    def scratch(self, size: torch.Size, dtype: torch.dtype) -> Tensor | None:
        """Room for images whose content the next call may overwrite, channels last; ``None`` where it would not help.

        A tensor that every sweep writes again stays in the cache of a CPU.
        """
        if not self.packs or torch.compiler.is_compiling():
            return None
        kind = (size, dtype, torch.is_inference_mode_enabled())
        if self._scratch is None or self._scratch[0] != kind:
            self._scratch = kind, torch.empty(size, dtype=dtype, memory_format=torch.channels_last)
        return self._scratch[1]

    def _engine(self) -> Direct | Winograd:
        """The engine; of a packed weight a compiler can make nothing."""
        return Direct(self.kernel, self.padding) if self.packs and torch.compiler.is_compiling() else self.engine

    def _by_parts(self, product: Callable[..., Tensor], x: Tensor, *bias: Tensor | None) -> Tensor:
        """The product of a change, or of two copies."""
        if self.of_changes:
            return self._of_change(product, x)
        first, second = copies_of(x)
        mean = _wide(product(self._narrow(torch.lerp(first, second, 0.5)), *bias))
        difference = self._of_change(product, second - first)
        return apart(mean, difference)

    def _of_change(self, product: Map, change: Tensor) -> Tensor:
        change, scale = self._scaled(change)
        found = _wide(product(change))
        return found if scale is None else found.mul_(scale)

    def _narrow(self, x: Tensor) -> Tensor:
        if x.dtype == self.dtype and x.is_contiguous(memory_format=torch.channels_last):
            return x
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

    def _scaled_gradient(self, lower: Tensor, upper: Tensor, unpool: Map) -> Tensor:
        (lower, a), (upper, b) = self._scaled(lower, 0.125), self._scaled(upper)
        gradient = _wide(self._engine().gradient(lower, unpool(upper)))
        return gradient if a is None else gradient * (a * b)


def copies_of(x: Tensor) -> tuple[Tensor, Tensor]:
    """The two copies that a batch holds, in at least 32 bits."""
    first, second = _wide(x).chunk(2)
    return first, second


def apart(mean: Tensor, difference: Tensor) -> Tensor:
    """Two copies, of this mean and this difference, as one batch, images channels last."""
    count, *shape = mean.shape
    layout = torch.channels_last if len(shape) == 3 else torch.contiguous_format
    both = torch.empty((2 * count, *shape), dtype=difference.dtype, device=mean.device, memory_format=layout)
    torch.sub(mean, difference, alpha=0.5, out=both[:count])
    torch.add(mean, difference, alpha=0.5, out=both[count:])
    return both


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _has_bfloat16() -> bool:
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()
