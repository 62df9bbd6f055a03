"""The read-out of a network of maps: dense, of the whole last hidden layer, or none."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.models._input import update_model_input_size
from torch import Tensor, nn

from ..arguments import as_plain, is_count, is_number
from ..kernels.pair import wide
from .interactions import DenseInteraction, EmptyInteraction

__all__ = ["ReadOut", "as_gains", "as_global_pool", "as_size"]

_LARGEST_GAIN = 1e30
"""Weights drawn with it are numbers in 32 bits."""


class ReadOut:
    """What timm does to the classifier of a network: reads it, replaces it, fits it to other images.

    It is a part of `timm_ebl.models.timm_network.TimmNetwork`, whose attributes it uses.
    """

    def add_head(self, gains: float | Sequence[float], **factory: object) -> None:
        """Add the read-out of the last hidden layer, and draw all parameters.

        Args:
            gains: Initial gain of each interaction, read-out last, or one for all.
            **factory: Device and type of the parameters.
        """
        self.gains = as_gains(gains, len(self.layers) + 1)
        self.head_hidden_size = self.top_shape(self.img_size).numel()
        self.head = _create_head(self.head_hidden_size, self.num_classes, **factory)
        self.init_weights()

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Output layer ``o = W s + b`` that minimises the energy given the last hidden layer, ``(B, M)``.

        Args:
            x: State of the last hidden layer, ``(B, C, H, W)``.
            pre_logits: Return that layer instead, flattened unless `global_pool` is ``""``.
        """
        if pre_logits or not self.num_classes:
            return x.flatten(1) if self.global_pool else x
        return self.interactions[-1](x)

    def get_classifier(self) -> nn.Module:
        """The read-out."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the read-out by a fresh one of ``num_classes`` units (0: none).

        Args:
            num_classes: Units of the output layer.
            global_pool: As for the constructor; by default as before, or as the read-out needs it.

        Raises:
            ValueError: There is no such number or pooling, or a map is left where there are classes.
        """
        if not is_count(num_classes, 0):
            raise ValueError(f"num_classes is a whole number of at least 0, not {num_classes!r}.")
        if global_pool is None:
            global_pool = "flatten" if num_classes else self.global_pool
        num_classes, global_pool = as_plain(num_classes), as_global_pool(global_pool, num_classes)
        weight = next(self.layers.parameters())
        head = _create_head(self.head_hidden_size, num_classes, device=weight.device, dtype=weight.dtype)
        head.initialise(self.gains[-1], self.bias_gain)
        self.head, self.num_classes, self.global_pool = head.train(self.training), num_classes, global_pool

    @torch.no_grad()
    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Fit the network to images of another size.

        The read-out's weights on each channel's map are interpolated to the new map and scaled by the ratio of areas,
        so that a uniform map keeps its output.

        Args:
            img_size: Height and width in pixels (one number for a square).

        Raises:
            ValueError: The size is no such size, or too small for the network, or the read-out is pruned or normed.
        """
        size = as_size(img_size)
        before, after = self.top_shape(self.img_size), self.top_shape(size)
        if self.num_classes and "weight" not in dict(self.head.named_parameters(recurse=False)):
            raise ValueError("The read-out's weight is made of other parameters: remove what makes it, then resize.")
        if self.num_classes and before != after:
            old = self.head.weight
            self.head.weight = nn.Parameter(_resized(old, before, after), requires_grad=old.requires_grad)
            self.head.in_features = after.numel()
        self.img_size, self.head_hidden_size = size, after.numel()
        update_model_input_size(self, size)

    def fit_weights(self, weights: dict[str, Tensor], img_size: int | tuple[int, int]) -> dict[str, Tensor]:
        """Weights of the same network for images of another size, as `set_input_size` would make them fit this one.

        Args:
            weights: The weights by name, which may be of other classes.
            img_size: The size that they are for.
        """
        before, after = self.top_shape(as_size(img_size)), self.top_shape(self.img_size)
        if "head.weight" not in weights or before == after:
            return weights
        return {**weights, "head.weight": _resized(weights["head.weight"], before, after)}


def _create_head(features: int, num_classes: int, **factory) -> DenseInteraction | EmptyInteraction:
    """A read-out of so many units; of none, one that joins nothing."""
    return DenseInteraction(features, num_classes, **factory) if num_classes else EmptyInteraction()


def _resized(weight: Tensor, before: torch.Size, after: torch.Size) -> Tensor:
    """A read-out of a map of one shape as that of another, by which a uniform map keeps its output."""
    exact = wide(weight)  # a CPU does not interpolate in 16 bits
    maps = F.interpolate(exact.view(-1, *before), size=after[1:], mode="bilinear", antialias=True)
    return (maps.flatten(1) * (before.numel() / after.numel())).to(weight.dtype)


def as_global_pool(global_pool: str, num_classes: int) -> str:
    """The pooling before the read-out, if there is such a one.

    Raises:
        ValueError: There is none, or it leaves a map where there are classes.
    """
    if global_pool not in ("flatten", ""):
        raise ValueError(
            f"The read-out is dense, of the whole last layer: global_pool is 'flatten' or '', not {global_pool!r}."
        )
    if num_classes and not global_pool:
        raise ValueError("A read-out needs a flat last layer: global_pool='' goes with num_classes=0 alone.")
    return global_pool


def as_size(img_size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width in pixels.

    Raises:
        ValueError: It is neither a number of pixels nor two of them.
    """
    size = tuple(img_size) if isinstance(img_size, Sequence) else (img_size, img_size)
    if len(size) != 2 or not all(map(is_count, size)):
        raise ValueError(f"img_size is one number of pixels or (height, width), not {img_size!r}.")
    return as_plain(size)


def as_gains(gains: float | Sequence[float], count: int) -> tuple[float, ...]:
    """The initial gain of each interaction.

    Raises:
        ValueError: It is neither one positive number nor one for each.
    """
    gains = tuple(gains) if isinstance(gains, Sequence) else (gains,) * count
    if len(gains) != count or not all(is_number(gain) and 0 < gain < _LARGEST_GAIN for gain in gains):
        raise ValueError(f"gains is one positive number or {count} of them, read-out last; got {gains!r}.")
    return as_plain(gains)
