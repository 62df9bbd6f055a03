"""Weights of trained models: where they are, and whether they can be trusted. Nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from timm.models import build_model_with_cfg, resolve_pretrained_cfg
from torch import Tensor, nn

from .connection import explain, retry
from .errors import WeightsError

__all__ = ["CONFIG", "SHIPPED", "WEIGHTS", "build_with_weights", "read_config", "read_weights"]

WEIGHTS, CONFIG = "model.safetensors", "config.json"

SHIPPED = Path(__file__).parent / "pretrained"
"""Where the package keeps weights: a folder ``<model>.<tag>`` for each checkpoint, in timm's format."""

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

    Raises:
        WeightsError: It is missing or damaged.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read ({error}).") from None
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        raise WeightsError(f"{path} is not the configuration of a timm model: it names no architecture.")
    return config


def read_weights(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Read a safetensors file whole.

    Args:
        path: The file.
        sha256: Checksum that it must have, in hexadecimal digits; ``None`` if none is known.

    Raises:
        WeightsError: It is missing, of another format, truncated, not the file of that checksum, or holds NaN or
            infinite values.
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
        if not value.is_floating_point() or not bool(value.isfinite().all()):
            raise WeightsError(f"{path} holds NaN, infinite or whole numbers in {name}: it is no usable model.")
    return weights


def build_with_weights(
    model_cls: Callable[..., nn.Module],
    variant: str,
    *,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: str | Path | None = None,
    **kwargs: Any,
) -> nn.Module:
    """`timm.models.build_model_with_cfg` for ``pretrained=True``: the same sources, but safetensors files only.

    The settings that the checkpoint was saved with (``model_args`` of its ``config.json``) are defaults of the model,
    as they are where timm loads from ``hf-hub:`` or ``local-dir:``. A file is checked before it is used: format,
    checksum if ``config.json`` has one, names and shapes of the tensors.

    Args:
        model_cls: Builds the model.
        variant: Name of the model.
        pretrained_cfg: Tag or configuration, as for `timm.create_model`.
        pretrained_cfg_overlay: What replaces parts of it.
        cache_dir: Cache of the Hub.
        **kwargs: Other arguments of `timm.models.build_model_with_cfg`.

    Raises:
        WeightsError: There are no weights, or they cannot be used.
    """
    cfg = resolve_pretrained_cfg(variant, pretrained_cfg, pretrained_cfg_overlay).to_dict()
    if "state_dict" in cfg:
        return build_model_with_cfg(model_cls, variant, True, cfg, **kwargs)
    path = _find(cfg, variant, cache_dir)
    config = read_config(path.with_name(CONFIG)) if path.with_name(CONFIG).is_file() else {}
    saved = config.get("model_args", {})
    model = build_model_with_cfg(
        model_cls,
        variant,
        True,
        {**cfg, "source": None, "state_dict": read_weights(path, config.get("sha256"))},
        pretrained_filter_fn=partial(_check_fit, path=path, cfg=cfg),
        **{**saved, **kwargs},
    )
    known = {key: cfg[key] for key in ("source",) if key in cfg}
    if model.num_classes == cfg["num_classes"]:
        known |= {key: config[key] for key in ("label_names",) if key in config}
    for module in model.modules():
        if hasattr(module, "pretrained_cfg"):
            module.pretrained_cfg.pop("state_dict", None)
            module.pretrained_cfg.update(known)
    model._model_args = dict(saved)  # timm.create_model adds its own; timm.models.save_for_hf writes them
    return model


def _find(cfg: dict[str, Any], variant: str, cache_dir: str | Path | None) -> Path:
    if cfg.get("file") and cfg.get("source") != "hf-hub":
        path = Path(cfg["file"])
        if not path.is_dir():
            return path
        if not (path / WEIGHTS).is_file():
            raise WeightsError(f"{path} has no {WEIGHTS}: weights of other formats are never loaded.")
        return path / WEIGHTS
    if cfg.get("hf_hub_id"):
        return _download(cfg["hf_hub_id"], cache_dir)
    known = ", ".join(list_shipped()) or "no model yet"
    raise WeightsError(f"There are no pretrained weights for {variant}; there are for {known}.")


def _download(hub_id: str, cache_dir: str | Path | None) -> Path:
    """The weights of a Hub repository ``owner/name`` or ``owner/name@revision``, with their configuration beside."""
    repo_id, _, revision = hub_id.partition("@")
    try:
        for name in (CONFIG, WEIGHTS):
            path = retry(
                lambda name=name: hf_hub_download(repo_id, name, revision=revision or None, cache_dir=cache_dir)
            )
    except Exception as error:  # the client's errors and those of the HTTP library below have no common type
        raise WeightsError(f"{WEIGHTS} of {hub_id} cannot be loaded: {explain(error, repo_id)}.") from error
    return Path(path)


def _check_fit(weights: dict[str, Tensor], model: nn.Module, path: Path, cfg: dict[str, Any]) -> dict[str, Tensor]:
    """The weights, if they are those of the model; what timm adapts to other classes or channels may differ."""
    expected = {name: value.shape for name, value in model.state_dict().items()}
    adapted = [] if model.num_classes == cfg["num_classes"] else [f"{cfg['classifier']}."]
    adapted += [] if model.in_chans == cfg["input_size"][0] else [f"{cfg['first_conv']}."]
    for name in sorted(expected.keys() | weights.keys()):
        found = weights[name].shape if name in weights else torch.Size()
        if found != expected.get(name, ()) and not name.startswith(tuple(adapted)):
            there, here = (tuple(shape) if shape else "absent" for shape in (found, expected.get(name)))
            raise WeightsError(f"{path} does not fit {cfg['architecture']}: {name} is {there} there and {here} here.")
    return weights
