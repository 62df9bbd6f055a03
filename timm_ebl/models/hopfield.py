"""What timm asks of a Hopfield network, for every family of them in its registry.

The equilibrium states of the hidden layers are the feature maps; ``forward`` relaxes them from scratch for every input,
and any loss on them or on the output has its gradient by equilibrium propagation (`timm_ebl.rules.autograd`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..kernels.native import is_exporting, is_watched
from ..rules.autograd import equilibrium, relaxed_layers, with_parameters
from ..rules.catalogue import name_of
from .flops import counted_flops
from .graphs import FreeLayers, Stack, compiled_layers, is_symbolic, recorded, register_network, traced
from .network import HopfieldNetwork
from .timm_network import TimmNetwork

if TYPE_CHECKING:
    from ..relaxation.minimizer import Minimizer

__all__ = ["TimmHopfieldNetwork"]

_SETTINGS = ("order", "sweeps", "tolerance", "omega", "start")
"""The fields of a minimiser that decide where it ends, each an argument of a network too."""


class TimmHopfieldNetwork(TimmNetwork, HopfieldNetwork):
    """A Hopfield network of maps with a dense read-out, as timm's scripts use a model (`TimmNetwork`).

    Args:
        minimizer: How ``forward`` relaxes. It is an attribute too, free to be set, and saved as the arguments that make
            it, except for ``compiled``: who loads a checkpoint need not wait for a compiler.
        **arguments: Those of `TimmNetwork`.

    Raises:
        ValueError: An argument is out of range; the message says which.
    """

    def __init__(self, *, minimizer: Minimizer, **arguments) -> None:
        super().__init__(**arguments)
        self._key, self.minimizer, self._model_args = register_network(self), minimizer, {}

    def extra_repr(self) -> str:
        """Energy, minimiser and backward pass."""
        return f"energy='Hopfield'\n{super().extra_repr()}\nbackward={name_of(self.backward)!r}"

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

    def _settings(self) -> dict[str, object]:
        return {name: getattr(self.minimizer, name) for name in _SETTINGS} | {"start": str(self.minimizer.start)}

    # ------------------------------------------------------------------------------------------- what graphs hold of it

    def relaxed(self, parameters: Sequence[Tensor], x: Tensor, layers: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Layers of the free state, by index, with these parameters and without derivatives."""
        return with_parameters(self, parameters, lambda: relaxed_layers(self, x, layers))

    def __prepare_scriptable__(self) -> nn.Module:
        """What `torch.jit.script` compiles: a trace of the relaxation, for inference with batches of any size."""
        return nn.Sequential(traced(self, next(self.parameters()).new_zeros(2, self.in_chans, *self.img_size)))

    @property
    def output_node(self) -> FreeLayers:
        """The output layer as graphs of `torch.fx` have it, in a tuple."""
        return self._node((-1,))

    @property
    def hidden_node(self) -> FreeLayers:
        """The hidden layers as graphs of `torch.fx` have them."""
        return self._node(tuple(range(len(self.graph.layers) - 1)))

    def _node(self, layers: tuple[int, ...]) -> FreeLayers:
        return FreeLayers(Stack(self, self.backward, layers), (self.in_chans, *self.img_size))

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
        if torch.compiler.is_dynamo_compiling() and (is_exporting() or not torch.is_grad_enabled()):
            return compiled_layers(self, self._key, x, layers)
        if is_symbolic(x):
            if layers == (-1,):
                return recorded(self, "output_node", x)
            hidden = recorded(self, "hidden_node", x)
            return tuple(hidden[index % len(self.graph.layers)] for index in layers)
        return equilibrium(self, x, self.backward, layers)

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        self._key = register_network(self)
