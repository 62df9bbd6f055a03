"""From image files to 8-bit pixels of one size."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

__all__ = ["decode_images", "fit_image", "flatten"]

_DEEP = re.compile(r"(I|F)\b|(?!BGR)\w+;(12|16|32)")  # raw modes of more than 8 bits; BGR;16 has 5 or 6
_GREY = ("1", "L", "LA", "La")


def fit_image(image: Image.Image, size: int) -> Image.Image:
    """Bring an image to ``size`` by ``size`` pixels.

    An image that fits is centred on black, in an odd gap one pixel nearer to the top left; of any other the largest
    square in the centre is resized (bilinear).

    Args:
        image: Image of any size.
        size: Height and width of the result in pixels.

    Returns:
        The fitted image, in the mode of ``image``.
    """
    if max(image.size) > size:
        return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    left, top = (size - image.width) // 2, (size - image.height) // 2
    return image if image.size == (size, size) else image.crop((-left, -top, size - left, size - top))


def flatten(image: Image.Image) -> Image.Image:
    """Lay an image on white if what is drawn is dark, else on black.

    Dark is a mean luminance, weighted by opacity, below half of the full one.

    Args:
        image: Image of mode ``LA`` or ``RGBA``.

    Returns:
        The image in mode ``L`` or ``RGB``.

    Raises:
        ValueError: Nothing is drawn: every pixel is wholly transparent.
    """
    opacity, drawn = image.getchannel("A"), image.convert(image.mode[:-1])
    if opacity.getextrema() == (255, 255):
        return drawn
    weight = np.asarray(opacity, dtype=np.float64)
    if not weight.any():
        raise ValueError("is wholly transparent")
    dark = np.average(np.asarray(drawn.convert("L")), weights=weight) < 127.5
    ground = Image.new(drawn.mode, image.size, "white" if dark else "black")
    ground.paste(drawn, mask=opacity)
    return ground


def _open(file: bytes | str | None) -> Image.Image:
    """The picture as it is to be seen, grey or in colour."""
    if file is None:
        raise ValueError("is missing")
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            raw = [args if isinstance(args, str) else (args or [""])[0] for *_, args in image.tile]
            deep = any(_DEEP.match(str(mode)) for mode in (image.mode, *raw))
            image.load()
            image = ImageOps.exif_transpose(image)
            mode, clear = "L" if image.mode in _GREY else "RGB", image.has_transparency_data
            if not deep:
                image = image.convert("RGBA").convert(mode + "A") if clear else image.convert(mode)
    except Exception as error:  # a damaged file makes Pillow raise errors of many types
        raise ValueError(f"cannot be decoded ({type(error).__name__})") from error
    if deep:
        raise ValueError("has more than 8 bits per channel: convert it to 8 bits")
    return flatten(image) if clear else image


def decode_images(files: Iterable[bytes | str | None], count: int, size: int, channels: str | None = None) -> Tensor:
    """Decode images one after the other into one tensor, each brought to one size by `fit_image`.

    They are turned as their EXIF orientation says. Transparent pixels lie on white or on black (`flatten`).

    Args:
        files: Contents of the image files, or their paths.
        count: Number of files.
        size: Height and width of the result in pixels.
        channels: One of `timm_ebl.data.catalogue.CHANNELS`; by default grey if all images are, else colour.

    Returns:
        uint8 tensor of shape ``(count, C, size, size)``: one channel or RGB.

    Raises:
        ValueError: An image is damaged, missing, wholly transparent, or has more than 8 bits per channel; the message
            gives its row and file.
    """
    pixels = np.zeros((count, 3 if channels == "colour" else 1, size, size), dtype=np.uint8)
    for row, file in enumerate(files):
        try:
            image = _open(file)
        except ValueError as error:
            name = f"row {row} ({file})" if isinstance(file, str) else f"row {row}"
            raise ValueError(f"the image in {name} {error}.") from error
        if channels is None and image.mode == "RGB" and pixels.shape[1] == 1:
            pixels = np.repeat(pixels, 3, axis=1)
        image = fit_image(image.convert("L" if pixels.shape[1] == 1 else "RGB"), size)
        pixels[row] = np.asarray(image).reshape(size, size, -1).transpose(2, 0, 1)
    return torch.from_numpy(pixels)
