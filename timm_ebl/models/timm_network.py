"""What timm asks of a network, for every family in its registry.

The states of the hidden layers are the feature maps, and any loss on them or on the output has its gradient by
equilibrium propagation (`timm_ebl.rules.autograd`).
"""

# Annotations are no texts here: torch.jit.script reads those of `forward` in a graph of torch.fx.
import math
from abc import abstractmethod
from collections.abc import Sequence
from inspect import signature
from typing import ClassVar

import torch
from timm.models import is_model, model_entrypoint
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ..arguments import as_plain, is_count, is_number
from ..energy.functional import State
from ..energy.graph import Graph
from ..energy.interaction import Interaction
from ..relaxation.checks import require_input
from ..rules.backward import Backward
from ..rules.catalogue import create_backward, list_backwards, name_of
from .layered import LayeredNetwork
from .readout import ReadOut, as_global_pool, as_size

__all__ = ["AUTOGRAD", "TimmNetwork"]

AUTOGRAD = "bp"
"""The name of autograd's own backpropagation through the forward pass."""


class TimmNetwork(ReadOut, LayeredNetwork):
    """A network of maps with a dense read-out, as timm's scripts use a model.

    A family names its interactions: `layers`, those between the input and the hidden layers, upwards, and `head`, the
    read-out of the last hidden layer. It sets `layers` and `feature_info`, and then calls `add_head`.

    Args:
        num_classes: Units ``M`` of the output layer; 0 for none, the network then ends at the last hidden layer.
        in_chans: Channels of the input.
        img_size: Height and width of the input in pixels (one number for a square).
        global_pool: ``"flatten"``, as the read-out is dense; without classes also ``""``, which leaves the last hidden
            layer a map.
        drop_rate: Present for timm's sake, whose scripts pass it to every model; there is no dropout, so it is 0.
        bias_gain: Initial gain of the biases, which start in ``U(+-bias_gain / sqrt(fan_in))``.
        backward: How a loss is differentiated: a name (`timm_ebl.create_backward`) or a `Backward`. It is an attribute
            too, free to be set.

    Raises:
        TypeError: `backward` is neither a name nor a `Backward`.
        ValueError: An argument is out of range; the message says which.
    """

    feeds_forward: ClassVar[bool] = False
    """Whether ``forward`` may be differentiated by autograd itself: `backward` is then also ``"bp"``, or ``None``."""

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
        backward: str | Backward | None,
    ) -> None:
        super().__init__()
        self._graph, self.backward, self._model_args = None, backward, {}
        if not is_count(in_chans) or not is_count(num_classes, 0):
            raise ValueError(
                f"in_chans is a whole number of at least 1 and num_classes of at least 0; got {in_chans!r} and "
                f"{num_classes!r}."
            )
        if drop_rate:
            raise ValueError(f"A {type(self).__name__} has no dropout; got drop_rate={drop_rate!r}.")
        if not is_number(bias_gain) or not 0 <= bias_gain < math.inf:
            raise ValueError(f"bias_gain is a finite number of at least 0, not {bias_gain!r}.")
        self.num_classes, self.in_chans, self.bias_gain = as_plain((num_classes, in_chans, bias_gain))
        self.global_pool, self.img_size = as_global_pool(global_pool, num_classes), as_size(img_size)

    @property
    def backward(self) -> Backward | None:
        """How a loss is differentiated; ``None`` is autograd's own backpropagation."""
        return self._backward

    @backward.setter
    def backward(self, backward: str | Backward | None) -> None:
        name = AUTOGRAD if backward is None else backward
        if isinstance(name, str):
            names = [*list_backwards(), *[AUTOGRAD] * self.feeds_forward]
            if name not in names:
                raise ValueError(
                    f"Unknown backward {backward!r} of a {type(self).__name__}: choose one of {', '.join(names)}."
                )
            backward = None if name == AUTOGRAD else create_backward(name)
        elif not isinstance(backward, Backward):
            raise TypeError(f"backward is a name or a timm_ebl.Backward, not {backward!r}.")
        self._backward = backward

    @property
    def _model_args(self) -> dict[str, object]:
        """The arguments that timm saves with the weights, the present minimiser and backward pass among them.

        A model of the package names its minimiser whole, so that another default in a later version leaves it as it
        was; what another one has by itself may be no argument of it.
        """
        found, parameters, settings = dict(self._given), signature(type(self)).parameters, self._settings()
        if settings != self._given_settings or _is_ours(self):
            if not settings.keys() <= parameters.keys():
                return found | {"minimizer": self.minimizer}  # timm refuses to save it, and says so
            found = {name: value for name, value in found.items() if name not in settings}
            found |= {name: value for name, value in settings.items() if value is not None}
        name = AUTOGRAD if self.backward is None else name_of(self.backward)
        if self.backward != self._given_backward and isinstance(name, str) and "backward" in parameters:
            found["backward"] = name
        return found

    @_model_args.setter
    def _model_args(self, arguments: dict[str, object]) -> None:
        self._given = {name: as_plain(value) for name, value in arguments.items()}
        self._given_settings, self._given_backward = self._settings(), self.backward

    def _settings(self) -> dict[str, object]:
        """Arguments that attributes may have replaced since."""
        return {}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Refuse gradient checkpointing: a backward pass of the package's keeps no activations to save.

        Raises:
            ValueError: It is to be enabled.
        """
        if enable:
            by_autograd = f", and that of {AUTOGRAD!r} what torch.utils.checkpoint leaves it" * self.feeds_forward
            raise ValueError(
                f"A {type(self).__name__} has no gradient checkpointing: the backward pass of "
                f"{', '.join(list_backwards())} keeps the free state alone{by_autograd}."
            )

    @abstractmethod
    def _equilibrium(self, x: Tensor, layers: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Layers of the free state by index, as ``forward`` makes them, differentiable."""

    def top_shape(self, img_size: tuple[int, int]) -> torch.Size:
        """Shape ``(C, H, W)`` of the last hidden layer for images of a size.

        Raises:
            ValueError: The images are too small.
        """
        shape = torch.Size([self.in_chans, *img_size])
        for layer in self.layers:
            shape = layer.shape(shape)
        if 0 in shape:
            raise ValueError(f"An image of {img_size} pixels is too small for {len(self.layers)} poolings.")
        return shape

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
        """The graph of the interactions `layers` and `head`; a chain, unless a family has another one."""
        return Graph.chain(parts)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Draw all parameters anew, as the paper's released code does: weights from ``U(+-gain / sqrt(fan_in))``."""
        for interaction, gain in zip(self.interactions, self.gains, strict=False):
            interaction.initialise(gain, self.bias_gain, generator)

    def keep_layers(self, count: int) -> None:
        """Keep so many hidden layers, from the input upwards, and no read-out; `reset_classifier` makes another one."""
        self.layers, self.feature_info = self.layers[:count], self.feature_info[:count]
        self.gains, self._graph = (*self.gains[:count], self.gains[-1]), None
        self.num_features, self.head_hidden_size = self.layers[-1].out_channels, self.top_shape(self.img_size).numel()
        self.reset_classifier(0, "")

    def check_input(self, x: Tensor, start: State | None = None) -> None:
        self.check_shape(x)
        super().check_input(x, start)

    def check_shape(self, x: Tensor) -> None:
        """Refuse what are no images of the network's size.

        Raises:
            TypeError: It is no tensor of real numbers.
            ValueError: The images have other shapes.
        """
        require_input(x)
        expected = (self.in_chans, *self.img_size)
        if x.ndim != 4 or tuple(x.shape[1:]) != expected:
            raise ValueError(
                f"This network takes images of shape (B, {', '.join(map(str, expected))}), not {tuple(x.shape)}: "
                f"pad or resize them, or build it with in_chans and img_size to match."
            )

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
            stop_early: Without effect: in a Hopfield network every layer depends on all the others, and a predictive
                coding network stops by itself.
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

    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        """Patterns that group the parameters by interaction, from the input upwards, for layer-wise decay."""
        return {"stem": r"^layers\.0", "blocks": r"^layers\.(\d+)"}

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that are never decayed: none."""
        return set()


def _is_ours(model: nn.Module) -> bool:
    """Whether a model is made by a name of the package's own."""
    name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    return name is not None and is_model(name) and model_entrypoint(name).__module__.startswith(f"{__package__}.")
