"""Batched augmentation against a per-image twin made of torchvision functions."""

from __future__ import annotations

import pytest
import torch
import torchvision.transforms.functional as TF
from torchvision.transforms.v2 import RandAugment

from timm_ebl.data.catalogue import DATASETS, spec_of
from timm_ebl.data.dataset import ImageDataset
from timm_ebl.data.transforms import BatchTransform
from timm_ebl.training.build import build_transform
from timm_ebl.training.config import TrainConfig

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def random_images(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def augment(transform: BatchTransform, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return transform.train(images, transform.draw(len(images), generator))


def twin(
    images: torch.Tensor,
    padding: int,
    flip: bool,
    randaugment: tuple[int, int],
    cutout: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """Crop, mirror, distort, normalise and cut one image after the other, with the documented order of draws."""
    batch, _, height, width = images.shape
    offsets = torch.zeros(2, batch, dtype=torch.int64)
    if padding:
        offsets = torch.randint(2 * padding + 1, (2, batch), generator=generator)
    tosses = torch.randint(2, (batch,), generator=generator) if flip else torch.zeros(batch)
    seeds = torch.randint(2**63 - 1, (batch,), generator=generator) if randaugment[0] else torch.zeros(batch)
    places = torch.randint(2**63 - 1, (batch,), generator=generator) if cutout else torch.zeros(batch)
    results = []
    for image, top, left, mirrored, seed, place in zip(
        images, *offsets.tolist(), tosses.tolist(), seeds.tolist(), places.tolist(), strict=True
    ):
        image = TF.crop(TF.pad(image, [padding], padding_mode="edge"), top, left, height, width)
        image = TF.hflip(image) if mirrored else image
        torch.manual_seed(int(seed))
        image = TF.normalize(RandAugment(*randaugment)(image) / 255, list(MEAN), list(STD))
        row, column = divmod(int(place) % (height * width), width)
        top, left = row - cutout // 2, column - cutout // 2
        image[:, max(top, 0) : max(top + cutout, 0), max(left, 0) : max(left + cutout, 0)] = 0
        results.append(image)
    return torch.stack(results)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("padding", [0, 2, 4])
@pytest.mark.parametrize("randaugment", [(0, 0), (3, 9)])
@pytest.mark.parametrize("cutout", [0, 1, 6, 13])
@pytest.mark.parametrize("shape", [(64, 3, 32, 32), (5, 3, 7, 12)])
def test_train_equals_the_per_image_twin(
    shape: tuple[int, ...], padding: int, flip: bool, randaugment: tuple[int, int], cutout: int
) -> None:
    images = random_images(*shape)
    transform = BatchTransform(MEAN, STD, padding, flip, randaugment, cutout)
    augmented = augment(transform, images, torch.Generator().manual_seed(7))
    expected = twin(images, padding, flip, randaugment, cutout, torch.Generator().manual_seed(7))
    assert augmented.dtype == torch.float32
    assert torch.equal(augmented, expected)


def test_eval_normalises_like_torchvision() -> None:
    images = random_images(4, 3, 8, 8)
    expected = torch.stack([TF.normalize(image / 255, list(MEAN), list(STD)) for image in images])
    assert torch.equal(BatchTransform(MEAN, STD, padding=4, flip=True).eval(images), expected)


def test_images_are_left_unchanged() -> None:
    images = random_images(4, 1, 8, 8)
    before = images.clone()
    transform = BatchTransform((0.5,), (0.25,), padding=2, flip=True)
    augment(transform, images, torch.Generator().manual_seed(0))
    transform.eval(images)
    assert torch.equal(images, before)


def test_every_offset_and_both_orientations_occur() -> None:
    image = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8)
    transform = BatchTransform((0.0,), (1.0,), padding=1, flip=True)
    augmented = augment(transform, image.expand(2000, -1, -1, -1), torch.Generator().manual_seed(0))
    variants, counts = augmented.unique(dim=0, return_counts=True)
    assert len(variants) == 3 * 3 * 2
    assert counts.min() > 2000 / 18 * 0.6


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_becomes_the_same_whatever_else_is_in_its_batch(channels: int) -> None:
    images = random_images(12, channels, 16, 16)
    transform = BatchTransform(MEAN[:channels], STD[:channels], padding=2, flip=True, randaugment=(2, 30), cutout=5)
    draws = transform.draw(len(images), torch.Generator().manual_seed(5))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(6))
    together = transform.train(images, draws)[order]
    apart = [transform.train(images[rows], draws[:, rows]) for rows in order.split(5)]
    assert torch.equal(together, torch.cat(apart))


def test_every_operation_of_randaugment_occurs_with_both_signs() -> None:
    image = (random_images(1, 3, 24, 24) // 2 + 40).expand(600, -1, -1, -1)
    transform = BatchTransform((0.0,) * 3, (1.0,) * 3, randaugment=(1, 15))
    variants = augment(transform, image, torch.Generator().manual_seed(0)).unique(dim=0)
    assert len(variants) == 14 + 9  # nine of the fourteen have a sign


def test_randomness_comes_from_the_generator_alone() -> None:
    images = random_images(16, 3, 8, 8)
    transform = BatchTransform(MEAN, STD, padding=4, flip=True, randaugment=(2, 9), cutout=3)
    state = torch.random.get_rng_state()
    generator = torch.Generator().manual_seed(3)
    first, second = augment(transform, images, generator), augment(transform, images, generator)
    assert torch.equal(first, augment(transform, images, torch.Generator().manual_seed(3)))
    assert not torch.equal(first, second)
    assert torch.equal(state, torch.random.get_rng_state())


def test_nothing_is_drawn_without_augmentation() -> None:
    images = random_images(4, 3, 8, 8)
    generator = torch.Generator().manual_seed(3)
    state = generator.get_state()
    transform = BatchTransform(MEAN, STD)
    assert torch.equal(augment(transform, images, generator), transform.eval(images))
    assert torch.equal(state, generator.get_state())


@pytest.mark.parametrize("name", [*DATASETS, "owner/set"])
def test_without_augmentation_a_training_batch_is_the_evaluation_batch(name: str) -> None:
    spec = spec_of(name)
    images = random_images(64, len(spec.mean or MEAN), 32, 32)
    data = ImageDataset(images, torch.arange(64) % 2, ("a", "b"), name, spec, "train")
    for aug in (True, False):
        transform = build_transform(TrainConfig(aug=aug), data)
        same = torch.equal(augment(transform, images, torch.Generator().manual_seed(0)), transform.eval(images))
        assert same is not aug


def test_an_empty_batch_stays_empty() -> None:
    transform = BatchTransform(MEAN, STD, padding=4, flip=True, randaugment=(2, 9), cutout=3)
    assert augment(transform, random_images(0, 3, 8, 8), torch.Generator()).shape == (0, 3, 8, 8)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_train_runs_on_the_device_of_the_images() -> None:
    images = random_images(8, 3, 32, 32).cuda()
    transform = BatchTransform(MEAN, STD, padding=4, flip=True, randaugment=(2, 9), cutout=3)
    augmented = augment(transform, images, torch.Generator("cuda").manual_seed(0))
    assert augmented.device == images.device
    assert augmented.shape == images.shape


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mean": (0.5,), "std": (0.5, 0.5)}, "1 channels but std has 2"),
        ({"mean": (0.5,), "std": (0.0,)}, "positive standard deviation"),
        ({"mean": (0.5,), "std": (0.5,), "padding": -1}, "padding must not be negative"),
        ({"mean": (0.5,), "std": (0.5,), "cutout": -1}, "cutout must not be negative"),
        ({"mean": (0.5,), "std": (0.5,), "randaugment": (-1, 9)}, "randaugment must lie"),
        ({"mean": (0.5,), "std": (0.5,), "randaugment": (2, 31)}, "randaugment must lie"),
        ({"mean": (0.5,), "std": (0.5,), "randaugment": (2,)}, "randaugment must lie"),
    ],
)
def test_wrong_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchTransform(**settings)


def test_wrong_images_are_refused() -> None:
    transform = BatchTransform((0.5,), (0.5,))
    with pytest.raises(ValueError, match="3 channels but the statistics have 1"):
        transform.eval(random_images(2, 3, 8, 8))
    with pytest.raises(ValueError, match="uint8"):
        transform.eval(torch.zeros(2, 1, 8, 8))
