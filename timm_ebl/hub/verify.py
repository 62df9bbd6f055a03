"""Comparing what a checkpoint reaches with what its files say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CheckpointError
from ..models.weights import CONFIG
from ..training.trained import TrainedModel

if TYPE_CHECKING:
    from ..data.dataset import ImageDataset
    from ..training.trained import Evaluation

__all__ = ["verify"]


def verify(
    source: str | Path,
    data_root: str | Path | None = None,
    dataset: str | None = None,
    test: ImageDataset | None = None,
) -> Evaluation:
    """Measure a checkpoint's error and its distance from equilibrium, and compare them with what its files say.

    Args:
        source: Name of a shipped model, folder, or id on the Hub.
        data_root: Folder with copies of Hub data sets.
        dataset: Folder with the data set, if it is not where the recipe says.
        test: The test split, if it is loaded already.

    Returns:
        What was measured.

    Raises:
        CheckpointError: The figures differ, or the data are not those that the checkpoint was measured on.
        DataError: The test split cannot be loaded.
    """
    checkpoint = TrainedModel.open(source)
    measured = checkpoint.measure(test or checkpoint.test_split(data_root, dataset))
    claimed = checkpoint.evaluation
    found = f"{checkpoint.name} has {measured.error:.2f} % test error on {measured.images:,} images"
    if claimed.images != measured.images or claimed.split_sha256 not in (None, measured.split_sha256):
        raise CheckpointError(
            f"{found}, which are not the {claimed.images:,} images on which it had {claimed.error:.2f} %: the figures "
            "cannot be compared; give the same copy of the data by --data-root or --dataset."
        )
    for file, error in checkpoint.claims().items():
        if not checkpoint.agrees(error, measured):
            raise CheckpointError(f"{found}, but its {file} says {error:.2f} %.")
    near = measured.equilibrium
    if claimed.equilibrium is not None and not claimed.equilibrium.agrees(near):
        raise CheckpointError(
            f"{checkpoint.name} has another distance from equilibrium ({near}) than its {CONFIG} says "
            f"({claimed.equilibrium})."
        )
    return measured
