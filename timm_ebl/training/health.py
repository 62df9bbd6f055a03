"""A watch over training: says when states or weights go wrong, in which layer, and what may help."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import Diverged

if TYPE_CHECKING:
    from ..energy.functional import State
    from .progress import Progress

__all__ = ["LayerReport", "Watch", "report_layers", "require_finite"]

_DEAD = 0.999  # share of the units at one end
_SATURATED = 0.99  # share of the units at either end; in runs that learn it is below 0.95
_RISE = 5.0  # times the lowest residual
_SETTLED = 0.1  # residual that is no cause for a warning; runs that learn stay below 0.05


class LayerReport(NamedTuple):
    """The units of a layer over a batch, as shares of all of them.

    Attributes:
        zeros: Units at 0, the lower end.
        ones: Units at the upper end.
        broken: Units that are NaN or infinite.
    """

    zeros: float
    ones: float
    broken: float


def report_layers(state: State, ends: Sequence[float] | None = None) -> Tensor:
    """Shares of the units at 0, at the upper end and not finite, for every layer, ``(L, 3)``, without a host sync.

    Args:
        state: The layers.
        ends: The upper end of the units of each, by default 1.
    """
    ends = ends or [1.0] * len(state)
    shares = ((layer <= 0, layer >= end, ~layer.isfinite()) for layer, end in zip(state, ends, strict=True))
    return torch.stack([torch.stack([units.float().mean() for units in share]) for share in shares])


def require_finite(model: nn.Module) -> None:
    """Refuse weights that are not finite.

    Raises:
        Diverged: Some are NaN or infinite.
    """
    parameters = dict(model.named_parameters())
    finite = torch.stack([parameter.isfinite().all() for parameter in parameters.values()]).tolist()
    broken = [name for name, good in zip(parameters, finite, strict=True) if not good]
    if broken:
        raise Diverged(f"the weights are not finite any more: {', '.join(broken)}")


class Watch:
    """Looks at the free state and the weights every few batches, and warns once of each thing that goes wrong.

    Between the looks it costs nothing; a look is one pass over state and weights and one wait for the device.

    Args:
        model: The model in training.
        progress: Where the warnings are noted.
        every: Batches between two looks.
        batches: Batches of an epoch; it looks at the last one too.
        say: Gets the warnings, one sentence each.
    """

    def __init__(
        self, model: nn.Module, progress: Progress, every: int, batches: int, say: Callable[[str], None]
    ) -> None:
        self.model, self.progress, self.every, self.batches, self.say = model, progress, every, batches, say
        self.ends = _upper_ends(model)

    def __call__(self, result: dict[str, Tensor | State]) -> None:
        """Look at the result of a `timm_ebl.training.task.RuleTask`, if it is time.

        Raises:
            Diverged: A weight is not finite.
        """
        if self.progress.step % self.every and self.progress.step != self.batches:
            return
        require_finite(self.model)
        state = result["state"]
        layers = report_layers(state, self.ends)
        *shares, residual = torch.cat([layers.flatten(), result["residual"].mean()[None].float()]).tolist()
        reports = [LayerReport(*shares[3 * layer : 3 * layer + 3]) for layer in range(len(state))]
        for kind, sentence in (*self._layers(reports), *self._residual(residual)):
            if kind not in self.progress.warned:
                self.progress.warned.append(kind)
                self.progress.warnings.append(f"epoch {self.progress.epoch}, batch {self.progress.step}: {sentence}")
                self.say(self.progress.warnings[-1])

    def _layers(self, reports: Sequence[LayerReport]) -> list[tuple[str, str]]:
        """What is wrong with which layer, each as a key to remember it by and a sentence."""
        found = []
        for number, report in enumerate(reports, 1):
            hidden = number < len(reports)
            name = f"layer {number}" if hidden else "the output layer"
            free = 1 - report.zeros - report.ones
            if report.broken:
                found.append((f"broken {name}", f"{name} is not finite: a lower --lr or --beta may help."))
            elif hidden and max(report.zeros, report.ones) >= _DEAD:
                top = f"{self.ends[number - 1]:g}" if self.ends else "1"
                end, gains = ("0", "larger") if report.zeros > report.ones else (top, "smaller")
                hint = f"a lower --lr or {gains} initial gains (--model-kwargs gains=X) may help."
                found.append((f"dead {name}", f"{name} is dead, all its units are at {end}: {hint}"))
            elif hidden and free <= 1 - _SATURATED:
                hint = "a lower --lr, more --free-sweeps or another --algo may help."
                found.append((f"saturated {name}", f"{name} is saturated, {free:.1%} of its units can move: {hint}"))
        return found

    def _residual(self, residual: float) -> list[tuple[str, str]]:
        """Whether the mean residual is far above the lowest of this run, and not small either."""
        lowest = self.progress.lowest_residual
        self.progress.lowest_residual = residual if lowest is None else min(lowest, residual)
        if lowest is None or not residual > max(_SETTLED, _RISE * lowest):
            return []
        hint = "more --free-sweeps, a smaller --omega or a lower --lr may help."
        return [("residual", f"the residual of the free phase has risen from {lowest:.1e} to {residual:.1e}: {hint}")]


def _upper_ends(model: nn.Module) -> list[float] | None:
    """The upper end of the units of each layer, where a model has a graph; the output has none."""
    graph = getattr(model, "graph", None)
    if graph is None:
        return None
    return [math.inf if layer.bounds is None else layer.bounds[1] for layer in graph.layers]
