"""Weights of trained models: where they are, and whether they can be trusted. Nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from torch import Tensor

from ..arguments import is_number
from ..errors import WeightsError

__all__ = [
    "CONFIG",
    "SHIPPED",
    "WEIGHTS",
    "list_shipped",
    "read_config",
    "read_weights",
    "source_of",
]

WEIGHTS, CONFIG = "model.safetensors", "config.json"

SHIPPED = Path(__file__).parents[1] / "pretrained"
"""Where the package keeps weights: a folder ``<model>.<tag>`` for each checkpoint, in timm's format."""

LARGEST = torch.finfo(torch.float32).max ** 0.25
"""The largest number that a weight may be: products of four still are numbers in 32 bits."""

MOST_SWEEPS = 10_000
"""The most sweeps that a checkpoint may ask for: whoever wrote it does not decide how long others wait."""

MOST_LAYERS = 1_000
"""The most layers."""

_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

HUB_OWNER = "timm-ebl"
"""Owner of the repositories that hold the same checkpoints on the Hugging Face Hub."""


def list_shipped() -> list[str]:
    """Names ``<model>.<tag>`` of the checkpoints in the package, one of them first in each model's tags."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*.*/{CONFIG}"))


def source_of(name: str) -> dict[str, Any]:
    """Where timm finds a shipped checkpoint, its file, else its repository on the Hub; and its own normalisation."""
    path = SHIPPED / name / WEIGHTS
    config = read_config(path.with_name(CONFIG))["pretrained_cfg"]
    found = {"hf_hub_id": f"{HUB_OWNER}/{name}", **{key: tuple(config[key]) for key in ("mean", "std")}}
    return found | ({"file": str(path)} if path.is_file() else {})


def read_config(path: Path) -> dict[str, Any]:
    """A checkpoint's ``config.json``.

    The number of classes stands at its top alone: Transformers passes it to `timm.create_model` beside ``model_args``,
    in which timm repeats it. What Transformers has saved again lacks the checksum and the evaluation of our weights.

    Raises:
        WeightsError: It is missing or damaged, describes no model, or asks for a relaxation without end.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} cannot be read ({error}).") from None
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        raise WeightsError(f"{path} is not the configuration of a timm model: it names no architecture.")
    for name in ("model_args", "pretrained_cfg"):
        if not isinstance(config.get(name, {}), dict):
            raise WeightsError(f"{path} is not the configuration of a timm model: {name} is no mapping.")
    settings = config.get("model_args", {})
    if "num_classes" in settings:
        config["num_classes"] = settings.pop("num_classes")
    if "transformers_version" in config:
        config = {key: value for key, value in config.items() if key not in ("sha256", "evaluation")}
    sweeps = settings.get("sweeps")
    if is_number(sweeps) and sweeps > MOST_SWEEPS:
        raise WeightsError(f"{path} asks for {sweeps:g} sweeps, and a checkpoint may have {MOST_SWEEPS:,} at most.")
    widths = settings.get("widths")
    if isinstance(widths, list) and len(widths) > MOST_LAYERS:
        raise WeightsError(f"{path} asks for {len(widths):,} layers, and a network may have {MOST_LAYERS:,} at most.")
    return config


def read_weights(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Read a safetensors file whole.

    Args:
        path: The file.
        sha256: Checksum that it must have, in hexadecimal digits; ``None`` if none is known.

    Raises:
        WeightsError: It is missing, of another format, truncated, not the file of that checksum, or holds what is no
            number, or so large that products of weights have none.
    """
    if path.suffix != ".safetensors":
        raise WeightsError(f"{path} is no .safetensors file: weights of other formats are never loaded.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}).") from None
    try:
        weights = parse_safetensors(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise WeightsError(f"{path} is truncated or not in the safetensors format ({error}).") from None
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256:
        raise WeightsError(f"{path} is damaged: its SHA-256 is {found}, its {CONFIG} says {sha256}: fetch it again.")
    for name, value in weights.items():
        if value.dtype not in _TYPES:
            kinds = ", ".join(str(kind).removeprefix("torch.") for kind in _TYPES)
            raise WeightsError(f"{path} holds {str(value.dtype).removeprefix('torch.')} in {name}, not one of {kinds}.")
        if not bool(value.isfinite().all()):
            raise WeightsError(f"{path} holds NaN or infinite numbers in {name}: it is no usable model.")
        if bool((value.abs() > LARGEST).any()):
            raise WeightsError(f"{path} holds numbers above {LARGEST:.0e} in {name}: it is no usable model.")
    return weights
