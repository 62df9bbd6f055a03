"""A network as graphs hold it: a node of `torch.fx` or `torch.compile`, or a trace of `torch.jit`."""

from __future__ import annotations

import itertools
import warnings
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import torch
import torch.fx
from torch import Tensor, nn

from ..kernels.autocast import has_autocast
from .network import HopfieldNetwork

if TYPE_CHECKING:
    from ..energy.graph import Graph
    from ..relaxation.minimizer import Minimizer

__all__ = ["Stack", "Traced", "compiled_layers", "is_symbolic", "register_network"]

_NETWORKS: WeakValueDictionary[int, HopfieldNetwork] = WeakValueDictionary()
_KEYS = itertools.count()


def is_symbolic(x: Tensor) -> bool:
    """Whether a tensor stands for the values to come, while `torch.fx` traces a graph."""
    return isinstance(x, torch.fx.Proxy)


class Stack(HopfieldNetwork):
    """A network of a graph, bare."""

    def __init__(self, graph: Graph, minimizer: Minimizer) -> None:
        super().__init__()
        self.stack, self.minimizer = nn.ModuleList(graph.interactions), minimizer
        self._graph = graph

    @property
    def graph(self) -> Graph:
        return self._graph


class Traced(nn.Module):
    """A network's forward pass as recorded by `torch.jit.trace`: for inference, with batches of any size.

    Args:
        network: The network.
        x: An example of its input, ``(B, C, H, W)``.
    """

    def __init__(self, network: nn.Module, x: Tensor) -> None:
        super().__init__()
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.network = torch.jit.trace(network, x, check_trace=False)

    def forward(self, x: Tensor) -> Tensor:
        """The output layer ``(B, M)``."""
        return self.network(x)


def register_network(network: HopfieldNetwork) -> int:
    """A number by which a compiled graph of this process finds a network."""
    key = next(_KEYS)
    _NETWORKS[key] = network
    return key


def compiled_layers(network: HopfieldNetwork, key: int, x: Tensor, layers: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Layers of the free state without derivatives, as one operator of the graph that `torch.compile` makes.

    Args:
        network: The network.
        key: Its number (`register_network`).
        x: Input ``(B, ..)``.
        layers: Which layers, by index.
    """
    device = x.device.type
    autocast = torch.get_autocast_dtype(device) if has_autocast(device) else None
    return tuple(torch.ops.timm_ebl.relaxed_layers(x, list(network.parameters()), key, layers, autocast))


@torch.library.custom_op(
    "timm_ebl::relaxed_layers",
    mutates_args=(),
    schema="(Tensor x, Tensor[] parameters, int network, int[] layers, ScalarType? autocast) -> Tensor[]",
)
def _relaxed_layers(x, parameters, network, layers, autocast):
    model, device = _NETWORKS[network], x.device.type
    with torch.autocast(device, autocast, enabled=autocast is not None):
        found = model.relaxed(parameters, x, tuple(layers))
    kind = {"dtype": parameters[0].dtype, "memory_format": torch.contiguous_format}  # as the graph expects it
    return [layer.to(**kind, copy=True) for layer in found]


@_relaxed_layers.register_fake
def _(x, parameters, network, layers, autocast):
    shapes = _NETWORKS[network].state_shapes(x)
    return [x.new_empty(shapes[layer], dtype=parameters[0].dtype) for layer in layers]
