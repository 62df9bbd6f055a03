"""From 8-bit images to the input of a network: augmentation and normalisation of whole batches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import RandAugment

__all__ = ["MOST_RANDAUGMENT", "BatchTransform"]

MOST_RANDAUGMENT = (20, 30)
"""Most operations of `torchvision.transforms.v2.RandAugment` on an image, and the largest magnitude that they have."""


@dataclass(frozen=True)
class BatchTransform:
    """Random crop, random horizontal flip, random operations and normalisation of a batch of 8-bit images.

    Attributes:
        mean: Mean of every channel, in units of the full intensity 255.
        std: Standard deviation of every channel, in the same units; positive.
        padding: Width in pixels of the border, made by repeating the edge, from which a crop of the original size is
            taken; 0 leaves the images in place.
        flip: Whether half of the images, chosen at random, are mirrored left to right.
        randaugment: Number and magnitude of the operations of RandAugment (arXiv 1909.13719), which are drawn for each
            image from torchvision's fourteen.
        cutout: Side in pixels of a square that is set to the mean in each image, its centre drawn from all pixels, so
            that a part of it may lie outside (Cutout, arXiv 1708.04552); 0 for none.

    Raises:
        ValueError: ``mean`` and ``std`` differ in length, a deviation is not positive, the padding or the square is
            negative, or ``randaugment`` is not two numbers between 0 and those of `MOST_RANDAUGMENT`.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: int = 0
    flip: bool = False
    randaugment: tuple[int, int] = (0, 0)
    cutout: int = 0

    def __post_init__(self) -> None:
        """Check the settings."""
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} channels but std has {len(self.std)}")
        if min(self.std, default=0.0) <= 0:
            raise ValueError(f"every channel needs a positive standard deviation, got std={self.std}")
        if self.padding < 0:
            raise ValueError(f"padding must not be negative, got {self.padding}")
        if self.cutout < 0:
            raise ValueError(f"cutout must not be negative, got {self.cutout}")
        bounds = zip(self.randaugment, MOST_RANDAUGMENT, strict=False)
        if len(self.randaugment) != 2 or not all(0 <= number <= most for number, most in bounds):
            raise ValueError(f"randaugment must lie between (0, 0) and {MOST_RANDAUGMENT}, got {self.randaugment}")

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw the crops, flips, operations and squares of some images.

        The generator supplies ``(2, count)`` vertical and horizontal offsets of the crop, if ``padding > 0``, then
        ``count`` coin tosses, if ``flip``, then ``count`` seeds, if there are operations, and then ``count`` numbers
        that say where the squares are, if ``cutout > 0``.

        Args:
            count: Number of images.
            generator: The source of randomness.

        Returns:
            int64 tensor of shape ``(5, count)``: vertical and horizontal offset in pixels, in ``-padding .. padding``,
            1 for an image to mirror, the seed of an image's operations, and the centre of its square, to be divided by
            the number of pixels: the remainder counts them row by row.
        """
        draws = torch.zeros(5, count, dtype=torch.int64, device=generator.device)
        if self.padding:
            span = 2 * self.padding + 1
            draws[:2] = torch.randint(span, (2, count), generator=generator, device=generator.device) - self.padding
        if self.flip:
            draws[2] = torch.randint(2, (count,), generator=generator, device=generator.device)
        for row, wanted in ((3, self.randaugment[0]), (4, self.cutout)):
            if wanted:
                draws[row] = torch.randint(2**63 - 1, (count,), generator=generator, device=generator.device)
        return draws

    def train(self, images: Tensor, draws: Tensor) -> Tensor:
        """Augment and normalise a batch: each is cropped, mirrored, goes through its operations, loses its square.

        An image becomes the same whatever else is in the batch.

        Args:
            images: 8-bit images of shape ``(B, C, H, W)``.
            draws: Crop, flip, seed and square of each image, ``(5, B)``, from `draw`.

        Returns:
            Normalised images of type float32 and of the same shape and device.

        Raises:
            ValueError: The images are not 8-bit, or their channels do not match ``mean``.
        """
        batch, channels, height, width = images.shape
        vertical, horizontal, mirrored = draws[:3].to(images.device)[..., None]
        columns = torch.arange(width, device=images.device).expand(batch, -1)
        columns = torch.where(mirrored.bool(), columns.flip(1), columns)
        rows = (torch.arange(height, device=images.device) + vertical).clamp(0, height - 1)
        columns = (columns + horizontal).clamp(0, width - 1)
        pixels = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)[:, None].expand(-1, channels, -1)
        augmented = images.flatten(2).gather(2, pixels).view_as(images)
        if self.randaugment[0]:
            operate = RandAugment(*self.randaugment)
            with torch.random.fork_rng(devices=()):  # it draws from the generator of the CPU alone
                for image, seed in zip(augmented, draws[3].tolist(), strict=True):
                    torch.default_generator.manual_seed(seed)
                    image.copy_(operate(image))
        normalised = self.eval(augmented)
        if self.cutout:
            centre = draws[4].to(images.device)[:, None] % (height * width)
            vertical, horizontal = (
                (torch.arange(size, device=images.device) - middle + self.cutout // 2) // self.cutout == 0
                for size, middle in ((height, centre // width), (width, centre % width))
            )
            normalised.masked_fill_((vertical[:, :, None] & horizontal[:, None])[:, None], 0)
        return normalised

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
        # Each number is written by the device: a copy of all of them would wait for it.
        mean, std = (
            torch.stack([torch.full((1, 1), value, device=images.device) for value in values])
            for values in (self.mean, self.std)
        )
        return images.float().div_(255).sub_(mean).div_(std)
