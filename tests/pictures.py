"""Pictures for the tests of the data."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

from timm_ebl.data import ImageDataset
from timm_ebl.spec import DatasetSpec


def pixels(row: int, size: int, channels: int) -> np.ndarray:
    shape = (size, size) if channels == 1 else (size, size, channels)
    return np.random.default_rng(row).integers(0, 256, shape, dtype=np.uint8)


def encode(image: Image.Image) -> dict[str, bytes | None]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def images(count: int, size: int = 32, channels: int = 3, first: int = 0) -> list[dict]:
    return [encode(Image.fromarray(pixels(first + row, size, channels))) for row in range(count)]


def toy(count_per_class: int = 10, classes: int = 3) -> ImageDataset:
    """Images that carry their own row number."""
    count = count_per_class * classes
    content = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 3, 2, 2)
    names = tuple("abcdefghij"[:classes])
    return ImageDataset(content, torch.arange(count) % classes, names, "toy", DatasetSpec())
