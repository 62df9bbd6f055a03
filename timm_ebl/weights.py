"""Weights of trained models: where they are, and whether they can be trusted. Nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import json
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from timm.models import _factory, build_model_with_cfg, is_model_in_modules, resolve_pretrained_cfg
from timm.models._hub import load_model_config_from_path
from timm.models._pretrained import PretrainedCfg
from torch import Tensor, nn

from .connection import explain, fetch
from .convolutional import DCHN
from .errors import WeightsError
from .values import is_count, is_number

__all__ = ["CONFIG", "SHIPPED", "WEIGHTS", "build_with_weights", "read_config", "read_weights", "without_defaults"]

WEIGHTS, CONFIG = "model.safetensors", "config.json"

SHIPPED = Path(__file__).parent / "pretrained"
"""Where the package keeps weights: a folder ``<model>.<tag>`` for each checkpoint, in timm's format."""

LARGEST = torch.finfo(torch.float32).max ** 0.25
"""The largest number that a weight may be: products of four still are numbers in 32 bits."""

MOST_SWEEPS = 10_000
"""The most sweeps that a checkpoint may ask for: whoever wrote it does not decide how long others wait."""

MOST_LAYERS = 1_000
"""The most layers."""

_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_ADAPTED = ("num_classes", "in_chans", "img_size", "global_pool")
_OF_FEATURES = ("features_only", "out_indices", "feature_cls")
_MINIMIZER = ("order", "sweeps", "omega", "start")
_STRUCTURE = {"first_conv": ("layers.0",), "classifier": ("head",), "label_offset": (None, 0)}

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


def without_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration whose network has a minimiser of its own only where that is another than the name's.

    So a name has the same answer by ``pretrained=True`` as by `load_state_dict`.

    Args:
        config: A ``config.json`` (`read_config`).
    """
    settings = config.get("model_args", {})
    own = {key: settings[key] for key in _MINIMIZER if key in settings}
    if not own:
        return config
    other = {key: value for key, value in settings.items() if key not in own}
    default = timm.create_model(config["architecture"], device="meta", **other).minimizer
    chosen = replace(default, **own)
    return config | {
        "model_args": {
            key: value
            for key, value in settings.items()
            if key not in own or getattr(chosen, key) != getattr(default, key)
        }
    }


def _saved(config: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the network that a configuration describes."""
    return {key: config[key] for key in ("num_classes",) if key in config} | config.get("model_args", {})


def read_settings(path: Path) -> dict[str, Any]:
    """A checkpoint's ``config.json`` (`read_config`), of one of the package's networks.

    Raises:
        WeightsError: It is no such configuration, or describes no such network.
    """
    config = read_config(path)
    cfg = config.get("pretrained_cfg", {})
    size, classes = cfg.get("input_size"), [part["num_classes"] for part in (config, cfg) if "num_classes" in part]
    try:
        if not cfg:
            raise ValueError("it has no pretrained_cfg.")
        DCHN(**_saved(config), device="meta")
        PretrainedCfg(**cfg)
        if not all(is_count(count, 0) for count in classes):
            raise ValueError(f"num_classes is a whole number, not {classes}.")
        if "input_size" in cfg and not (isinstance(size, list) and len(size) == 3 and all(map(is_count, size))):
            raise ValueError(f"input_size is [channels, height, width], not {size}.")
        for name, known in _STRUCTURE.items():
            if name in cfg and cfg[name] not in known:
                raise ValueError(f"{name} is {known[-1]!r}, not {cfg[name]!r}.")
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise WeightsError(
            f"{path} describes no {config['architecture']}: {textwrap.shorten(str(error), 200)}"
        ) from error
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


def build_with_weights(
    model_cls: Callable[..., DCHN],
    variant: str,
    *,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: str | Path | None = None,
    **kwargs: Any,
) -> nn.Module:
    """`timm.models.build_model_with_cfg` for ``pretrained=True``: the same sources, but safetensors files only.

    The settings that the checkpoint was saved with (``model_args`` of its ``config.json``) are defaults of the model,
    as they are where timm loads from ``hf-hub:`` or ``local-dir:``; but its number of sweeps is no bound of a tolerance
    that it was not saved with. A file is checked before it is used, and before any memory is taken for the model:
    format, checksum if ``config.json`` has one, names and shapes of the tensors. Other classes and channels than the
    file's are adapted as timm does, another size as `DCHN.set_input_size` does.

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
    config = read_settings(path.with_name(CONFIG)) if path.with_name(CONFIG).is_file() else {}
    saved = _saved(config)
    if kwargs.get("tolerance") is not None and saved.get("tolerance") is None:
        saved.pop("sweeps", None)
    weights = read_weights(path, config.get("sha256"))
    fixed = {name: value for name, value in kwargs.items() if name not in _ADAPTED + _OF_FEATURES}
    fixed |= saved | {"device": "meta"}
    source = build_model_with_cfg(model_cls, variant, False, dict(cfg), **fixed)  # as it was saved, without memory
    _check_fit(weights, source, path, variant)
    cfg |= {"num_classes": source.num_classes, "input_size": (source.in_chans, *source.img_size)}
    model = build_model_with_cfg(
        model_cls,
        variant,
        True,
        {**cfg, "source": None, "state_dict": weights},
        pretrained_filter_fn=lambda weights, model: model.fit_weights(weights, source.img_size),
        **{**saved, **kwargs},
    )
    known = {key: cfg[key] for key in ("source",) if key in cfg}
    if getattr(model, "num_classes", None) == cfg["num_classes"]:
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
        *_, path = (fetch(repo_id, name, revision or None, cache_dir) for name in (CONFIG, WEIGHTS))
    except Exception as error:  # the client's errors and those of the HTTP library below have no common type
        raise WeightsError(f"{WEIGHTS} of {hub_id} cannot be loaded: {explain(error, repo_id)}.") from error
    return path


def _check_fit(weights: dict[str, Tensor], source: nn.Module, path: Path, variant: str) -> None:
    """Refuse weights that are not those of the network that their configuration describes."""
    expected = {name: value.shape for name, value in source.state_dict().items()}
    for name in sorted(expected.keys() | weights.keys()):
        found = weights[name].shape if name in weights else None
        if found != expected.get(name):
            there, here = ("absent" if shape is None else tuple(shape) for shape in (found, expected.get(name)))
            raise WeightsError(f"{path} does not fit {variant}: {name} is {there} there and {here} here.")


def _load_config_from_hub(model_id: str, cache_dir: str | Path | None = None) -> tuple[dict[str, Any], str, dict]:
    """What `timm.create_model` reads of ``hf-hub:owner/name``: tried again, checked, and refused with one sentence."""
    repo_id, _, revision = model_id.partition("@")
    try:
        path = fetch(repo_id, CONFIG, revision or None, cache_dir)
    except Exception as error:  # as above
        raise WeightsError(f"{CONFIG} of {model_id} cannot be loaded: {explain(error, repo_id)}.") from error
    cfg, *rest = _load_config_from_folder(path.parent)
    del cfg["file"]
    return (cfg | {"hf_hub_id": model_id, "source": "hf-hub"}, *rest)


def _load_config_from_folder(folder: str | Path) -> tuple[dict[str, Any], str, dict]:
    """What `timm.create_model` reads of ``local-dir:folder``, checked."""
    path = Path(folder, CONFIG)
    if is_model_in_modules(read_config(path)["architecture"], ["dchn"]):
        read_settings(path)
    return load_model_config_from_path(folder)


# timm asks these two before it knows whose model it is: they are the only place where a request can be tried again.
_factory.load_model_config_from_hf = _load_config_from_hub
_factory.load_model_config_from_path = _load_config_from_folder
