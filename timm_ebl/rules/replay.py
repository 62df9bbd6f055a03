"""A step of a contrastive rule as one replay (`timm_ebl.kernels.recording`): its phases, the contrast and its gradient.

The gradient is known with the contrast, so that no backward pass is recorded; a gradient scaler, gradient accumulation
and data parallelism see a loss like any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..energy.gradient import KnownGradient
from ..kernels.recording import replayed
from ..relaxation.record import Relaxation
from .rule import RuleOutput

if TYPE_CHECKING:
    from ..energy.functional import State
    from ..relaxation.model import EnergyModel
    from .contrastive import ContrastiveRule

__all__ = ["replayed_step"]


def replayed_step(
    rule: ContrastiveRule, model: EnergyModel, x: Tensor, y: Tensor, start: State | None, signs: Tensor | None
) -> RuleOutput | None:
    """What `ContrastiveRule.step` returns, by a replay; ``None`` where there is none and the rule is to make the step.

    The free phase is without what it has computed (`Relaxation`), as a copy of it is.

    Args:
        rule: The rule, as it is for the model (`Rule.fitted`).
        model: The model.
        x: Inputs ``(B, ..)``.
        y: Class indices ``(B,)``, or desired outputs ``(B, M)``.
        start: State from which the free phase starts.
        signs: The signs of the samples, for a rule that draws them.
    """
    phases = (rule.second_phase,) if model.rests else (rule.free or model.minimizer, rule.second_phase)
    graph = model.recordable(*phases)
    if graph is None or not (start is None or isinstance(start, tuple)):
        return None
    if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in graph.tensors()):
        return None
    given = (x, y, *(start or ()), *(() if signs is None else (signs,)))
    if not all(isinstance(tensor, Tensor) for tensor in given) or x.requires_grad:
        return None

    def step(x: Tensor, y: Tensor, *others: Tensor) -> tuple[Any, ...]:
        layers = others if signs is None else others[:-1]
        with torch.enable_grad():
            out = rule.step(model, x, y, layers or None, None if signs is None else others[-1])
        free, opposite = out.free, getattr(out.loss.grad_fn, "opposite", None)
        if opposite is None:
            raise RuntimeError("the loss is no contrast of energies alone.")
        record = free.state, free.energy, free.residual, free.sweeps, free.tolerance, free.output
        return out.loss.detach(), record, out.last, opposite[1:]

    model.check_input(x, start)
    found = replayed(model, (rule, model.minimizer, graph, signs is None), step, given)
    if found is None:
        return None
    value, record, last, opposite = found
    free = Relaxation(x, *record)
    loss = KnownGradient.apply(value, (None, *opposite), x, *graph.tensors())
    return RuleOutput(loss, free.output, free, last)
