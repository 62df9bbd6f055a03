"""A watch over training: says when states or weights go wrong, in which layer, and what may help."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .energy import State
from .progress import Progress

__all__ = ["Diverged", "LayerReport", "Watch", "report_layers", "require_finite"]

_DEAD = 0.999
_SATURATED = 0.99
_RISE = 5.0
_SETTLED = 1e-2


class Diverged(Exception):
    """The weights are not finite any more; the message says which."""


class LayerReport(NamedTuple):
    """The units of a layer over a batch, as shares of all of them.

    Attributes:
        zeros: Units at 0, the lower end.
        ones: Units at 1, the upper end.
        broken: Units that are NaN or infinite.
    """

    zeros: float
    ones: float
    broken: float


def report_layers(state: State) -> Tensor:
    """Shares of the units at 0, at 1 and not finite, for every layer of a state, ``(L, 3)``, without a host sync."""
    rows = [
        torch.stack([(s <= 0).float().mean(), (s >= 1).float().mean(), 1 - s.isfinite().float().mean()]) for s in state
    ]
    return torch.stack(rows)


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

    def __call__(self, result: dict[str, Tensor | State]) -> None:
        """Look at the result of a `timm_ebl.task.RuleTask`, if it is time.

        Raises:
            Diverged: A weight is not finite.
        """
        if self.progress.step % self.every and self.progress.step != self.batches:
            return
        require_finite(self.model)
        state = result["state"]
        layers = report_layers(state)
        *shares, residual = torch.cat([layers.flatten(), result["residual"].mean()[None].float()]).tolist()
        reports = [LayerReport(*shares[3 * layer : 3 * layer + 3]) for layer in range(len(state))]
        for kind, sentence in (*self._layers(reports), *self._residual(residual)):
            if kind not in self.progress.warned:
                self.progress.warned.append(kind)
                self.progress.warnings.append(f"epoch {self.progress.epoch}, batch {self.progress.step}: {sentence}")
                self.say(self.progress.warnings[-1])

    def _layers(self, reports: Sequence[LayerReport]) -> list[tuple[str, str]]:
        found = []
        for number, report in enumerate(reports, 1):
            hidden, name = number < len(reports), f"layer {number}" if number < len(reports) else "the output layer"
            if report.broken:
                found.append((f"broken {name}", f"{name} is not finite: a lower --lr or --beta may help."))
            elif hidden and report.zeros >= _DEAD:
                found.append((f"zero {name}", f"{name} is dead, all its units are at 0: a lower --lr or larger initial "
                              "gains (--model-kwargs gains=0.8) may help."))  # fmt: skip
            elif hidden and report.ones >= _DEAD:
                found.append((f"one {name}", f"{name} is dead, all its units are at 1: a lower --lr or smaller initial "
                              "gains (--model-kwargs gains=0.5) may help."))  # fmt: skip
            elif hidden and report.zeros + report.ones >= _SATURATED:
                free = 100 * (1 - report.zeros - report.ones)
                found.append((f"saturated {name}", f"{name} is saturated, {free:.1f} % of its units are free to move: a "
                              "lower --lr or --weight-decay may help."))  # fmt: skip
        return found

    def _residual(self, residual: float) -> list[tuple[str, str]]:
        """Whether the mean residual is far above the lowest of this run, and not small either."""
        lowest = self.progress.lowest_residual
        self.progress.lowest_residual = residual if lowest is None else min(lowest, residual)
        if lowest is None or not residual > max(_SETTLED, _RISE * lowest):
            return []
        return [("residual", f"the residual of the free phase has risen from {lowest:.1e} to {residual:.1e}, it does not "
                 "settle any more: more --free-sweeps, a smaller --omega or a lower --lr may help.")]  # fmt: skip
