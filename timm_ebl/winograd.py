"""Convolutions with fewer multiplications (Winograd, 1980; Lavin and Gray, 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Winograd", "is_served"]

_KERNEL = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
_OUTPUT = ((1, 1, 1, 0), (0, 1, -1, -1))
_UPRIGHT, _TURNED = (0, 1, 2, 3), (3, 1, 2, 0)
"""Order of the four terms of a kernel along one direction, and of one that is turned about."""

_COMMON = 5
"""The term that each of a tile's four outputs contains once."""

_WIDE = 150
"""Harmonic mean of both layers' channels from which the sixteen products outweigh the additions around them."""

_TILES = 512
"""Most tiles at once: what lies between the steps is sixteen times as large, and should stay in a cache."""


def is_served(weight: Tensor, padding: list[int], image: list[int]) -> bool:
    """Whether `Winograd` computes a convolution of this weight over images of this height and width, and faster."""
    upper, lower, *kernel = weight.shape
    fits = kernel == [3, 3] and padding == [1, 1] and not any(side % 2 for side in image)
    return fits and 2 * upper * lower >= _WIDE * (upper + lower) and has_fast_products()


@cache
def has_fast_products() -> bool:
    """Whether matrix products are as fast as convolutions here: MKL makes them, and is half as fast on AMD's CPUs."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.backends.mkl.is_available() and "AMD" not in capabilities.get("cpu_name", "")


class Winograd:
    """A convolution with a kernel of 3x3 and padding 1, and its transpose, without autograd.

    Every tile of 2x2 outputs is ``A^T ((G g G^T) * (B^T d B)) A`` for the 4x4 inputs ``d`` below it and the kernel
    ``g``: sixteen multiplications in place of thirty-six for each pair of channels. They make up sixteen matrix
    products over all tiles and channels; the rest is additions. The result is that of the convolution to rounding.

    Args:
        weight: The kernels, ``(C', C, 3, 3)``.
    """

    def __init__(self, weight: Tensor) -> None:
        kernel, output = (weight.new_tensor(matrix) for matrix in (_KERNEL, _OUTPUT))
        self.kernel = torch.kron(kernel, kernel)
        self.output = torch.kron(output, output)
        self.turned_output = torch.kron(output[:, _TURNED], output[:, _TURNED])
        flat = weight.detach().flatten(2).flatten(0, 1)
        self.kernels = torch.mm(self.kernel, flat.t()).view(16, *weight.shape[:2])

    def up(self, lower: Tensor, bias: Tensor | None = None) -> Tensor:
        """The convolution of ``(B, C, H, W)`` with its bias, ``(B, C', H, W)``, channels last."""
        return self._apply(lower, self.kernels.transpose(1, 2), self.output, _UPRIGHT, bias)

    def down(self, upper: Tensor) -> Tensor:
        """The transposed convolution of ``(B, C', H, W)``, ``(B, C, H, W)``, channels last.

        It is the convolution with the kernels turned about, whose terms are the same in another order.
        """
        return self._apply(upper, self.kernels, self.turned_output, _TURNED, None)

    def gradient(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Gradient of ``sum_b <upper_b, up(lower_b)>`` in the weight, ``(C', C, 3, 3)``."""
        total = torch.zeros_like(self.kernels)
        images = _images_at_once(lower)
        for below, above in zip(*(x.permute(0, 2, 3, 1).split(images) for x in (lower, upper)), strict=True):
            terms = torch.mm(self.output.t(), _corners(above).reshape(4, -1)).view(16, -1, above.shape[3])
            total.baddbmm_(terms.transpose(1, 2), _terms(below, _UPRIGHT))
        return torch.mm(total.flatten(1).t(), self.kernel).view(*total.shape[1:], 3, 3)

    def _apply(self, x: Tensor, kernels: Tensor, output: Tensor, order: Sequence[int], bias: Tensor | None) -> Tensor:
        result = x.new_empty((len(x), *x.shape[2:], kernels.shape[2]))
        images = _images_at_once(x)
        for part, into in zip(x.permute(0, 2, 3, 1).split(images), result.split(images), strict=True):
            products = torch.bmm(_terms(part, order), kernels)
            if bias is not None:
                products[_COMMON] += bias
            corners = _corners(into)
            corners.copy_(torch.mm(output, products.view(16, -1)).view(corners.shape))
        return result.permute(0, 3, 1, 2)


def _images_at_once(x: Tensor) -> int:
    return max(1, 4 * _TILES // x.shape[2:].numel())


def _corners(x: Tensor) -> Tensor:
    """A view of images ``(B, H, W, C)`` by the place in a tile of 2x2, ``(2, 2, B, H / 2, W / 2, C)``."""
    return x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(2, 4, 0, 1, 3, 5)


def _terms(x: Tensor, order: Sequence[int]) -> Tensor:
    """``B^T d B`` of every tile of images ``(B, H, W, C)``, ``(16, tiles, C)``, with the terms put in an order."""
    batch, height, width, channels = x.shape
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))
    columns = x.new_empty((4, batch, height + 2, width // 2, channels))
    _combine([padded[:, :, i : i + width - 1 : 2] for i in range(4)], columns, order)
    both = x.new_empty((4, 4, batch, height // 2, width // 2, channels))
    _combine([columns[:, :, i : i + height - 1 : 2] for i in range(4)], both, order)
    return both.view(16, -1, channels)


def _combine(d: list[Tensor], out: Tensor, order: Sequence[int]) -> None:
    """``B^T d`` along one direction."""
    torch.sub(d[0], d[2], out=out[order[0]])
    torch.add(d[1], d[2], out=out[order[1]])
    torch.sub(d[2], d[1], out=out[order[2]])
    torch.sub(d[1], d[3], out=out[order[3]])
