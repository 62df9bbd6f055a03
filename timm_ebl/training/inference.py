"""The model of a checkpoint at work: loaded for evaluation, given images, asked for its outputs."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import timm
import torch
from torch import Tensor

from ..data.transforms import BatchTransform
from ..errors import CheckpointError, WeightsError
from ..models.weights import CONFIG
from ..relaxation.minimizer import check_tolerance
from ..relaxation.model import EnergyModel
from .records import read_model_config

if TYPE_CHECKING:
    from ..data.dataset import ImageDataset

__all__ = ["load_model", "predict", "prepare", "same_error"]


def load_model(folder: Path) -> EnergyModel:
    """The model of the checkpoint in a folder, for evaluation.

    Raises:
        CheckpointError: The weights cannot be used, or the configuration is not that of a model with an energy.
    """
    try:
        read_model_config(folder)
        model = timm.create_model(f"local-dir:{folder}", pretrained=True)
        if isinstance(model, EnergyModel) and model.minimizer.tolerance is not None:
            check_tolerance(model.minimizer.tolerance, torch.float32)
    except (CheckpointError, WeightsError) as error:
        raise CheckpointError(str(error)) from None
    except Exception as error:  # what constructors raise when they are given anything has no common type
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 200)
        raise CheckpointError(f"The model of {folder / CONFIG} cannot be built ({reason}).") from error
    if not isinstance(model, EnergyModel):
        raise CheckpointError(f"The model of {folder / CONFIG} has no energy to relax.")
    return model.eval()


def prepare(folder: Path, images: Tensor) -> tuple[EnergyModel, Callable[[Tensor], Tensor]]:
    """The model of the checkpoint in a folder on whatever device there is, and what makes its input of images.

    Args:
        folder: The folder.
        images: 8-bit images ``(N, C, H, W)`` that it is to be used for.

    Raises:
        CheckpointError: The weights cannot be used, or the images do not fit them.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(folder).to(device)
    transform = BatchTransform(*(tuple(model.pretrained_cfg[key]) for key in ("mean", "std")))
    try:
        with torch.no_grad():
            model.answer(transform.eval(images[:1].to(device)))
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"The images do not fit {folder}: {error}") from None
    return model, lambda batch: transform.eval(batch.to(device))


@torch.no_grad()
def predict(folder: Path, data: ImageDataset, batch_size: int = 250) -> Tensor:
    """Outputs ``(N, M)`` of the checkpoint in a folder for all images, in float32 on whatever device there is.

    Raises:
        CheckpointError: The weights cannot be used, or the images do not fit them.
    """
    model, normalise = prepare(folder, data.images)
    return torch.cat([model.answer(normalise(images)).cpu() for images in data.images.split(batch_size)])


def same_error(first: float, second: float, images: int) -> bool:
    """Whether two errors (%) differ by no more than rounding does from machine to machine.

    Other kernels flip a few of the closest decisions: two images, or one in 2,000, are allowed to differ.
    """
    return abs(first - second) / 100 * images <= max(2, images / 2000) + 1e-6
