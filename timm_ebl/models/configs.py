"""What timm is told of the models of a family: their data, and the checkpoints of the package."""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs

from ..data.catalogue import DATASETS
from .weights import list_shipped, source_of

__all__ = ["DATASET_NAMES", "SIZES", "data_cfg", "with_checkpoints"]

DATASET_NAMES = ("mnist", "fashion_mnist", "svhn", "cifar10", "cifar100")
"""The data sets that every family has models for, as they stand in the models' names."""

SIZES = ("", "small_", "tiny_")
"""The published width, a quarter and an eighth of it, likewise."""


def data_cfg(dataset: str, **kwargs: Any) -> dict[str, Any]:
    """Timm's configuration of a model for images of 32 x 32 of a data set; the data set as in `DATASET_NAMES`."""
    spec = DATASETS[dataset.replace("_", "-")]
    return {
        "num_classes": 100 if dataset == "cifar100" else 10,
        "input_size": (len(spec.mean), 32, 32),
        "fixed_input_size": True,
        "pool_size": (2, 2),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": spec.mean,
        "std": spec.std,
        "first_conv": "layers.0",
        "classifier": "head",
        "license": "apache-2.0",
        **kwargs,
    }


def with_checkpoints(cfgs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Timm's ``default_cfgs`` of the models of a family by name, each with its checkpoints in the package, if any."""
    names = [name for name in list_shipped() if name.partition(".")[0] in cfgs]
    shipped = {name: cfgs[name.partition(".")[0]] | source_of(name) for name in names}
    untrained = cfgs.keys() - {name.partition(".")[0] for name in names}
    return generate_default_cfgs(shipped | {name: cfgs[name] for name in sorted(untrained)})
