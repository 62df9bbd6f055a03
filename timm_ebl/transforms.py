"""From image files to the input of a network: decoding, then augmentation and normalisation of whole batches."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

__all__ = ["BatchTransform", "decode_images", "fit_image"]


def fit_image(image: Image.Image, size: int) -> Image.Image:
    """Bring an image to ``size`` by ``size`` pixels.

    An image that fits is centred on black, in an odd gap one pixel nearer to the top left; any other is resized
    (bilinear) so that its shorter side is ``size``, and the centre is cut out.

    Args:
        image: Image of any size.
        size: Height and width of the result in pixels.

    Returns:
        The fitted image, in the mode of ``image``.
    """
    if max(image.size) > size:
        scale = size / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    left, top = (size - image.width) // 2, (size - image.height) // 2
    return image if image.size == (size, size) else image.crop((-left, -top, size - left, size - top))


def decode_images(files: Iterable[bytes | str | None], count: int, size: int) -> Tensor:
    """Decode images one after the other into one tensor, each brought to one size by `fit_image`.

    Args:
        files: Contents of the image files, or their paths.
        count: Number of files.
        size: Height and width of the result in pixels.

    Returns:
        uint8 tensor of shape ``(count, C, size, size)``: one channel if all images are grey, else RGB.

    Raises:
        ValueError: An image is damaged, missing, or has more than 8 bits per channel; the message gives its row and
            file.
    """
    pixels = np.zeros((count, 1, size, size), dtype=np.uint8)
    for row, file in enumerate(files):
        name = f"row {row} ({file})" if isinstance(file, str) else f"row {row}"
        try:
            with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
                image.load()
        except Exception as error:  # a damaged file makes Pillow raise errors of many types
            raise ValueError(f"the image in {name} cannot be decoded ({type(error).__name__}).") from error
        if image.mode[0] in "IF":
            raise ValueError(f"the image in {name} has more than 8 bits per channel.")
        if image.mode not in ("1", "L") and pixels.shape[1] == 1:
            pixels = np.repeat(pixels, 3, axis=1)
        image = fit_image(image.convert("L" if pixels.shape[1] == 1 else "RGB"), size)
        pixels[row] = np.asarray(image).reshape(size, size, -1).transpose(2, 0, 1)
    return torch.from_numpy(pixels)


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
