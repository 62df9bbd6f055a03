"""From 8-bit images to the input of a network: augmentation and normalisation of whole batches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["BatchTransform"]


@dataclass(frozen=True)
class BatchTransform:
    """Random crop, random horizontal flip and normalisation of a batch of 8-bit images.

    Attributes:
        mean: Mean of every channel, in units of the full intensity 255.
        std: Standard deviation of every channel, in the same units; positive.
        padding: Width in pixels of the border, made by repeating the edge, from which a crop of the original size is
            taken; 0 leaves the images in place.
        flip: Whether half of the images, chosen at random, are mirrored left to right.

    Raises:
        ValueError: ``mean`` and ``std`` differ in length, a deviation is not positive, or the padding is negative.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        """Check the settings."""
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} channels but std has {len(self.std)}")
        if min(self.std, default=0.0) <= 0:
            raise ValueError(f"every channel needs a positive standard deviation, got std={self.std}")
        if self.padding < 0:
            raise ValueError(f"padding must not be negative, got {self.padding}")

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw the crops and flips of some images.

        The generator supplies ``(2, count)`` vertical and horizontal offsets of the crop, if ``padding > 0``, and then
        ``count`` coin tosses, if ``flip``.

        Args:
            count: Number of images.
            generator: The source of randomness.

        Returns:
            int64 tensor of shape ``(3, count)``: vertical and horizontal offset in pixels, in ``-padding .. padding``,
            and 1 for an image to mirror.
        """
        draws = torch.zeros(3, count, dtype=torch.int64, device=generator.device)
        if self.padding:
            span = 2 * self.padding + 1
            draws[:2] = torch.randint(span, (2, count), generator=generator, device=generator.device) - self.padding
        if self.flip:
            draws[2] = torch.randint(2, (count,), generator=generator, device=generator.device)
        return draws

    def train(self, images: Tensor, draws: Tensor) -> Tensor:
        """Augment and normalise a batch: every image is cropped first and mirrored afterwards.

        Args:
            images: 8-bit images of shape ``(B, C, H, W)``.
            draws: Crop and flip of each image, ``(3, B)``, from `draw`.

        Returns:
            Normalised images of type float32 and of the same shape and device.

        Raises:
            ValueError: The images are not 8-bit, or their channels do not match ``mean``.
        """
        batch, channels, height, width = images.shape
        vertical, horizontal, mirrored = draws.to(images.device)[..., None]
        columns = torch.arange(width, device=images.device).expand(batch, -1)
        columns = torch.where(mirrored.bool(), columns.flip(1), columns)
        rows = (torch.arange(height, device=images.device) + vertical).clamp(0, height - 1)
        columns = (columns + horizontal).clamp(0, width - 1)
        pixels = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)[:, None].expand(-1, channels, -1)
        return self.eval(images.flatten(2).gather(2, pixels).view_as(images))

    def eval(self, images: Tensor) -> Tensor:
        """Normalise a batch: ``(images / 255 - mean) / std``.

        Args:
            images: 8-bit images of shape ``(B, C, H, W)``.

        Returns:
            Normalised images of type float32 and of the same shape and device.

        Raises:
            ValueError: The images are not 8-bit, or their channels do not match ``mean``.
        """
        if images.dtype != torch.uint8:
            raise ValueError(f"expected images of type uint8, got {images.dtype}")
        if images.shape[1] != len(self.mean):
            raise ValueError(f"the images have {images.shape[1]} channels but the statistics have {len(self.mean)}")
        mean, std = (torch.tensor(values, device=images.device).view(-1, 1, 1) for values in (self.mean, self.std))
        return images.float().div_(255).sub_(mean).div_(std)
