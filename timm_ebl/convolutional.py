"""Deep convolutional Hopfield network (DCHN).

Papers:
* `Energy-Based Learning Algorithms: A Comparative Study` (Sections 3 and 4)
* `Scaling equilibrium propagation to deep convnets by drastically reducing its gradient estimator bias`
  (Laborieux et al., 2021), where the network comes from

Four hidden layers, each joined to the one below by a 3x3 convolution and 2x2 max pooling, and a dense read-out. The
equilibrium states of the hidden layers are the feature maps; ``forward`` relaxes them from scratch for every input, and
any loss on them or on the output has its gradient by equilibrium propagation (`timm_ebl.backward`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from timm.models._features import feature_take_indices
from timm.models._input import update_model_input_size
from torch import Tensor, nn

from .backward import Backward, create_backward, name_of
from .differentiable import equilibrium
from .energy import State
from .inputs import require_input
from .interaction import AveragePooled, ConvInteraction, Interaction, is_watched
from .minimize import Minimizer, Start
from .network import HopfieldNetwork
from .readout import as_global_pool, create_head, resized
from .throughput import counted_flops
from .tracing import Traced, compiled_equilibrium, graph_equilibrium, is_symbolic, register_network
from .values import Choice, is_count, is_number

__all__ = ["DCHN", "Pooling"]


_LARGEST_GAIN = 1e30
"""Weights drawn with it are numbers in 32 bits."""


class Pooling(Choice):
    """How a convolution is pooled."""

    MAX = "max"
    AVERAGE = "average"

    @property
    def interaction(self) -> type[ConvInteraction]:
        """The interaction pooled in this way."""
        return AveragePooled if self is Pooling.AVERAGE else ConvInteraction


class DCHN(HopfieldNetwork):
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
        order: Order of update (`timm_ebl.order.list_orders`).
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
        super().__init__()
        self._key = register_network(self)
        factory = {"device": device, "dtype": dtype}
        if not isinstance(widths, Sequence) or not widths or not all(map(is_count, widths)):
            raise ValueError(f"widths is a non-empty sequence of positive channel counts, not {widths!r}.")
        if not is_count(in_chans) or not is_count(num_classes, 0):
            raise ValueError(
                f"in_chans is a whole number of at least 1 and num_classes of at least 0; got {in_chans!r} and "
                f"{num_classes!r}."
            )
        if drop_rate:
            raise ValueError(f"A DCHN has no dropout; got drop_rate={drop_rate!r}.")
        if not is_number(bias_gain) or not 0 <= bias_gain < math.inf:
            raise ValueError(f"bias_gain is a finite number of at least 0, not {bias_gain!r}.")
        self.num_classes, self.in_chans = num_classes, in_chans
        self.global_pool = as_global_pool(global_pool, num_classes)
        self.img_size = _as_size(img_size)
        self.gains = _as_gains(gains, len(widths) + 1)
        self.bias_gain = bias_gain
        self.minimizer = Minimizer(
            order=order, sweeps=sweeps, tolerance=tolerance, omega=omega, start=start, compiled=compiled
        )
        self.minimizer.groups(len(widths) + 1)
        self.backward = backward if isinstance(backward, Backward) else create_backward(backward)

        self.pooling = Pooling(pooling)
        self.layers = nn.ModuleList(
            self.pooling.interaction(lower, upper, kernel_size, pool, **factory)
            for lower, upper in zip((in_chans, *widths), widths, strict=False)
        )
        self.feature_info = [
            {"num_chs": width, "reduction": pool**level, "module": f"layers.{level - 1}"}
            for level, width in enumerate(widths, 1)
        ]
        self.num_features = widths[-1]
        self.head_hidden_size = self._top_shape(self.img_size).numel()
        self.head = create_head(self.head_hidden_size, num_classes, **factory)
        self.init_weights()

    @property
    def interactions(self) -> Sequence[Interaction]:
        if not isinstance(self.head, Interaction):
            raise TypeError(
                f"head is a {type(self.head).__name__}, and the read-out of a DCHN takes part in its relaxation: "
                f"model.reset_classifier(num_classes) makes one."
            )
        strangers = [layer for layer in self.layers if not isinstance(layer, Interaction)]
        if strangers:
            raise TypeError(f"A layer of a DCHN is a timm_ebl.Interaction, not a {type(strangers[0]).__name__}.")
        return [*self.layers, self.head]

    def extra_repr(self) -> str:
        energy = f"energy='Hopfield', pooling={str(self.pooling)!r}"
        return f"{energy}\n{super().extra_repr()}\nbackward={name_of(self.backward)!r}"

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
            raise ValueError(f"The states of a DCHN are maps in NCHW format; got output_fmt={output_fmt!r}.")
        taken, _ = feature_take_indices(len(self.layers), indices)
        if intermediates_only:
            return list(self._equilibrium(x, tuple(taken)))
        last, *states = self._equilibrium(x, (-2, *taken))
        return last, states

    def forward_features(self, x: Tensor) -> Tensor:
        """State of the last hidden layer at equilibrium, ``(B, C, H, W)``."""
        return self._equilibrium(x, (-2,))[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Output layer ``o = W s + b`` that minimises the energy given the last hidden layer, ``(B, M)``.

        Args:
            x: State of the last hidden layer, ``(B, C, H, W)``.
            pre_logits: Return that layer instead, flattened unless `global_pool` is ``""``.
        """
        if pre_logits or not self.num_classes:
            return x.flatten(1) if self.global_pool else x
        return self.interactions[-1](x)

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
        x = self.layers[0].weight.new_zeros(1, self.in_chans, *self.img_size)
        relax = partial(self.answer if self.num_classes else self.relax, x)
        return counted_flops(partial(relax, minimizer=replace(self.minimizer, compiled=False)))

    def get_classifier(self) -> nn.Module:
        """The read-out."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the read-out by a fresh one of ``num_classes`` units (0: none).

        Args:
            num_classes: Units of the output layer.
            global_pool: As for the constructor; by default as before, or as the read-out needs it.

        Raises:
            ValueError: There is no such pooling, or it leaves a map where there are classes.
        """
        if global_pool is None:
            global_pool = "flatten" if num_classes else self.global_pool
        self.global_pool = as_global_pool(global_pool, num_classes)
        weight = self.layers[0].weight
        self.num_classes = num_classes
        self.head = create_head(self.head_hidden_size, num_classes, device=weight.device, dtype=weight.dtype)
        self.head.initialise(self.gains[-1], self.bias_gain)
        self.head.train(self.training)

    @torch.no_grad()
    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Fit the network to images of another size.

        The read-out's weights on each channel's map are interpolated to the new map and scaled by the ratio of areas,
        so that a uniform map keeps its output.

        Args:
            img_size: Height and width in pixels (one number for a square).

        Raises:
            ValueError: The size is no such size, or too small for the poolings, or the read-out is pruned or normed.
        """
        size = _as_size(img_size)
        before, after = self._top_shape(self.img_size), self._top_shape(size)
        if self.num_classes and "weight" not in dict(self.head.named_parameters(recurse=False)):
            raise ValueError("The read-out's weight is made of other parameters: remove what makes it, then resize.")
        if self.num_classes and before != after:
            old = self.head.weight
            self.head.weight = nn.Parameter(resized(old, before, after), requires_grad=old.requires_grad)
            self.head.in_features = after.numel()
        self.img_size, self.head_hidden_size = size, after.numel()
        update_model_input_size(self, size)

    def fit_weights(self, weights: dict[str, Tensor], img_size: int | tuple[int, int]) -> dict[str, Tensor]:
        """Weights of the same network for images of another size, as `set_input_size` would make them fit this one.

        Args:
            weights: The weights by name, which may be of other classes.
            img_size: The size that they are for.
        """
        before, after = self._top_shape(_as_size(img_size)), self._top_shape(self.img_size)
        if "head.weight" not in weights or before == after:
            return weights
        return {**weights, "head.weight": resized(weights["head.weight"], before, after)}

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
                "A DCHN has no gradient checkpointing and needs none: its backward pass keeps the free state alone."
            )

    def __prepare_scriptable__(self) -> nn.Module:
        """What `torch.jit.script` compiles: a trace of the relaxation, for inference with batches of any size."""
        return Traced(self, self.layers[0].weight.new_zeros(2, self.in_chans, *self.img_size))

    def _equilibrium(self, x: Tensor, layers: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Layers of the free state by index; where interactions have hooks, each is called once with its state."""
        if is_symbolic(x) or not any(map(is_watched, (*self.layers, self.head))):
            return self._relaxed(x, layers)
        count = len(self.layers) + (-1 in layers)  # a read-out that was not asked for has yet to be called
        states = [x]
        for interaction, state in zip(self.interactions, self._relaxed(x, tuple(range(count))), strict=False):
            states.append(interaction(states[-1], state))
        return tuple(states[1 + index % (len(self.layers) + 1)] for index in layers)

    def _relaxed(self, x: Tensor, layers: tuple[int, ...]) -> tuple[Tensor, ...]:
        if torch.compiler.is_dynamo_compiling() and not torch.is_grad_enabled():
            return compiled_equilibrium(self, self._key, x, layers)
        relax = graph_equilibrium if is_symbolic(x) else equilibrium
        return relax(self, x, self.backward, layers)

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        self._key = register_network(self)

    def _top_shape(self, img_size: tuple[int, int]) -> torch.Size:
        """Shape of the last hidden layer for images of a size."""
        shape = torch.Size([self.in_chans, *img_size])
        for layer in self.layers:
            shape = layer.shape(shape)
        if 0 in shape:
            raise ValueError(f"An image of {img_size} pixels is too small for {len(self.layers)} poolings.")
        return shape


def _as_size(img_size: int | Sequence[int]) -> tuple[int, int]:
    size = tuple(img_size) if isinstance(img_size, Sequence) else (img_size, img_size)
    if len(size) != 2 or not all(map(is_count, size)):
        raise ValueError(f"img_size is one number of pixels or (height, width), not {img_size!r}.")
    return size


def _as_gains(gains: float | Sequence[float], count: int) -> tuple[float, ...]:
    gains = tuple(gains) if isinstance(gains, Sequence) else (gains,) * count
    if len(gains) != count or not all(is_number(gain) and 0 < gain < _LARGEST_GAIN for gain in gains):
        raise ValueError(f"gains is one positive number or {count} of them, read-out last; got {gains!r}.")
    return gains
