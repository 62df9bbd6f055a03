"""Pictures for the tests of the data."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image

from timm_ebl.data.catalogue import DatasetSpec
from timm_ebl.data.dataset import ImageDataset


def pixels(row: int, size: int, channels: int) -> np.ndarray:
    shape = (size, size) if channels == 1 else (size, size, channels)
    return np.random.default_rng(row).integers(0, 256, shape, dtype=np.uint8)


def encode(image: Image.Image) -> dict[str, bytes | None]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def images(count: int, size: int = 32, channels: int = 3, first: int = 0) -> list[dict]:
    return [encode(Image.fromarray(pixels(first + row, size, channels))) for row in range(count)]


def encode_deep(samples: np.ndarray) -> bytes:
    """A PNG file of 16 bits per sample, of an array ``(H, W, C)``: grey, grey and alpha, RGB or RGBA."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, channels = samples.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in samples)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def write_split(folder: Path, columns: dict[str, list], features: dict, split: str = "train") -> Path:
    """Write one split as a Parquet file, the way it lies on the Hub."""
    folder.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def write_plain(folder: Path, labels: list[int], split: str = "train", **columns: list[int]) -> Path:
    """Write grey images with integer columns in place of class labels."""
    table = {"image": images(len(labels), 8, 1), "label": labels, **columns}
    features = {name: datasets.Image() if name == "image" else datasets.Value("int64") for name in table}
    return write_split(folder, table, features, split)


def write_classes(folder: Path, counts: Mapping[str, int], first: int = 0) -> Path:
    """Write images as files into folders; no two are the same."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for row in range(count):
            Image.fromarray(pixels(first, 8, 3)).save(folder / name / f"{row}.png")
            first += 1
    return folder


def toy(count_per_class: int = 10, classes: int = 3) -> ImageDataset:
    """Images that carry their own row number."""
    count = count_per_class * classes
    content = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 3, 2, 2)
    names = tuple("abcdefghij"[:classes])
    return ImageDataset(content, torch.arange(count) % classes, names, "toy", DatasetSpec())
