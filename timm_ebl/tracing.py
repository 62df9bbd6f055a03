"""The relaxation of a network as `torch.fx` and `torch.jit` hold it: one node of a graph, or a recorded trace."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
import torch.fx
from torch import Tensor, nn

from .backward import Backward, equilibrium
from .interaction import Interaction
from .minimize import Minimizer
from .network import HopfieldNetwork

__all__ = ["Traced", "graph_equilibrium", "is_symbolic"]


def is_symbolic(x: Tensor) -> bool:
    """Whether a tensor stands for the values to come, while `torch.fx` traces a graph."""
    return isinstance(x, torch.fx.Proxy)


def graph_equilibrium(
    network: HopfieldNetwork, x: Tensor, backward: Backward, layers: tuple[int, ...]
) -> tuple[Tensor, ...]:
    """`timm_ebl.backward.equilibrium` as one node of a graph.

    A graph can hold the parts of the network that it is traced from, but not the network itself.
    """
    return _node(tuple(network.interactions), network.minimizer, backward, x, layers)


class _Stack(HopfieldNetwork):
    """A network of interactions, bare."""

    def __init__(self, interactions: Sequence[nn.Module], minimizer: Minimizer) -> None:
        super().__init__()
        self.stack, self.minimizer = nn.ModuleList(interactions), minimizer

    @property
    def interactions(self) -> Sequence[Interaction]:
        return list(self.stack)


@torch.fx.wrap
def _node(interactions, minimizer, backward, x, layers) -> tuple[Tensor, ...]:
    return equilibrium(_Stack(interactions, minimizer), x, backward, layers)


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
