"""Pooling after a convolution, and its adjoint."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from . import native
from .pair import wide

__all__ = ["AveragePooling", "Images", "MaxPooling", "NoPooling", "Pooling"]


class Images:
    """Where values are unpooled to.

    Args:
        size: ``(H, W)`` of an image.
        kept: Whether each thread reuses one tensor for every call, so that it stays in a CPU's cache; without autograd
            only.
    """

    def __init__(self, size: tuple[int, int], kept: bool) -> None:
        self.size, self.kept = size, kept
        self._of_thread = threading.local()

    def room(self, upper: Tensor) -> Tensor | None:
        """A tensor of images for some values ``(B, C, ..)``, to be overwritten; ``None`` where none is kept."""
        if not self.kept or is_dynamo_compiling():
            return None
        room = getattr(self._of_thread, "room", None)
        if room is None or room.shape[:2] != upper.shape[:2] or room.dtype != upper.dtype:
            size = (*upper.shape[:2], *self.size)
            with torch.inference_mode(False):  # to be written to outside it as well
                self._of_thread.room = room = torch.empty(size, dtype=upper.dtype, memory_format=torch.channels_last)
        return room


class Pooling(ABC):
    """A map of images ``(B, C, H, W)`` to ``(B, C, H', W')``, linear once its route is held.

    Attributes:
        chooses: Whether it has a route.
    """

    chooses = False

    @abstractmethod
    def pool(self, unpooled: Tensor) -> tuple[Tensor, Tensor | None]:
        """The pooled images, and the route that they take."""

    @abstractmethod
    def hold(self, unpooled: Tensor, route: Tensor | None) -> Tensor:
        """The pooled images along a route; sums are made in at least 32 bits."""

    @abstractmethod
    def unpool(self, upper: Tensor, route: Tensor | None, images: Images) -> Tensor:
        """The adjoint of `hold`; where images are kept, it lasts until the next call."""


class NoPooling(Pooling):
    """The images as they are."""

    def pool(self, unpooled: Tensor) -> tuple[Tensor, None]:
        return unpooled, None

    def hold(self, unpooled: Tensor, route: Tensor | None) -> Tensor:
        return unpooled

    def unpool(self, upper: Tensor, route: Tensor | None, images: Images) -> Tensor:
        return upper


@dataclass(frozen=True)
class MaxPooling(Pooling):
    """The largest value of each window; its route has the position of each in the image.

    Args:
        window: Side and stride of the window.
    """

    window: int
    chooses = True

    def pool(self, unpooled: Tensor) -> tuple[Tensor, Tensor]:
        return native.max_pool(unpooled, self.window)

    def hold(self, unpooled: Tensor, route: Tensor) -> Tensor:
        values, positions = unpooled.permute(0, 2, 3, 1).flatten(1, 2), route.permute(0, 2, 3, 1)
        samples, height, width, channels = positions.shape
        return values.gather(1, positions.flatten(1, 2)).view(samples, height, width, channels).permute(0, 3, 1, 2)

    def unpool(self, upper: Tensor, route: Tensor, images: Images) -> Tensor:
        return native.unpool_max(upper, route, self.window, images.size, images.room(upper))


@dataclass(frozen=True)
class AveragePooling(Pooling):
    """The mean of each window.

    Args:
        window: Side and stride of the window.
    """

    window: int

    def pool(self, unpooled: Tensor) -> tuple[Tensor, None]:
        return F.avg_pool2d(unpooled, self.window), None

    def hold(self, unpooled: Tensor, route: Tensor | None) -> Tensor:
        return F.avg_pool2d(wide(unpooled), self.window)

    def unpool(self, upper: Tensor, route: Tensor | None, images: Images) -> Tensor:
        return native.unpool_average(upper, self.window, images.size, images.room(upper))
