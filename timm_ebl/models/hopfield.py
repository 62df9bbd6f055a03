"""What timm asks of a network, for every family of Hopfield networks in its registry.

The equilibrium states of the hidden layers are the feature maps; ``forward`` relaxes them from scratch for every input,
and any loss on them or on the output has its gradient by equilibrium propagation (`timm_ebl.rules.autograd`).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.fx
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ..arguments import is_count, is_number
from ..energy.graph import Edge, Graph, Layer
from ..energy.interaction import Interaction
from ..kernels.native import is_watched
from ..relaxation.checks import require_input
from ..rules.autograd import equilibrium, relaxed_layers, with_parameters
from ..rules.backward import Backward
from ..rules.catalogue import create_backward, name_of
from .flops import counted_flops
from .graphs import Stack, Traced, compiled_layers, is_symbolic, register_network
from .network import HopfieldNetwork
from .readout import ReadOut, as_global_pool, as_size

if TYPE_CHECKING:
    from ..energy.functional import State
    from ..relaxation.minimizer import Minimizer

__all__ = ["TimmHopfieldNetwork"]


class TimmHopfieldNetwork(ReadOut, HopfieldNetwork):
    """A Hopfield network of maps with a dense read-out, as timm's scripts use a model.

    A family names its interactions: `layers`, those that lead to the hidden layers, upwards, and `head`, the read-out
    of the last hidden layer. It sets `layers` and `feature_info`, with one entry for each hidden layer, tells
    `top_shape`, and `joined` if its graph is no chain, and then calls `add_head`.

    Args:
        num_classes: Units ``M`` of the output layer; 0 for none, the network then ends at the last hidden layer.
        in_chans: Channels of the input.
        img_size: Height and width of the input in pixels (one number for a square).
        global_pool: ``"flatten"``, as the read-out is dense; without classes also ``""``, which leaves the last hidden
            layer a map.
        drop_rate: Present for timm's sake, whose scripts pass it to every model; there is no dropout, so it is 0.
        bias_gain: Initial gain of the biases, which start in ``U(+-bias_gain / sqrt(fan_in))``.
        minimizer: How ``forward`` relaxes.
        backward: How a loss is differentiated: ``"ep"``, ``"tbp"``, ``"rbp"`` (`timm_ebl.create_backward`), or a
            `Backward`. It is an attribute too, free to be set.

    Raises:
        ValueError: An argument is out of range; the message says which.
    """

    layers: nn.ModuleList
    feature_info: list[dict[str, object]]
    gains: tuple[float, ...]
    _graph: Graph | None

    def __init__(
        self,
        *,
        num_classes: int,
        in_chans: int,
        img_size: int | tuple[int, int],
        global_pool: str,
        drop_rate: float,
        bias_gain: float,
        minimizer: Minimizer,
        backward: str | Backward,
    ) -> None:
        super().__init__()
        self._key, self._graph = register_network(self), None
        if not is_count(in_chans) or not is_count(num_classes, 0):
            raise ValueError(
                f"in_chans is a whole number of at least 1 and num_classes of at least 0; got {in_chans!r} and "
                f"{num_classes!r}."
            )
        if drop_rate:
            raise ValueError(f"A {type(self).__name__} has no dropout; got drop_rate={drop_rate!r}.")
        if not is_number(bias_gain) or not 0 <= bias_gain < math.inf:
            raise ValueError(f"bias_gain is a finite number of at least 0, not {bias_gain!r}.")
        self.num_classes, self.in_chans, self.bias_gain = num_classes, in_chans, bias_gain
        self.global_pool, self.img_size = as_global_pool(global_pool, num_classes), as_size(img_size)
        self.minimizer = minimizer
        self.backward = backward if isinstance(backward, Backward) else create_backward(backward)

    @abstractmethod
    def top_shape(self, img_size: tuple[int, int]) -> torch.Size:
        """Shape ``(C, H, W)`` of the last hidden layer for images of a size.

        Raises:
            ValueError: The images are too small.
        """

    def extra_repr(self) -> str:
        """Energy, minimiser and backward pass."""
        return f"energy='Hopfield'\n{super().extra_repr()}\nbackward={name_of(self.backward)!r}"

    @property
    def graph(self) -> Graph:
        parts = (*self.layers, self.head)
        if self._graph is None or any(a is not b for a, b in zip(parts, self._graph.interactions, strict=True)):
            if not isinstance(self.head, Interaction):
                raise TypeError(
                    f"head is a {type(self.head).__name__}, and the read-out of a {type(self).__name__} takes part in "
                    "its relaxation: model.reset_classifier(num_classes) makes one."
                )
            strangers = [layer for layer in self.layers if not isinstance(layer, Interaction)]
            if strangers:
                raise TypeError(
                    f"A layer of a {type(self).__name__} is a timm_ebl.Interaction, not a "
                    f"{type(strangers[0]).__name__}."
                )
            self._graph = self.joined(parts)
        return self._graph

    def joined(self, parts: Sequence[Interaction]) -> Graph:
        """The graph of the interactions `layers` and `head`, in this order; by default a chain."""
        return Graph.chain(parts)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Draw all parameters anew, as the paper's released code does: weights from ``U(+-gain / sqrt(fan_in))``."""
        for interaction, gain in zip(self.interactions, self.gains, strict=False):
            interaction.initialise(gain, self.bias_gain, generator)

    def check_input(self, x: Tensor, start: State | None = None) -> None:
        require_input(x)
        expected = (self.in_chans, *self.img_size)
        if x.ndim != 4 or tuple(x.shape[1:]) != expected:
            raise ValueError(
                f"This network takes images of shape (B, {', '.join(map(str, expected))}), not {tuple(x.shape)}: "
                f"pad or resize them, or build it with in_chans and img_size to match."
            )
        super().check_input(x, start)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Hidden layers at equilibrium, from the input upwards, each ``(B, C, H, W)``.

        Args:
            x: Images ``(B, C, H, W)``.
            indices: Which hidden layers: the last n, those of a sequence, or all.
            norm: Without effect, there is no normalisation.
            stop_early: Without effect: every layer's equilibrium depends on all the others.
            output_fmt: ``"NCHW"``.
            intermediates_only: Leave out the last hidden layer.

        Returns:
            The last hidden layer and the list of those asked for, or that list alone.

        Raises:
            ValueError: Another format is asked for.
        """
        if output_fmt != "NCHW":
            name = type(self).__name__
            raise ValueError(f"The states of a {name} are maps in NCHW format; got output_fmt={output_fmt!r}.")
        taken, _ = feature_take_indices(len(self.feature_info), indices)
        if intermediates_only:
            return list(self._equilibrium(x, tuple(taken)))
        last, *states = self._equilibrium(x, (-2, *taken))
        return last, states

    def forward_features(self, x: Tensor) -> Tensor:
        """State of the last hidden layer at equilibrium, ``(B, C, H, W)``."""
        return self._equilibrium(x, (-2,))[0]

    def forward(self, x: Tensor) -> Tensor:
        """The output layer at equilibrium, ``(B, M)``; without classes, the last hidden layer.

        It is differentiable in the parameters and the input by the method of `backward`.
        """
        return self._equilibrium(x, (-1,))[0] if self.num_classes else self.forward_head(self.forward_features(x))

    def flops(self) -> int:
        """Floating-point operations of `forward` for one image, without gradients, by the present minimiser.

        They are those of the products, a multiplication and an addition counted as two, as `FlopCounterMode` counts;
        Winograd's algorithm makes the same products with fewer.

        Raises:
            ValueError: The minimiser has a tolerance: every image has a number of sweeps of its own.
        """
        if self.minimizer.tolerance is not None:
            raise ValueError(
                f"With a tolerance ({self.minimizer.tolerance:g}) every image takes a number of sweeps of its own: set "
                "model.minimizer to one without, then count."
            )
        x = next(self.parameters()).new_zeros(1, self.in_chans, *self.img_size)
        relax = partial(self.answer if self.num_classes else self.relax, x)
        return counted_flops(partial(relax, minimizer=replace(self.minimizer, compiled=False)))

    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        """Patterns that group the parameters by interaction, from the input upwards, for layer-wise decay."""
        return {"stem": r"^layers\.0", "blocks": r"^layers\.(\d+)"}

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that are never decayed: none."""
        return set()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Refuse gradient checkpointing: a relaxation keeps no activations to save.

        Raises:
            ValueError: It is to be enabled.
        """
        if enable:
            raise ValueError(
                f"A {type(self).__name__} has no gradient checkpointing and needs none: its backward pass keeps the "
                "free state alone."
            )

    # ------------------------------------------------------------------------------------------- what graphs hold of it

    def relaxed(self, parameters: Sequence[Tensor], x: Tensor, layers: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Layers of the free state, by index, with these parameters and without derivatives."""
        return with_parameters(self, parameters, lambda: relaxed_layers(self, x, layers))

    def __prepare_scriptable__(self) -> nn.Module:
        """What `torch.jit.script` compiles: a trace of the relaxation, for inference with batches of any size."""
        return Traced(self, next(self.parameters()).new_zeros(2, self.in_chans, *self.img_size))

    def _equilibrium(self, x: Tensor, layers: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Layers of the free state by index; where interactions have hooks, each is called once with its layers."""
        if is_symbolic(x) or not any(map(is_watched, self.interactions)):
            return self._relaxed(x, layers)
        edges, count = self.graph.edges, len(self.graph.layers)
        wanted = count if -1 in layers else count - 1  # a read-out that was not asked for has yet to be called
        states = list(self._relaxed(x, tuple(range(wanted))))
        for interaction, lower, upper in edges:
            if upper < wanted:
                states[upper] = interaction(x if lower is None else states[lower], states[upper])
        return tuple(states[index % count] for index in layers)

    def _relaxed(self, x: Tensor, layers: tuple[int, ...]) -> tuple[Tensor, ...]:
        if torch.compiler.is_dynamo_compiling() and not torch.is_grad_enabled():
            return compiled_layers(self, self._key, x, layers)
        if is_symbolic(x):
            graph = self.graph
            joins = tuple((edge.lower, edge.upper) for edge in graph.edges)
            bounds = tuple(layer.bounds for layer in graph.layers)
            return _equilibrium_of(graph.interactions, joins, bounds, self.minimizer, self.backward, x, layers)
        return equilibrium(self, x, self.backward, layers)

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        self._key = register_network(self)


@torch.fx.wrap
def _equilibrium_of(interactions, joins, bounds, minimizer, backward, x, layers) -> tuple[Tensor, ...]:
    """`equilibrium` as one node of a graph, which can hold the parts of a network, but not the network itself."""
    edges = tuple(Edge(part, *join) for part, join in zip(interactions, joins, strict=True))
    return equilibrium(Stack(Graph(tuple(map(Layer, bounds)), edges), minimizer), x, backward, layers)
