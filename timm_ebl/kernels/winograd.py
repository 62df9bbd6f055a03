"""Convolutions with fewer multiplications (Winograd, 1980; Lavin and Gray, 2016)."""

from __future__ import annotations

from functools import cache
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from .plain import Plain

__all__ = ["Winograd", "is_served"]

_POINTS = (0.0, 0.625, -0.625, 1.5, -1.5)
"""Where the polynomials are evaluated, besides infinity. Of those tried, these have the least rounding error."""

_SIDE = 4
"""Side of a tile of outputs."""

_WIDE = 170
"""Least harmonic mean of both layers' channels for which the saved products outweigh the extra sums."""

_FEWEST_TILES = 32
"""Fewest tiles of a batch: with fewer, reading the kernels takes longer than multiplying by them."""

_TILES = 256
"""Most tiles at once: the results between the steps should fit into a cache of the CPU."""


def is_served(weight: Tensor, stride: list[int], padding: list[int], lower: list[int]) -> bool:
    """Whether `Winograd` computes a convolution of this weight over a batch ``(B, C, H, W)``, and faster."""
    above, below, *kernel = weight.shape
    batch, _, *image = lower
    fits = kernel == [3, 3] and stride == padding == [1, 1] and not any(side % _SIDE for side in image)
    fills = batch * prod(image) >= _FEWEST_TILES * _SIDE**2
    return fits and fills and 2 * above * below >= _WIDE * (above + below) and torch.backends.mkl.is_available()


class Winograd(Plain):
    """A convolution with a kernel of 3x3 and padding 1, and its transpose, without autograd.

    Every tile of 4x4 outputs is ``A^T ((G g G^T) * (B^T d B)) A`` for the 6x6 inputs ``d`` below it and the kernel
    ``g``: 36 multiplications in place of 144 for each pair of channels. They make up 36 matrix products over all tiles
    and channels; the transforms are matrix products as well, of each tile as a vector. In float32 the result is off by
    about 1e-6 of its norm, where oneDNN's is by 2e-7.

    Args:
        weight: The kernels, ``(C', C, 3, 3)``.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight, [1, 1], [1, 1], [0, 0])
        self.change, self.input, self.output = (m.to(weight) for m in _transforms())
        self.turned_input, self.turned_output = self.input.flip(1), self.output.flip(0)
        flat = weight.detach().flatten(2).flatten(0, 1)
        self.kernels = torch.mm(self.change, flat.t()).view(-1, *weight.shape[:2])

    def up(self, lower: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution of ``(B, C, H, W)`` with its bias, ``(B, C', H, W)``, channels last."""
        if is_dynamo_compiling():  # which makes its own choice
            return super().up(lower, bias)
        return _apply(lower, self.input, self.kernels.transpose(1, 2), self.output, bias)

    def down(self, upper: Tensor) -> Tensor:
        """The transposed convolution of ``(B, C', H, W)``, ``(B, C, H, W)``, channels last.

        It is the convolution with kernels rotated by 180 degrees, which is the same as rotating the tiles instead.
        """
        if is_dynamo_compiling():
            return super().down(upper)
        return _apply(upper, self.turned_input, self.kernels, self.turned_output, None)

    def gradient(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Gradient of ``sum_b <upper_b, up(lower_b)>`` in the weight, ``(C', C, 3, 3)``."""
        total = torch.zeros_like(self.kernels)
        images = _images_at_once(lower)
        for below, above in zip(*(x.permute(0, 2, 3, 1).split(images) for x in (lower, upper)), strict=True):
            outputs = torch.mm(self.output.t(), _tiles(above).reshape(_SIDE**2, -1))
            terms = outputs.view(len(total), -1, above.shape[3])
            total.baddbmm_(terms.transpose(1, 2), _terms(below, self.input))
        found = torch.mm(self.change.t(), total.flatten(1)).view(3, 3, *total.shape[1:])
        return found.permute(2, 0, 1, 3).contiguous().permute(0, 3, 1, 2)


@cache
def _transforms() -> tuple[Tensor, Tensor, Tensor]:
    """``G``, ``B^T`` and ``A^T`` for tiles as vectors, ``(36, 9)``, ``(36, 36)`` and ``(16, 36)``, float64.

    With ``p(x) = prod_i (x - a_i)`` over the points, a row of ``B^T`` has the coefficients of ``p(x) / (x - a_i)``, by
    its value at ``a_i``, and the last one those of ``p``; ``G`` and ``A`` have the powers of ``a_i``, the highest for
    infinity.
    """
    points = torch.tensor(_POINTS, dtype=torch.float64)
    last = torch.eye(len(points) + 1, dtype=torch.float64)[-1:]
    kernel, output = (torch.cat([points[:, None] ** torch.arange(powers), last[:, -powers:]]) for powers in (3, _SIDE))
    rows = []
    for i in range(len(points)):
        others = torch.cat([points[:i], points[i + 1 :]])
        rows.append(_polynomial(others) / (points[i] - others).prod())
    inputs = torch.stack([*(F.pad(row, (0, 1)) for row in rows), _polynomial(points)])
    return torch.kron(kernel, kernel), torch.kron(inputs, inputs), torch.kron(output.t(), output.t())


def _polynomial(roots: Tensor) -> Tensor:
    """The coefficients of ``prod_i (x - r_i)``, the constant first."""
    found = roots.new_ones(1)
    for root in roots:
        found = F.pad(found, (1, 0)) - root * F.pad(found, (0, 1))
    return found


def _apply(x: Tensor, inputs: Tensor, kernels: Tensor, output: Tensor, bias: Tensor | None) -> Tensor:
    result = x.new_empty((len(x), *x.shape[2:], kernels.shape[2]))
    images = _images_at_once(x)
    for part, into in zip(x.permute(0, 2, 3, 1).split(images), result.split(images), strict=True):
        products = torch.bmm(_terms(part, inputs), kernels)
        tiles = _tiles(into)
        found = torch.mm(output, products.flatten(1)).view(tiles.shape)
        tiles.copy_(found) if bias is None else torch.add(found, bias, out=tiles)
    return result.permute(0, 3, 1, 2)


def _images_at_once(x: Tensor) -> int:
    return max(1, _TILES * _SIDE**2 // x.shape[2:].numel())


def _tiles(x: Tensor) -> Tensor:
    """A view of images ``(B, H, W, C)`` by the place in a tile of 4x4, ``(4, 4, B, H / 4, W / 4, C)``."""
    batch, height, width, channels = x.shape
    tiles = x.view(batch, height // _SIDE, _SIDE, width // _SIDE, _SIDE, channels)
    return tiles.permute(2, 4, 0, 1, 3, 5)


def _terms(x: Tensor, inputs: Tensor) -> Tensor:
    """``B^T d B`` of every tile of images ``(B, H, W, C)``, ``(36, tiles, C)``."""
    wide = _SIDE + 2
    windows = F.pad(x, (0, 0, 1, 1, 1, 1)).unfold(1, wide, _SIDE).unfold(2, wide, _SIDE)
    flat = windows.permute(4, 5, 0, 1, 2, 3).reshape(wide**2, -1)
    return torch.mm(inputs, flat).view(wide**2, -1, x.shape[3])
