"""Networks as `timm.create_model` makes them: fresh, or with weights that were checked before they were used."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import timm
from timm.models import _factory, build_model_with_cfg, is_model_in_modules, resolve_pretrained_cfg
from timm.models._hub import load_model_config_from_path
from timm.models._pretrained import PretrainedCfg
from torch import Tensor, nn

from ..arguments import is_count
from ..data.requests import explain, fetch
from ..errors import ConfigError, WeightsError, caught_as_well
from .layered import LayeredNetwork
from .weights import CONFIG, WEIGHTS, list_shipped, read_config, read_weights

__all__ = ["build_network", "family_of", "list_networks", "open_network", "register_family"]

_FAMILIES: dict[str, type[nn.Module]] = {}
"""The class of each file of networks, by the file's name, as timm calls it."""

_ADAPTED = ("num_classes", "in_chans", "img_size", "global_pool")
_OF_FEATURES = ("features_only", "out_indices", "feature_cls")


def register_family(model_cls: type[nn.Module]) -> type[nn.Module]:
    """A class decorator: checkpoints of the models that the class's file registers with timm are of this class."""
    _FAMILIES[model_cls.__module__.rpartition(".")[2]] = model_cls
    return model_cls


def family_of(architecture: str) -> type[nn.Module] | None:
    """The class of a model by its name, if it is of a family of the package."""
    found = (model_cls for file, model_cls in _FAMILIES.items() if is_model_in_modules(architecture, [file]))
    return next(found, None)


def list_networks() -> list[str]:
    """The names of the package's models, family by family."""
    return [name for file in _FAMILIES for name in timm.list_models(module=file)]


def build_network(model_cls: type[nn.Module], variant: str, pretrained: bool, hidden: int, **kwargs: Any) -> nn.Module:
    """What an entry function of timm's registry returns: the network, or its hidden layers as feature maps.

    Args:
        model_cls: The class of the family.
        variant: Name of the model.
        pretrained: Whether weights are loaded (`build_with_weights`).
        hidden: Number of hidden layers.
        **kwargs: Arguments of the class and of `timm.models.build_model_with_cfg`.

    Raises:
        ValueError: Features are asked for in a way that an equilibrium cannot give them.
        WeightsError: There are no weights, or they cannot be used.
    """
    if kwargs.get("feature_cls", "getter") != "getter":
        raise ValueError(
            f"The features of a {model_cls.__name__} are the states of its equilibrium: feature_cls is 'getter', "
            f"not {kwargs['feature_cls']!r}."
        )
    # Those of hf-hub: or local-dir:, with which timm has filled the arguments.
    saved = kwargs.get("pretrained_model_args") or {}
    if kwargs.get("tolerance") is not None and saved.get("tolerance") is None:
        kwargs = {name: value for name, value in kwargs.items() if name != "sweeps" or value != saved.get(name)}
    kwargs["feature_cfg"] = {"feature_cls": "getter", "out_indices": tuple(range(hidden))}
    if kwargs.get("features_only"):
        overlay = kwargs.pop("pretrained_cfg_overlay", None) or {}
        classes = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), overlay).num_classes
        if kwargs.get("num_classes", classes) == classes:
            # timm drops what it holds to be the classifier, but the states feel the read-out's feedback.
            kwargs["pretrained_cfg_overlay"] = {**overlay, "classifier": None}
    if pretrained:
        return build_with_weights(model_cls, variant, **kwargs)
    return build_model_with_cfg(model_cls, variant, False, **kwargs)


def _saved(config: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the network that a configuration describes."""
    return {key: config[key] for key in ("num_classes",) if key in config} | config.get("model_args", {})


def read_settings(path: Path, model_cls: type[nn.Module]) -> dict[str, Any]:
    """A checkpoint's ``config.json`` (`read_config`), of a network of a family.

    Raises:
        WeightsError: It is no such configuration, or describes no such network.
    """
    config = read_config(path)
    cfg = config.get("pretrained_cfg", {})
    size, classes = cfg.get("input_size"), [part["num_classes"] for part in (config, cfg) if "num_classes" in part]
    try:
        if not cfg:
            raise ValueError("it has no pretrained_cfg.")
        model_cls(**_saved(config), device="meta")
        PretrainedCfg(**cfg)
        if not all(is_count(count, 0) for count in classes):
            raise ValueError(f"num_classes is a whole number, not {classes}.")
        if "input_size" in cfg and not (isinstance(size, list) and len(size) == 3 and all(map(is_count, size))):
            raise ValueError(f"input_size is [channels, height, width], not {size}.")
        usual = timm.get_pretrained_cfg(config["architecture"]).to_dict() | {"label_offset": 0}
        for name in ("first_conv", "classifier", "label_offset"):
            known, found = usual[name], cfg.get(name, usual[name])
            if (tuple(found) if isinstance(found, list) else found or 0) != known:  # of JSON, and None for no offset
                raise ValueError(f"{name} is {known!r}, not {found!r}.")
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise WeightsError(
            f"{path} describes no {config['architecture']}: {textwrap.shorten(str(error), 200)}"
        ) from error
    return config


def build_with_weights(
    model_cls: type[nn.Module],
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
    file's are adapted as timm does, another size as its `set_input_size` does.

    Args:
        model_cls: The class of the family.
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
    config = read_settings(path.with_name(CONFIG), model_cls) if path.with_name(CONFIG).is_file() else {}
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


def open_network(name: str) -> LayeredNetwork:
    """A network of the package by the name of a model, a checkpoint (``NAME.TAG``), a folder or a Hub repository.

    Raises:
        ConfigError: There is no such network, or it cannot be loaded.
    """
    architecture, tag = name.partition(".")[::2]
    stored, model = ":" in name, None
    if stored or timm.is_model(architecture):
        try:
            model = timm.create_model(name, pretrained=stored or bool(tag))
        except (ValueError, RuntimeError, OSError, TypeError) as error:
            raise ConfigError(f"{name}: {error}") from error
    if not isinstance(model, LayeredNetwork):
        raise ConfigError(f"{name!r} is no network of timm_ebl: choose one of {', '.join(list_networks())}.")
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
    """What `timm.create_model` reads of ``hf-hub:owner/name``: tried again, and refused with one sentence."""
    repo_id, _, revision = model_id.partition("@")
    try:
        path = fetch(repo_id, CONFIG, revision or None, cache_dir)
    except Exception as error:  # as above
        refusal = WeightsError(f"{CONFIG} of {model_id} cannot be loaded: {explain(error, repo_id)}.")
        raise caught_as_well(refusal, error) from error
    cfg, *rest = _load_config_from_folder(path.parent)
    del cfg["file"]
    return (cfg | {"hf_hub_id": model_id, "source": "hf-hub"}, *rest)


def _load_config_from_folder(folder: str | Path) -> tuple[dict[str, Any], str, dict]:
    """What `timm.create_model` reads of ``local-dir:folder``, checked if it is of the package.

    What timm cannot read is refused by an error that timm's own is, too: it may be that of any model.
    """
    refusal = _refusal_of(Path(folder, CONFIG))
    try:
        found = load_model_config_from_path(folder)
    except Exception as error:
        if refusal is None:
            raise
        raise caught_as_well(refusal, error) from error
    architecture = found[1]
    if refusal is not None and not (isinstance(architecture, str) and family_of(architecture) is None):
        raise refusal
    return found


def _refusal_of(path: Path) -> WeightsError | None:
    """Why a configuration is refused, if it is."""
    try:
        if model_cls := family_of(read_config(path)["architecture"]):
            read_settings(path, model_cls)
    except WeightsError as refusal:
        return refusal
    return None


# timm asks these two before it knows whose model it is: they are the only place where a request can be tried again.
_factory.load_model_config_from_hf = _load_config_from_hub
_factory.load_model_config_from_path = _load_config_from_folder
