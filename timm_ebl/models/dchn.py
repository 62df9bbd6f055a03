"""Deep convolutional Hopfield network (DCHN).

Papers:
* `Energy-Based Learning Algorithms: A Comparative Study` (Sections 3 and 4)
* `Scaling equilibrium propagation to deep convnets by drastically reducing its gradient estimator bias`
  (Laborieux et al., 2021), where the network comes from

Hidden layers, each joined to the one below by a convolution and pooling, and a dense read-out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from timm.models import register_model
from torch import nn

from ..arguments import Choice, as_plain, is_count
from ..relaxation.minimizer import Minimizer, Start
from .configs import DATASET_NAMES, SIZES, data_cfg, with_checkpoints
from .factory import build_network, register_family
from .hopfield import TimmHopfieldNetwork
from .interactions import AveragePooled, ConvInteraction

if TYPE_CHECKING:
    from ..rules.backward import Backward

__all__ = ["DCHN", "Pooling", "default_cfgs"]


class Pooling(Choice):
    """How a convolution is pooled."""

    MAX = "max"
    AVERAGE = "average"

    @property
    def interaction(self) -> type[ConvInteraction]:
        """The interaction pooled in this way."""
        return AveragePooled if self is Pooling.AVERAGE else ConvInteraction


@register_family
class DCHN(TimmHopfieldNetwork):
    """Deep convolutional Hopfield network.

    Args:
        widths: Channels of the hidden layers, from the input upwards.
        num_classes: Units ``M`` of the output layer; 0 for none, the network then ends at the last hidden layer.
        in_chans: Channels of the input.
        img_size: Height and width of the input in pixels (one number for a square).
        global_pool: ``"flatten"``, as the read-out is dense; without classes also ``""``, which leaves the last hidden
            layer a map.
        drop_rate: Present for timm's sake, whose scripts pass it to every model; a DCHN has no dropout, so it is 0.
        gains: Initial gain of each interaction, read-out last, or one for all: weights start in
            ``U(+-gain / sqrt(fan_in))``.
        bias_gain: The same for the biases.
        kernel_size: Side of the kernels.
        pool: Side of the pooling windows.
        pooling: ``"max"``, as in the paper, or ``"average"``.
        order: Order of update (`timm_ebl.relaxation.order.list_orders`).
        sweeps: Sweeps of a relaxation, by default 7; with a tolerance the most of them, by default 1000.
        tolerance: Residual at which the relaxation of a sample stops; ``None`` for a fixed number of sweeps.
        omega: Over-relaxation of the hidden layers, between 0 and 2, or one for each sweep.
        start: ``"zero"`` or ``"feedforward"``.
        compiled: Whether sweeps are compiled (`timm_ebl.Minimizer`).
        backward: How a loss is differentiated: ``"ep"``, ``"tbp"``, ``"rbp"`` (`timm_ebl.create_backward`), or a
            `Backward`. It is an attribute too, free to be set.
        device: Device of the parameters.
        dtype: Type of the parameters.

    Raises:
        ValueError: An argument is out of range; the message says which.
    """

    def __init__(
        self,
        widths: Sequence[int] = (128, 256, 512, 512),
        num_classes: int = 10,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 32,
        global_pool: str = "flatten",
        drop_rate: float = 0.0,
        gains: float | Sequence[float] = 0.5,
        bias_gain: float = 0.5,
        kernel_size: int = 3,
        pool: int = 2,
        pooling: str | Pooling = Pooling.MAX,
        order: str = Minimizer.order,
        sweeps: int | None = None,
        tolerance: float | None = None,
        omega: float | Sequence[float] = Minimizer.omega,
        start: str | Start = Minimizer.start,
        compiled: bool = False,
        backward: str | Backward = "ep",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not isinstance(widths, Sequence) or not widths or not all(map(is_count, widths)):
            raise ValueError(f"widths is a non-empty sequence of positive channel counts, not {widths!r}.")
        minimizer = Minimizer(
            order=order, sweeps=sweeps, tolerance=tolerance, omega=omega, start=start, compiled=compiled
        )
        super().__init__(
            num_classes=num_classes,
            in_chans=in_chans,
            img_size=img_size,
            global_pool=global_pool,
            drop_rate=drop_rate,
            bias_gain=bias_gain,
            minimizer=minimizer,
            backward=backward,
        )
        self.pooling, widths, pool = Pooling(pooling), as_plain(widths), as_plain(pool)
        self.layers = nn.ModuleList(
            self.pooling.interaction(lower, upper, kernel_size, pool, device=device, dtype=dtype)
            for lower, upper in zip((in_chans, *widths), widths, strict=False)
        )
        self.feature_info = [
            {"num_chs": width, "reduction": pool**level, "module": f"layers.{level - 1}"}
            for level, width in enumerate(widths, 1)
        ]
        self.num_features = widths[-1]
        self.add_head(gains, device=device, dtype=dtype)
        minimizer.groups(self.graph.neighbours)

    def extra_repr(self) -> str:
        """Pooling, energy, minimiser and backward pass."""
        return f"pooling={str(self.pooling)!r}, {super().extra_repr()}"


_PAPER = "Energy-Based Learning Algorithms: A Comparative Study"
default_cfgs = with_checkpoints(
    {f"dchn_{size}{name}": data_cfg(name, paper_name=_PAPER) for size in SIZES for name in DATASET_NAMES}
)

# The paper's gains leave the states of a narrow network almost at zero, from where it learns nothing for an epoch.
_BASE = {"widths": (128, 256, 512, 512)}
_SMALL = {"widths": (32, 64, 128, 128), "gains": 0.8}
_TINY = {"widths": (16, 32, 64, 64), "gains": 0.8}
_CIFAR10 = {"gains": (0.4, 0.7, 0.6, 0.3, 0.4)}
_CIFAR100 = {"gains": (0.5, 0.4, 0.5, 0.8, 0.5)}


def _create(variant: str, pretrained: bool = False, **kwargs: Any) -> DCHN:
    hidden = len(kwargs["widths"]) if isinstance(kwargs["widths"], Sequence) else 0  # anything else is refused later
    return build_network(DCHN, variant, pretrained, hidden, **kwargs)


@register_model
def dchn_mnist(pretrained: bool = False, **kwargs) -> DCHN:
    """DCHN for MNIST at the paper's width, 128-256-512-512."""
    return _create("dchn_mnist", pretrained, **(_BASE | kwargs))


@register_model
def dchn_fashion_mnist(pretrained: bool = False, **kwargs) -> DCHN:
    """DCHN for Fashion-MNIST at the paper's width, 128-256-512-512."""
    return _create("dchn_fashion_mnist", pretrained, **(_BASE | kwargs))


@register_model
def dchn_svhn(pretrained: bool = False, **kwargs) -> DCHN:
    """DCHN for SVHN at the paper's width, 128-256-512-512."""
    return _create("dchn_svhn", pretrained, **(_BASE | kwargs))


@register_model
def dchn_cifar10(pretrained: bool = False, **kwargs) -> DCHN:
    """DCHN for CIFAR-10 at the paper's width, 128-256-512-512."""
    return _create("dchn_cifar10", pretrained, **(_BASE | _CIFAR10 | kwargs))


@register_model
def dchn_cifar100(pretrained: bool = False, **kwargs) -> DCHN:
    """DCHN for CIFAR-100 at the paper's width, 128-256-512-512."""
    return _create("dchn_cifar100", pretrained, **(_BASE | _CIFAR100 | kwargs))


@register_model
def dchn_small_mnist(pretrained: bool = False, **kwargs) -> DCHN:
    """DCHN for MNIST at a quarter of the paper's width, 32-64-128-128."""
    return _create("dchn_small_mnist", pretrained, **(_SMALL | kwargs))


@register_model
def dchn_small_fashion_mnist(pretrained: bool = False, **kwargs) -> DCHN:
    """DCHN for Fashion-MNIST at a quarter of the paper's width, 32-64-128-128."""
    return _create("dchn_small_fashion_mnist", pretrained, **(_SMALL | kwargs))


@register_model
def dchn_small_svhn(pretrained: bool = False, **kwargs) -> DCHN:
    """DCHN for SVHN at a quarter of the paper's width, 32-64-128-128."""
    return _create("dchn_small_svhn", pretrained, **(_SMALL | kwargs))


@register_model
def dchn_small_cifar10(pretrained: bool = False, **kwargs) -> DCHN:
    """DCHN for CIFAR-10 at a quarter of the paper's width, 32-64-128-128."""
    return _create("dchn_small_cifar10", pretrained, **(_SMALL | kwargs))


@register_model
def dchn_small_cifar100(pretrained: bool = False, **kwargs) -> DCHN:
    """DCHN for CIFAR-100 at a quarter of the paper's width, 32-64-128-128."""
    return _create("dchn_small_cifar100", pretrained, **(_SMALL | kwargs))


@register_model
def dchn_tiny_mnist(pretrained: bool = False, **kwargs) -> DCHN:
    """DCHN for MNIST at an eighth of the paper's width, 16-32-64-64."""
    return _create("dchn_tiny_mnist", pretrained, **(_TINY | kwargs))


@register_model
def dchn_tiny_fashion_mnist(pretrained: bool = False, **kwargs) -> DCHN:
    """DCHN for Fashion-MNIST at an eighth of the paper's width, 16-32-64-64."""
    return _create("dchn_tiny_fashion_mnist", pretrained, **(_TINY | kwargs))


@register_model
def dchn_tiny_svhn(pretrained: bool = False, **kwargs) -> DCHN:
    """DCHN for SVHN at an eighth of the paper's width, 16-32-64-64."""
    return _create("dchn_tiny_svhn", pretrained, **(_TINY | kwargs))


@register_model
def dchn_tiny_cifar10(pretrained: bool = False, **kwargs) -> DCHN:
    """DCHN for CIFAR-10 at an eighth of the paper's width, 16-32-64-64."""
    return _create("dchn_tiny_cifar10", pretrained, **(_TINY | kwargs))


@register_model
def dchn_tiny_cifar100(pretrained: bool = False, **kwargs) -> DCHN:
    """DCHN for CIFAR-100 at an eighth of the paper's width, 16-32-64-64."""
    return _create("dchn_tiny_cifar100", pretrained, **(_TINY | kwargs))
