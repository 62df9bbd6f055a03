"""The published procedures of centred equilibrium propagation, simulated plainly: what ours is compared with.

Of a network, its graph and its parameters are read, and PyTorch's functional operations make the rest. Every update
computes its drives and feedbacks anew, and nothing is kept for the next one. Chains of pooled convolutions have their
reference (`timm_ebl.rules.reference`); here are networks with skips and predictive coding networks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..energy.graph import Graph
from ..errors import ConfigError
from ..models.interactions import AveragePooled, ConvInteraction, DenseInteraction, RectifiedConv
from ..models.predictive import PredictiveCodingNetwork
from ..relaxation.minimizer import PAPER, Minimizer
from ..rules import reference
from .throughput import beyond

if TYPE_CHECKING:
    from ..energy.functional import State
    from ..energy.interaction import Interaction
    from ..models.layered import LayeredNetwork
    from ..relaxation.order import Groups

__all__ = ["Family", "Simulation", "family", "simulation"]


class Family(NamedTuple):
    """What is compared for a family of networks.

    Attributes:
        name: What its published procedure is called.
        free: The free phase of that.
        nudged_sweeps: Sweeps of each of its two nudged phases.
        beta: Its strength of the nudge.
        ours: Our free phase by default.
    """

    name: str
    free: Minimizer
    nudged_sweeps: int
    beta: float
    ours: Minimizer


def family(model: LayeredNetwork) -> Family:
    """The family of a network: predictive coding, the paper's chains, or Hopfield networks with skips."""
    if isinstance(model, PredictiveCodingNetwork):  # arXiv 2606.03584: PCN-VGG5, and PCN-VGG10 with its ten layers
        sweeps, beta = (10, 0.05) if len(model.graph.layers) == 10 else (5, 0.02)
        return Family("published", model.unrolled, sweeps, beta, model.unrolled)
    if _is_chain(model):
        return Family("paper", PAPER, 20, 0.25, type(model).minimizer)
    return Family("published", replace(PAPER, sweeps=120), 50, 0.1, type(model).minimizer)  # arXiv 2509.26003


class Simulation(ABC):
    """A procedure of centred equilibrium propagation on a network."""

    @abstractmethod
    def free(self, x: Tensor, sweeps: int) -> State:
        """The free phase: so many sweeps from zero; in predictive coding a forward pass."""

    @abstractmethod
    def gradients(self, x: Tensor, y: Tensor, free: State, beta: float, sweeps: int) -> list[Tensor]:
        """The gradient in every parameter, from two nudged phases of so many sweeps, mean over the batch.

        Args:
            x: Input ``(B, ..)``.
            y: Desired outputs ``(B, M)``.
            free: The free state.
            beta: Strength of the nudge.
            sweeps: Sweeps of each nudged phase.
        """


def simulation(model: LayeredNetwork, order: str = PAPER.order) -> Simulation:
    """The published procedure for a network.

    Args:
        model: The network.
        order: Which layers of a Hopfield network are updated together: ``"asynchronous"`` or ``"synchronous"``.

    Raises:
        ConfigError: None is for networks of its kind.
    """
    graph, parts = model.graph, model.interactions
    if isinstance(model, PredictiveCodingNetwork) and {*map(type, parts)} <= {RectifiedConv, DenseInteraction}:
        return PredictiveSimulation(graph, _even_then_odd(len(graph.layers)))
    *convolutions, read_out = parts
    if all(isinstance(part, ConvInteraction) for part in convolutions) and isinstance(read_out, DenseInteraction):
        if _is_chain(model) and all(part.stride == (1, 1) for part in convolutions):
            layers = [reference.Layer(c.weight, c.bias, c.pool, isinstance(c, AveragePooled)) for c in convolutions]
            groups = {"asynchronous": reference.asynchronous, "synchronous": reference.synchronous}[order]
            return ChainSimulation([*layers, reference.Layer(read_out.weight, read_out.bias)], groups)
        if all(part.pool == 1 for part in convolutions):
            return HopfieldSimulation(graph, replace(PAPER, order=order).groups(graph.neighbours))
    raise ConfigError(
        "The published procedures are for chains of convolutions, each pooled, and a dense read-out, for graphs of "
        "convolutions without pooling and a dense read-out, and for predictive coding, and this network is none of "
        "these: there is nothing to compare it with (--study compares our settings of a Hopfield network)."
    )


@dataclass(frozen=True)
class ChainSimulation(Simulation):
    """The paper's procedure on a DCHN, by its reference."""

    layers: list[reference.Layer]
    order: reference.Order

    @torch.no_grad()
    def free(self, x: Tensor, sweeps: int) -> State:
        start = reference.zero_state(self.layers, x)
        return reference.relax(self.layers, x, start, sweeps, self.order(len(self.layers)))

    def gradients(self, x: Tensor, y: Tensor, free: State, beta: float, sweeps: int) -> list[Tensor]:
        return reference.gradients("c-ep", self.layers, x, y, free, beta, sweeps, self.order)


@dataclass(frozen=True)
class GraphSimulation(Simulation):
    """What both families on a graph have: sweeps, the nudge of the output, and the contrast of two energies."""

    graph: Graph
    groups: Groups

    @abstractmethod
    def update(self, x: Tensor, state: State, k: int) -> Tensor:
        """A layer after its free update, given the others."""

    @abstractmethod
    def energy(self, x: Tensor, state: State) -> Tensor:
        """``E(theta, x, s)``, ``(B,)``."""

    def drive(self, x: Tensor, state: State, k: int) -> Tensor:
        """The sum of the drives into a layer."""
        edges = [self.graph.edges[edge] for edge in self.graph.incoming[k]]
        drives = [_drive(part, x if lower is None else state[lower]) for part, lower, _ in edges]
        return reduce(torch.add, drives)

    @torch.no_grad()
    def relax(self, x: Tensor, state: State, sweeps: int, y: Tensor | None = None, beta: float = 0.0) -> State:
        """The state after so many sweeps; the output's update is nudged: ``o <- drive - beta (o - y)``."""
        last = len(state) - 1
        for _ in range(sweeps):
            for group in self.groups:
                new = {k: self.update(x, state, k) for k in group}
                if y is not None and last in new:
                    new[last] = new[last] - beta * (state[last] - y)
                state = tuple(new.get(k, layer) for k, layer in enumerate(state))
        return state

    def gradients(self, x: Tensor, y: Tensor, free: State, beta: float, sweeps: int) -> list[Tensor]:
        first, second = (self.relax(x, free, sweeps, y, signed) for signed in (-beta, beta))
        contrast = (self.energy(x, second) - self.energy(x, first)).mean() / (2 * beta)
        parameters = [parameter for part in self.graph.interactions for parameter in part.parameters()]
        return list(torch.autograd.grad(contrast, parameters))


class HopfieldSimulation(GraphSimulation):
    """Hopfield networks with skips, strides and bounds, without pooling.

    ``s_k <- clip(sum_j drive_jk(s_j) + sum_m w_km^T s_m)`` over the layers ``j`` below and ``m`` above.
    """

    def free(self, x: Tensor, sweeps: int) -> State:
        return self.relax(x, tuple(x.new_zeros(shape) for shape in self.graph.shapes(x.shape)), sweeps)

    def update(self, x: Tensor, state: State, k: int) -> Tensor:
        above = [self.graph.edges[edge] for edge in self.graph.outgoing[k]]
        feedbacks = [_transposed(part, state[k].shape, state[upper]) for part, _, upper in above]
        return self.graph.layers[k].clip(reduce(torch.add, feedbacks, self.drive(x, state, k)))

    def energy(self, x: Tensor, state: State) -> Tensor:
        return sum((s * (s / 2 - self.drive(x, state, k))).flatten(1).sum(1) for k, s in enumerate(state))


class PredictiveSimulation(GraphSimulation):
    """Predictive coding networks: ``h_k <- clip(a_k + sum_m J_km^T e_m)``, ``e_m = h_m - f_m`` (arXiv 2606.03584)."""

    @torch.no_grad()
    def free(self, x: Tensor, sweeps: int) -> State:
        state: State = ()
        for k in range(len(self.graph.layers)):
            state = (*state, self.prediction(x, state, k))
        return state

    def prediction(self, x: Tensor, state: State, k: int) -> Tensor:
        """``f_k = clip(a_k)``, ``a_k`` the sum of the drives into layer ``k``."""
        return self.graph.layers[k].clip(self.drive(x, state, k))

    def update(self, x: Tensor, state: State, k: int) -> Tensor:
        field, uppers = self.drive(x, state, k), {self.graph.edges[edge].upper for edge in self.graph.outgoing[k]}
        if uppers:
            layer = state[k].detach().requires_grad_()
            with torch.enable_grad():
                predictions = [self.prediction(x, (*state[:k], layer, *state[k + 1 :]), m) for m in uppers]
            errors = [state[m] - f.detach() for m, f in zip(uppers, predictions, strict=True)]
            field = field + torch.autograd.grad(predictions, layer, errors)[0]
        return self.graph.layers[k].clip(field)

    def energy(self, x: Tensor, state: State) -> Tensor:
        """``1/2 sum_k |e_k|^2``: its gradient in the parameters of layer ``k`` is ``-(d f_k)^T e_k``."""
        errors = [h - self.prediction(x, state, k) for k, h in enumerate(state)]
        return sum(error.square().flatten(1).sum(1) for error in errors) / 2


def _is_chain(model: LayeredNetwork) -> bool:
    """Whether the layers lie between 0 and 1, one above the other."""
    return model.graph == Graph.chain(model.interactions)


def _even_then_odd(count: int) -> Groups:
    """Of the layers 1, 2, .. the even ones together, then the odd ones."""
    return tuple(range(1, count, 2)), tuple(range(0, count, 2))


def _drive(part: Interaction, lower: Tensor) -> Tensor:
    if isinstance(part, DenseInteraction):
        return F.linear(lower.flatten(1), part.weight, part.bias)
    maps = F.conv2d(lower, part.weight, part.bias, part.stride, part.padding)
    return F.max_pool2d(maps, part.pool) if part.pool > 1 else maps


def _transposed(part: Interaction, shape: torch.Size, upper: Tensor) -> Tensor:
    """``w^T`` times an upper layer; the lower one is of a shape."""
    if isinstance(part, DenseInteraction):
        return (upper @ part.weight).view(shape)
    return F.conv_transpose2d(upper, part.weight, None, part.stride, part.padding, beyond(part, shape))
