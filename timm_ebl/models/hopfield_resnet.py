"""Hopfield network with skip connections (Hopfield-ResNet13).

Papers:
* arXiv 2509.26003 (the network, its procedure and its settings)

Blocks of two hidden layers of the same width. In every block a convolution leads from the layer below to the first
layer, one of stride 2 from the first to the second, and a skip, a 1x1 convolution of stride 2 without a bias, from the
layer below to the second. There is no pooling: between the bounds of the units, the energy is exactly quadratic. A
dense read-out follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from timm.models import register_model
from torch import nn

from ..arguments import as_plain, is_count
from ..energy.graph import Edge, Graph, Layer
from ..relaxation.minimizer import Minimizer, Start
from .configs import DATASET_NAMES, SIZES, data_cfg, with_checkpoints
from .factory import build_network, register_family
from .hopfield import TimmHopfieldNetwork
from .interactions import ConvInteraction

if TYPE_CHECKING:
    from ..energy.interaction import Interaction
    from ..rules.backward import Backward

__all__ = ["HopfieldResNet", "default_cfgs"]

BOUNDS = (0.0, 6.0)
"""Between which values every hidden unit lies."""

SWEEPS, OMEGA = 15, 1.8
"""Sweeps and over-relaxation by default: it converges more slowly than a DCHN, and best with a constant omega."""

_GAINS, _HEAD_GAIN = (0.6, 0.6, 0.7), 0.8
"""The published gains of the interactions of a block, and of the read-out."""


@register_family
class HopfieldResNet(TimmHopfieldNetwork):
    """Hopfield network with skip connections.

    Args:
        widths: Channels of the blocks, from the input upwards; a block has two hidden layers.
        num_classes: Units ``M`` of the output layer; 0 for none, the network then ends at the last hidden layer.
        in_chans: Channels of the input.
        img_size: Height and width of the input in pixels (one number for a square).
        global_pool: ``"flatten"``, as the read-out is dense; without classes also ``""``, which leaves the last hidden
            layer a map.
        drop_rate: Present for timm's sake, whose scripts pass it to every model; there is no dropout, so it is 0.
        gains: Initial gain of each interaction, block by block (to the first layer, to the second, skip), read-out
            last, or one for all: weights start in ``U(+-gain / sqrt(fan_in))``. By default the published ones.
        bias_gain: The same for the biases.
        order: Order of update (`timm_ebl.relaxation.order.list_orders`).
        sweeps: Sweeps of a relaxation, by default 15; with a tolerance the most of them, by default 1000.
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

    minimizer = Minimizer(sweeps=SWEEPS, omega=OMEGA)
    perturbed = Minimizer(order="backward", sweeps=5, omega=(1.6, 1.6, 1.5, 1.4, 1.2))

    def __init__(
        self,
        widths: Sequence[int] = (128, 256, 512, 512),
        num_classes: int = 10,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 32,
        global_pool: str = "flatten",
        drop_rate: float = 0.0,
        gains: float | Sequence[float] | None = None,
        bias_gain: float = 0.5,
        order: str = Minimizer.order,
        sweeps: int | None = None,
        tolerance: float | None = None,
        omega: float | Sequence[float] = OMEGA,
        start: str | Start = Minimizer.start,
        compiled: bool = False,
        backward: str | Backward = "ep",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not isinstance(widths, Sequence) or not widths or not all(map(is_count, widths)):
            raise ValueError(f"widths is a non-empty sequence of positive channel counts, not {widths!r}.")
        if sweeps is None and tolerance is None:
            sweeps = SWEEPS
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
        factory, widths = {"device": device, "dtype": dtype}, as_plain(widths)
        self.layers = nn.ModuleList()
        self.feature_info = []
        for block, (below, width) in enumerate(zip((in_chans, *widths), widths, strict=False)):
            self.layers += [
                ConvInteraction(below, width, pool=1, **factory),
                ConvInteraction(width, width, pool=1, stride=2, **factory),
                ConvInteraction(below, width, kernel_size=1, pool=1, stride=2, bias=False, **factory),
            ]
            self.feature_info += [
                {"num_chs": width, "reduction": 2 ** (block + step), "module": f"layers.{3 * block + step}"}
                for step in (0, 1)
            ]
        self.num_features = widths[-1]
        self.add_head((*_GAINS * len(widths), _HEAD_GAIN) if gains is None else gains, **factory)
        minimizer.groups(self.graph.neighbours)

    def joined(self, parts: Sequence[Interaction]) -> Graph:
        """Blocks ``in -> a``, ``a -> b`` and the skip ``in -> b``, each from the last layer of the one below."""
        edges, below = [], None
        *blocks, head = parts
        for a in range(0, 2 * len(blocks) // 3, 2):
            first, second, skip = blocks[3 * a // 2 :][:3]
            edges += [Edge(first, below, a), Edge(second, a, a + 1), Edge(skip, below, a + 1)]
            below = a + 1
        return Graph((*[Layer(BOUNDS)] * (below + 1), Layer(None)), (*edges, Edge(head, below, below + 1)))

    def top_shape(self, img_size: tuple[int, int]) -> torch.Size:
        shape = torch.Size([self.in_chans, *img_size])
        for skip in self.layers[2::3]:
            shape = skip.shape(shape)
        return shape


_WIDTHS = {"": (128, 256, 512, 512), "small_": (32, 64, 128, 128), "tiny_": (16, 32, 64, 64)}
_VARIANTS = {f"hopfield_resnet13_{size}{dataset}": (dataset, size) for size in SIZES for dataset in DATASET_NAMES}
_PAPER = {"paper_ids": "arXiv:2509.26003", "first_conv": ("layers.0", "layers.2")}
default_cfgs = with_checkpoints({name: data_cfg(dataset, **_PAPER) for name, (dataset, _) in _VARIANTS.items()})


def _entry(variant: str, size: str) -> None:
    """Register a model with timm."""

    def create(pretrained: bool = False, **kwargs: Any) -> HopfieldResNet:
        kwargs = {"widths": _WIDTHS[size]} | kwargs
        hidden = 2 * len(kwargs["widths"]) if isinstance(kwargs["widths"], Sequence) else 0  # refused later
        return build_network(HopfieldResNet, variant, pretrained, hidden, **kwargs)

    create.__name__ = create.__qualname__ = variant
    create.__doc__ = f"Hopfield-ResNet13 with blocks of {'-'.join(map(str, _WIDTHS[size]))} channels."
    globals()[variant] = register_model(create)


for _variant, (_, _size) in _VARIANTS.items():
    _entry(_variant, _size)
