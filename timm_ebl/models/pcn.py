"""Predictive coding networks (PCN) of VGG's shape.

Papers:
* `Predictive coding networks trained by centred equilibrium propagation` (arXiv 2606.03584), Section and tables of
  PCN-VGG5 and PCN-VGG10

Convolutions with ReLU, some with max pooling, and a dense read-out. Inference is an ordinary feed-forward network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ..arguments import as_plain, is_count, is_number
from ..energy.graph import Graph
from ..rules.autograd import equilibrium
from ..rules.catalogue import name_of
from .configs import DATASET_NAMES, SIZES, data_cfg, with_checkpoints
from .factory import build_network, register_family
from .flops import counted_flops
from .graphs import is_symbolic
from .interactions import RectifiedConv
from .predictive import PredictiveCodingNetwork
from .timm_network import AUTOGRAD, TimmNetwork

if TYPE_CHECKING:
    from ..energy.interaction import Interaction
    from ..rules.backward import Backward

__all__ = ["PCN", "default_cfgs"]


@register_family
class PCN(TimmNetwork, PredictiveCodingNetwork):
    """Predictive coding network (`timm_ebl.models.predictive`).

    In evaluation, without gradients, and in graphs of `torch.fx` and `torch.compile`, ``forward`` is the plain
    feed-forward network, with its hooks and autograd's gradient; NaN passes through it. In training mode, the gradient
    of a loss is that of `backward`.

    Args:
        widths: Channels of the hidden layers, from the input upwards.
        pools: Side of the max pooling windows of each, 1 for none.
        neck: Units of one more hidden layer, each of which sees 7x7 places of the map below; 0 for none.
        num_classes: Units ``M`` of the output layer; 0 for none, the network then ends at the last hidden layer.
        in_chans: Channels of the input.
        img_size: Height and width of the input in pixels (one number for a square).
        global_pool: ``"flatten"``, as the read-out is dense; without classes also ``""``, which leaves the last hidden
            layer a map.
        drop_rate: Present for timm's sake, whose scripts pass it to every model; there is no dropout, so it is 0.
        gains: Initial gain of each interaction, read-out last, or one for all: weights start in
            ``U(+-gain / sqrt(fan_in))``.
        bias_gain: The same for the biases.
        beta: Strength of a perturbation, in rules that are not told otherwise, and norm of a loss's force.
        backward: How a loss is differentiated in training mode: ``"ep"``, ``"tbp"``, ``"rbp"``
            (`timm_ebl.create_backward`), a `Backward`, or ``"bp"`` for autograd's own backpropagation. It is an
            attribute too, free to be set.
        device: Device of the parameters.
        dtype: Type of the parameters.

    Raises:
        ValueError: An argument is out of range; the message says which.
    """

    feeds_forward = True

    def __init__(
        self,
        widths: Sequence[int] = (128, 256, 512, 512, 512),
        pools: Sequence[int] = (1, 2, 2, 2, 2),
        neck: int = 0,
        num_classes: int = 10,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 32,
        global_pool: str = "flatten",
        drop_rate: float = 0.0,
        gains: float | Sequence[float] = 1.0,
        bias_gain: float = 1.0,
        beta: float = 0.02,
        backward: str | Backward = "ep",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, counts in (("widths", widths), ("pools", pools)):
            if not isinstance(counts, Sequence) or not counts or not all(map(is_count, counts)):
                raise ValueError(f"{name} is a non-empty sequence of whole numbers of at least 1, not {counts!r}.")
        if len(widths) != len(pools) or not is_count(neck, 0):
            raise ValueError(f"pools has one window for each of the widths, neck is a count; got {pools!r}, {neck!r}.")
        super().__init__(
            num_classes=num_classes,
            in_chans=in_chans,
            img_size=img_size,
            global_pool=global_pool,
            drop_rate=drop_rate,
            bias_gain=bias_gain,
            backward=backward,
        )
        if not is_number(beta) or not 0 < beta < math.inf:
            raise ValueError(f"beta is a positive number, not {beta!r}.")
        self.beta = self.force = as_plain(beta)
        widths, pools, neck = as_plain((widths, pools, neck))
        build = partial(RectifiedConv, device=device, dtype=dtype)
        sizes = zip((in_chans, *widths), widths, pools)  # noqa: B905 (the last width is below the read-out)
        self.layers = nn.ModuleList(build(lower, upper, 3, pool) for lower, upper, pool in sizes)
        if neck:
            self.layers.append(build(widths[-1], neck, 7, 1, pads=False))
        self.feature_info, reduction = [], 1
        for level, layer in enumerate(self.layers):
            reduction *= layer.pool if layer.padding[0] else layer.kernel_size[0]
            self.feature_info.append(
                {"num_chs": layer.out_channels, "reduction": reduction, "module": f"layers.{level}"}
            )
        self.num_features = self.layers[-1].out_channels
        self.add_head(gains, device=device, dtype=dtype)

    def extra_repr(self) -> str:
        """Energy, strength of a perturbation and backward pass."""
        way = AUTOGRAD if self.backward is None else name_of(self.backward)
        return f"energy='predictive coding', beta={self.beta!r}, backward={way!r}"

    def joined(self, parts: Sequence[Interaction]) -> Graph:
        return Graph.chain(parts, (0.0, float("inf")))

    def answer(self, x: Tensor, minimizer: object = None) -> Tensor:
        """The output of the forward pass, ``(B, M)``, without gradients; there is nothing to minimise."""
        self.check_input(x)
        with torch.no_grad():
            return self._forward_pass(x, (-1,))[0]

    def flops(self) -> int:
        """Floating-point operations of `forward` for one image, a multiplication and an addition counted as two."""
        x = next(self.parameters()).new_zeros(1, self.in_chans, *self.img_size)
        return counted_flops(partial(self.answer, x))

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Leave out the layers above those asked for, and the read-out: nothing feeds back from there.

        Args:
            indices: Which hidden layers: the last n, or those of a sequence.
            prune_norm: Without effect, there is no normalisation.
            prune_head: Whether the read-out goes where all layers stay.

        Returns:
            The indices, counted from the input.
        """
        taken, last = feature_take_indices(len(self.feature_info), indices)
        if prune_head or last + 1 < len(self.layers):
            self.keep_layers(last + 1)
        return taken

    def __prepare_scriptable__(self) -> nn.Module:
        """The network of plain modules that `torch.jit.script` compiles; the parameters are shared."""
        parts = [layer.plain() for layer in self.layers]
        if self.num_classes or self.global_pool:
            parts.append(nn.Flatten())
        return nn.Sequential(*parts, self.head.plain()) if self.num_classes else nn.Sequential(*parts)

    def _equilibrium(self, x: Tensor, layers: tuple[int, ...]) -> tuple[Tensor, ...]:
        if not is_symbolic(x):
            self.check_shape(x)
            recorded = torch.jit.is_tracing() or torch.compiler.is_compiling()
            if self.training and self.backward and torch.is_grad_enabled() and not recorded:
                return equilibrium(self, x, self.backward, layers)
        return self._forward_pass(x, layers)

    def _forward_pass(self, x: Tensor, layers: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Layers of the free state by index."""
        count, states = len(self.layers) + 1, []
        wanted = [index % count for index in layers]
        for layer in (*self.layers, self.head)[: max(wanted) + 1]:
            states.append(x := layer(x))
        return tuple(states[index] for index in wanted)


_PAPER = {"paper_ids": "arXiv:2606.03584"}
_IMAGENET = {"num_classes": 1000, "input_size": (3, 224, 224), "pool_size": (1, 1), "crop_pct": 0.875}
_STATISTICS = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD, "interpolation": "bicubic"}
default_cfgs = with_checkpoints(
    {f"pcn_vgg5_{size}{name}": data_cfg(name, **_PAPER) for size in SIZES for name in DATASET_NAMES}
    | {"pcn_vgg10": data_cfg("cifar10", **_PAPER, **_IMAGENET, **_STATISTICS)}
)

_BASE = {"widths": (128, 256, 512, 512, 512)}
_SMALL = {"widths": (32, 64, 128, 128, 128)}
_TINY = {"widths": (16, 32, 64, 64, 64)}
_VGG10 = {"widths": (64, 128, 256, 256, 512, 512, 512, 512), "pools": (2, 2, 1, 2, 1, 2, 1, 2), "neck": 2048}
_VGG10 |= {"img_size": 224, "beta": 0.05}


def _create(variant: str, pretrained: bool = False, **kwargs: Any) -> PCN:
    counts = kwargs["widths"]
    hidden = len(counts) + bool(kwargs.get("neck")) if isinstance(counts, Sequence) else 0  # refused later
    return build_network(PCN, variant, pretrained, hidden, **kwargs)


@register_model
def pcn_vgg5_mnist(pretrained: bool = False, **kwargs) -> PCN:
    """PCN-VGG5 for MNIST at the published width."""
    return _create("pcn_vgg5_mnist", pretrained, **(_BASE | kwargs))


@register_model
def pcn_vgg5_fashion_mnist(pretrained: bool = False, **kwargs) -> PCN:
    """PCN-VGG5 for Fashion-MNIST at the published width."""
    return _create("pcn_vgg5_fashion_mnist", pretrained, **(_BASE | kwargs))


@register_model
def pcn_vgg5_svhn(pretrained: bool = False, **kwargs) -> PCN:
    """PCN-VGG5 for SVHN at the published width."""
    return _create("pcn_vgg5_svhn", pretrained, **(_BASE | kwargs))


@register_model
def pcn_vgg5_cifar10(pretrained: bool = False, **kwargs) -> PCN:
    """PCN-VGG5 for CIFAR-10 at the published width."""
    return _create("pcn_vgg5_cifar10", pretrained, **(_BASE | kwargs))


@register_model
def pcn_vgg5_cifar100(pretrained: bool = False, **kwargs) -> PCN:
    """PCN-VGG5 for CIFAR-100 at the published width."""
    return _create("pcn_vgg5_cifar100", pretrained, **(_BASE | kwargs))


@register_model
def pcn_vgg5_small_mnist(pretrained: bool = False, **kwargs) -> PCN:
    """PCN-VGG5 for MNIST at a quarter of the published width."""
    return _create("pcn_vgg5_small_mnist", pretrained, **(_SMALL | kwargs))


@register_model
def pcn_vgg5_small_fashion_mnist(pretrained: bool = False, **kwargs) -> PCN:
    """PCN-VGG5 for Fashion-MNIST at a quarter of the published width."""
    return _create("pcn_vgg5_small_fashion_mnist", pretrained, **(_SMALL | kwargs))


@register_model
def pcn_vgg5_small_svhn(pretrained: bool = False, **kwargs) -> PCN:
    """PCN-VGG5 for SVHN at a quarter of the published width."""
    return _create("pcn_vgg5_small_svhn", pretrained, **(_SMALL | kwargs))


@register_model
def pcn_vgg5_small_cifar10(pretrained: bool = False, **kwargs) -> PCN:
    """PCN-VGG5 for CIFAR-10 at a quarter of the published width."""
    return _create("pcn_vgg5_small_cifar10", pretrained, **(_SMALL | kwargs))


@register_model
def pcn_vgg5_small_cifar100(pretrained: bool = False, **kwargs) -> PCN:
    """PCN-VGG5 for CIFAR-100 at a quarter of the published width."""
    return _create("pcn_vgg5_small_cifar100", pretrained, **(_SMALL | kwargs))


@register_model
def pcn_vgg5_tiny_mnist(pretrained: bool = False, **kwargs) -> PCN:
    """PCN-VGG5 for MNIST at an eighth of the published width."""
    return _create("pcn_vgg5_tiny_mnist", pretrained, **(_TINY | kwargs))


@register_model
def pcn_vgg5_tiny_fashion_mnist(pretrained: bool = False, **kwargs) -> PCN:
    """PCN-VGG5 for Fashion-MNIST at an eighth of the published width."""
    return _create("pcn_vgg5_tiny_fashion_mnist", pretrained, **(_TINY | kwargs))


@register_model
def pcn_vgg5_tiny_svhn(pretrained: bool = False, **kwargs) -> PCN:
    """PCN-VGG5 for SVHN at an eighth of the published width."""
    return _create("pcn_vgg5_tiny_svhn", pretrained, **(_TINY | kwargs))


@register_model
def pcn_vgg5_tiny_cifar10(pretrained: bool = False, **kwargs) -> PCN:
    """PCN-VGG5 for CIFAR-10 at an eighth of the published width."""
    return _create("pcn_vgg5_tiny_cifar10", pretrained, **(_TINY | kwargs))


@register_model
def pcn_vgg5_tiny_cifar100(pretrained: bool = False, **kwargs) -> PCN:
    """PCN-VGG5 for CIFAR-100 at an eighth of the published width."""
    return _create("pcn_vgg5_tiny_cifar100", pretrained, **(_TINY | kwargs))


@register_model
def pcn_vgg10(pretrained: bool = False, **kwargs) -> PCN:
    """PCN-VGG10 for images of 224 pixels and 1,000 classes."""
    return _create("pcn_vgg10", pretrained, **(_VGG10 | kwargs))
