"""Batches of a run, the same whatever the number of processes: order and augmentation follow from seed and epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import ConfigError

if TYPE_CHECKING:
    from .dataset import ImageDataset

__all__ = ["EpochOrder", "Stream", "build_eval_loader", "build_train_loader", "epoch_generator", "require_step"]


class Stream(IntEnum):
    """What the random numbers of an epoch are for; each has its own."""

    ORDER = 0
    AUGMENTATION = 1
    SIGNS = 2


def epoch_generator(seed: int, epoch: int, stream: Stream) -> torch.Generator:
    """A generator on the CPU that depends on the seed, the epoch and the purpose alone."""
    (state,) = np.random.SeedSequence((seed, epoch, stream)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state))


class EpochOrder(Sampler[int]):
    """A new order of the training images for every epoch, cut to whole steps of the optimiser.

    Args:
        images: Number of images.
        step_images: Images in a step of the optimiser, of all processes together. What does not fill the last step of
            an epoch is left out of it.
        seed: Seed of the orders.
    """

    def __init__(self, images: int, step_images: int, seed: int) -> None:
        self.images, self.step_images, self.seed = images, step_images, seed
        self.epoch = 1

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is given from now on."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Rows of the data set, in this epoch's order."""
        order = torch.randperm(self.images, generator=epoch_generator(self.seed, self.epoch, Stream.ORDER))
        return iter(order[: len(self)].tolist())

    def __len__(self) -> int:
        """Number of images in an epoch."""
        return self.images // self.step_images * self.step_images


class Batches(Dataset):
    """A data set that gives whole batches ``(images, labels)``, each by one index operation."""

    def __init__(self, data: ImageDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        """Number of images."""
        return len(self.data)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """Images ``(B, C, H, W)`` and labels ``(B,)``."""
        return self.data.batch(indices)


class Numbered(Batches):
    """A data set whose batches also say which rows they are: ``(images, labels, rows)``."""

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """Images ``(B, C, H, W)``, labels ``(B,)`` and rows ``(B,)``."""
        return *super().__getitems__(indices), torch.as_tensor(indices, dtype=torch.int64)


def as_it_is(batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The batch, which needs no collating."""
    return batch


def build_train_loader(data: ImageDataset, batch_size: int, seed: int, accelerator: Accelerator) -> DataLoader:
    """A prepared loader of shuffled batches ``(images, labels, rows)``; ``set_epoch`` chooses the order.

    Args:
        data: The images.
        batch_size: Images in a batch, on each process.
        seed: Seed of the orders.
        accelerator: Deals the batches out to the processes, in turn.

    Raises:
        ConfigError: There are fewer images than one step of the optimiser takes.
    """
    step_images = batch_size * accelerator.num_processes * accelerator.gradient_accumulation_steps
    require_step(step_images, len(data))
    order = EpochOrder(len(data), step_images, seed)
    return _prepared(Numbered(data), batch_size, accelerator, sampler=order)


def require_step(step_images: int, images: int) -> None:
    """Refuse a step of the optimiser that takes more images than there are.

    Raises:
        ConfigError: It is so.
    """
    if step_images > images:
        raise ConfigError(
            f"A step takes {step_images} images (batch size x processes x accumulation), and there are {images} "
            "to train on: choose a smaller --batch-size."
        )


def build_eval_loader(data: ImageDataset, batch_size: int, accelerator: Accelerator) -> DataLoader:
    """A prepared loader of batches ``(images, labels)`` in the data's own order."""
    return _prepared(Batches(data), batch_size, accelerator)


def _prepared(data: Batches, batch_size: int, accelerator: Accelerator, **order: Sampler) -> DataLoader:
    """A prepared loader; from pinned memory a batch goes to a GPU without a wait for it."""
    pinned = accelerator.device.type == "cuda"
    generator = torch.Generator()
    loader = DataLoader(data, batch_size, collate_fn=as_it_is, pin_memory=pinned, generator=generator, **order)
    return accelerator.prepare(loader)
