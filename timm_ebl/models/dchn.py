"""The names of deep convolutional Hopfield networks (`timm_ebl.models.convolutional`) in timm's registry."""

from __future__ import annotations

from collections.abc import Sequence

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, resolve_pretrained_cfg

from ..data.catalogue import DATASETS
from .convolutional import DCHN
from .weights import build_with_weights, list_shipped, source_of

__all__ = ["default_cfgs"]


def _create_dchn(variant: str, pretrained: bool = False, **kwargs) -> DCHN:
    if kwargs.get("feature_cls", "getter") != "getter":
        raise ValueError(
            f"The features of a DCHN are the states of its equilibrium: feature_cls is 'getter', "
            f"not {kwargs['feature_cls']!r}."
        )
    saved = (
        kwargs.get("pretrained_model_args") or {}
    )  # of hf-hub: or local-dir:, where timm has filled kwargs with them
    if kwargs.get("tolerance") is not None and saved.get("tolerance") is None:
        kwargs = {name: value for name, value in kwargs.items() if name != "sweeps" or value != saved.get(name)}
    widths = kwargs["widths"] if isinstance(kwargs["widths"], Sequence) else ()  # anything else is refused below
    features = {"feature_cls": "getter", "out_indices": tuple(range(len(widths)))}
    if kwargs.get("features_only"):
        overlay = kwargs.pop("pretrained_cfg_overlay", None) or {}
        classes = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), overlay).num_classes
        if kwargs.get("num_classes", classes) == classes:
            # timm drops what it holds to be the classifier, but the states feel the read-out's feedback.
            kwargs["pretrained_cfg_overlay"] = {**overlay, "classifier": None}
    if pretrained:
        return build_with_weights(DCHN, variant, feature_cfg=features, **kwargs)
    return build_model_with_cfg(DCHN, variant, False, feature_cfg=features, **kwargs)


def _cfg(dataset: str, num_classes: int = 10, **kwargs) -> dict:
    spec = DATASETS[dataset]
    return {
        "num_classes": num_classes,
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
        "paper_name": "Energy-Based Learning Algorithms: A Comparative Study",
        **kwargs,
    }


_CFGS = {
    f"dchn_{size}{dataset}": _cfg(dataset.replace("_", "-"), 100 if dataset == "cifar100" else 10)
    for size in ("", "small_", "tiny_")
    for dataset in ("mnist", "fashion_mnist", "svhn", "cifar10", "cifar100")
}
_SHIPPED = {name: _CFGS[name.partition(".")[0]] | source_of(name) for name in list_shipped()}
_UNTRAINED = _CFGS.keys() - {name.partition(".")[0] for name in _SHIPPED}
default_cfgs = generate_default_cfgs(_SHIPPED | {name: _CFGS[name] for name in sorted(_UNTRAINED)})

# The paper's gains leave the states of a narrow network almost at zero, from where it learns nothing for an epoch.
_BASE = {"widths": (128, 256, 512, 512)}
_SMALL = {"widths": (32, 64, 128, 128), "gains": 0.8}
_TINY = {"widths": (16, 32, 64, 64), "gains": 0.8}
_CIFAR10 = {"gains": (0.4, 0.7, 0.6, 0.3, 0.4)}
_CIFAR100 = {"gains": (0.5, 0.4, 0.5, 0.8, 0.5)}


@register_model
def dchn_mnist(pretrained: bool = False, **kwargs) -> DCHN:
    """DCHN for MNIST at the paper's width, 128-256-512-512."""
    return _create_dchn("dchn_mnist", pretrained, **(_BASE | kwargs))


@register_model
def dchn_fashion_mnist(pretrained: bool = False, **kwargs) -> DCHN:
    """DCHN for Fashion-MNIST at the paper's width, 128-256-512-512."""
    return _create_dchn("dchn_fashion_mnist", pretrained, **(_BASE | kwargs))


@register_model
def dchn_svhn(pretrained: bool = False, **kwargs) -> DCHN:
    """DCHN for SVHN at the paper's width, 128-256-512-512."""
    return _create_dchn("dchn_svhn", pretrained, **(_BASE | kwargs))


@register_model
def dchn_cifar10(pretrained: bool = False, **kwargs) -> DCHN:
    """DCHN for CIFAR-10 at the paper's width, 128-256-512-512."""
    return _create_dchn("dchn_cifar10", pretrained, **(_BASE | _CIFAR10 | kwargs))


@register_model
def dchn_cifar100(pretrained: bool = False, **kwargs) -> DCHN:
    """DCHN for CIFAR-100 at the paper's width, 128-256-512-512."""
    return _create_dchn("dchn_cifar100", pretrained, **(_BASE | _CIFAR100 | kwargs))


@register_model
def dchn_small_mnist(pretrained: bool = False, **kwargs) -> DCHN:
    """DCHN for MNIST at a quarter of the paper's width, 32-64-128-128."""
    return _create_dchn("dchn_small_mnist", pretrained, **(_SMALL | kwargs))


@register_model
def dchn_small_fashion_mnist(pretrained: bool = False, **kwargs) -> DCHN:
    """DCHN for Fashion-MNIST at a quarter of the paper's width, 32-64-128-128."""
    return _create_dchn("dchn_small_fashion_mnist", pretrained, **(_SMALL | kwargs))


@register_model
def dchn_small_svhn(pretrained: bool = False, **kwargs) -> DCHN:
    """DCHN for SVHN at a quarter of the paper's width, 32-64-128-128."""
    return _create_dchn("dchn_small_svhn", pretrained, **(_SMALL | kwargs))


@register_model
def dchn_small_cifar10(pretrained: bool = False, **kwargs) -> DCHN:
    """DCHN for CIFAR-10 at a quarter of the paper's width, 32-64-128-128."""
    return _create_dchn("dchn_small_cifar10", pretrained, **(_SMALL | kwargs))


@register_model
def dchn_small_cifar100(pretrained: bool = False, **kwargs) -> DCHN:
    """DCHN for CIFAR-100 at a quarter of the paper's width, 32-64-128-128."""
    return _create_dchn("dchn_small_cifar100", pretrained, **(_SMALL | kwargs))


@register_model
def dchn_tiny_mnist(pretrained: bool = False, **kwargs) -> DCHN:
    """DCHN for MNIST at an eighth of the paper's width, 16-32-64-64."""
    return _create_dchn("dchn_tiny_mnist", pretrained, **(_TINY | kwargs))


@register_model
def dchn_tiny_fashion_mnist(pretrained: bool = False, **kwargs) -> DCHN:
    """DCHN for Fashion-MNIST at an eighth of the paper's width, 16-32-64-64."""
    return _create_dchn("dchn_tiny_fashion_mnist", pretrained, **(_TINY | kwargs))


@register_model
def dchn_tiny_svhn(pretrained: bool = False, **kwargs) -> DCHN:
    """DCHN for SVHN at an eighth of the paper's width, 16-32-64-64."""
    return _create_dchn("dchn_tiny_svhn", pretrained, **(_TINY | kwargs))


@register_model
def dchn_tiny_cifar10(pretrained: bool = False, **kwargs) -> DCHN:
    """DCHN for CIFAR-10 at an eighth of the paper's width, 16-32-64-64."""
    return _create_dchn("dchn_tiny_cifar10", pretrained, **(_TINY | kwargs))


@register_model
def dchn_tiny_cifar100(pretrained: bool = False, **kwargs) -> DCHN:
    """DCHN for CIFAR-100 at an eighth of the paper's width, 16-32-64-64."""
    return _create_dchn("dchn_tiny_cifar100", pretrained, **(_TINY | kwargs))
