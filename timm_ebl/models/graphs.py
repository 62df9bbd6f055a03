"""A network as graphs hold it: a node of `torch.fx` or `torch.compile`, or a trace of `torch.jit`."""

from __future__ import annotations

import secrets
import warnings
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import torch
import torch.fx
from torch import Tensor, nn

from ..kernels.autocast import has_autocast
from ..kernels.native import is_exporting
from ..rules.autograd import equilibrium
from .network import HopfieldNetwork

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.fx import Proxy

    from ..energy.graph import Graph
    from ..rules.backward import Backward

__all__ = [
    "FreeLayers",
    "Stack",
    "compiled_layers",
    "is_symbolic",
    "recorded",
    "register_network",
    "traced",
]

_NETWORKS: WeakValueDictionary[int, HopfieldNetwork] = WeakValueDictionary()
_PREFERENCES = ("minimizer", "perturbed", "unrolled", "adjoint", "beta", "force")
"""What an `EnergyModel` says of how it relaxes."""


def is_symbolic(x: Tensor) -> bool:
    """Whether a tensor stands for the values to come, while `torch.fx` traces a graph."""
    return isinstance(x, torch.fx.Proxy)


class Stack(HopfieldNetwork):
    """A network, bare, whose ``forward`` is a function with derivatives.

    Args:
        network: The network, whose interactions it has, and whose preferences.
        backward: How to differentiate.
        layers: Which layers of the free state ``forward`` returns, by index.
    """

    def __init__(self, network: HopfieldNetwork, backward: Backward, layers: tuple[int, ...]) -> None:
        super().__init__()
        self.stack = nn.ModuleList(network.graph.interactions)
        for name in _PREFERENCES:
            setattr(self, name, getattr(network, name))
        self.backward, self.layers = backward, layers
        self._graph = network.graph

    @property
    def graph(self) -> Graph:
        return self._graph

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The layers asked for."""
        return equilibrium(self, x, self.backward, self.layers)


class FreeLayers(nn.Module):
    """Layers of a network's free state as a node of a graph of `torch.fx`: a function of the input and the weights.

    The node has no parameters: the graph has those of the network, under their names, and hands them to it.

    Args:
        network: The network.
        image: Shape ``(C, H, W)`` of its input.
    """

    def __init__(self, network: Stack, image: Sequence[int]) -> None:
        super().__init__()
        self._hidden, self.image = (network,), image  # in a tuple, or its parameters would be those of the node

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers of the network, by name."""
        (network,) = self._hidden
        return {**dict(network.named_parameters()), **dict(network.named_buffers())}

    def train(self, mode: bool = True) -> FreeLayers:
        """Set the mode of the interactions too."""
        self._hidden[0].train(mode)
        return super().train(mode)

    def forward(self, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The layers, for these values of `tensors`; while `torch.fx` traces, the node that stands for them."""
        if is_symbolic(x):
            return x.tracer.create_proxy("call_module", x.tracer.path_of_module(self), (x, *tensors), {})
        (network,), own = self._hidden, self.tensors()
        if all(now is then for now, then in zip(own.values(), tensors, strict=True)):  # so in a trace of torch.jit
            return network(x)
        return torch.func.functional_call(network, dict(zip(own, tensors, strict=True)), (x,))

    def __prepare_scriptable__(self) -> nn.Module:
        """What `torch.jit.script` puts in this node's place, in the graph that it is given as well."""
        tensors = self.tensors().values()
        return traced(self, next(iter(tensors)).new_zeros(2, *self.image), *tensors)


def recorded(network: nn.Module, name: str, x: Proxy) -> Proxy:
    """The layers to come, by a node that is an attribute of a network, while `torch.fx` traces a graph."""
    node, path = getattr(network, name), x.tracer.path_of_module(network)
    x.tracer.submodule_paths[node] = f"{path}.{name}" if path else name
    return node(x, *node.tensors().values())


def traced(module: nn.Module, *inputs: Tensor) -> nn.Module:
    """A module as recorded by `torch.jit.trace`, given an example: for inference, with batches of any size."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(module, inputs, check_trace=False)


def register_network(network: HopfieldNetwork) -> int:
    """A number by which a compiled graph of this process finds a network; in another process it finds none."""
    key = secrets.randbits(62)
    _NETWORKS[key] = network
    return key


def compiled_layers(network: HopfieldNetwork, key: int, x: Tensor, layers: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Layers of the free state without derivatives, in the graph that Dynamo makes.

    They are one operator, which finds the network when it runs. For `torch.export`, they are the relaxation itself.

    Args:
        network: The network.
        key: Its number (`register_network`).
        x: Input ``(B, ..)``.
        layers: Which layers, by index.
    """
    parameters = list(network.parameters())
    if is_exporting():
        return tuple(_exported_layers(x, parameters, key, layers))
    device = x.device.type
    autocast = torch.get_autocast_dtype(device) if has_autocast(device) else None
    return tuple(torch.ops.timm_ebl.relaxed_layers(x, parameters, key, layers, autocast))


def _network(key: int) -> HopfieldNetwork:
    """The network of a number.

    Raises:
        RuntimeError: There is none: it is gone, or of another process.
    """
    if key not in _NETWORKS:
        raise RuntimeError("The network of this compiled graph is not in this process: compile it here, or export it.")
    return _NETWORKS[key]


@torch.compiler.allow_in_graph  # Dynamo leaves it as it is; the export then looks inside
def _exported_layers(x, parameters, key, layers):
    return _network(key).relaxed(parameters, x, tuple(layers))


@torch.library.custom_op(
    "timm_ebl::relaxed_layers",
    mutates_args=(),
    schema="(Tensor x, Tensor[] parameters, int network, int[] layers, ScalarType? autocast) -> Tensor[]",
)
def _relaxed_layers(x, parameters, network, layers, autocast):
    model, device = _network(network), x.device.type
    with torch.autocast(device, autocast, enabled=autocast is not None):
        found = model.relaxed(parameters, x, tuple(layers))
    kind = {"dtype": parameters[0].dtype, "memory_format": torch.contiguous_format}  # as the graph expects it
    return [layer.to(**kind, copy=True) for layer in found]


@_relaxed_layers.register_fake
def _(x, parameters, network, layers, autocast):
    shapes = _network(network).state_shapes(x)
    return [x.new_empty(shapes[layer], dtype=parameters[0].dtype) for layer in layers]
