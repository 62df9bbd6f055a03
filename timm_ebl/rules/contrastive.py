"""The learning rules of the paper (Section 2) and its two baselines, for any `timm_ebl.relaxation.network.EnergyModel`.

A rule called on ``(model, x, y)`` returns a scalar whose gradient in the parameters is the rule's update direction
(descend it), so that mixed precision, gradient accumulation and data parallelism work as for any loss.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from ..arguments import is_number, require_flag
from ..energy.functional import State
from ..energy.perturbation import Clamped, Nudged, Perturbation
from ..relaxation.minimizer import Minimizer, require_minimizer
from ..models.network import EnergyModel, require_energy
from ..relaxation.record import Relaxation
from .backprop import Backward, RecurrentBackward, TruncatedBackward, adjoint, inner, unroll
from .strength import require_strength

__all__ = [
    "ContrastiveRule",
    "CoupledLearning",
    "EquilibriumPropagation",
    "Nudging",
    "RecurrentBackprop",
    "Rule",
    "RuleOutput",
    "TruncatedBackprop",
    "as_target",
    "create_rule",
    "list_rules",
    "register_rule",
    "rule_options",
    "squared_error",
]


class RuleOutput(NamedTuple):
    """What a rule returns.

    Attributes:
        loss: Scalar whose backward is the rule's update: a contrast of energies, or the cost for the baselines.
        output: Answer of the free phase, ``(B, M)`` (`Relaxation.output`).
        free: The free phase.
        last: The state that the second phase left: ``state_2`` of a contrast, the last of the sweeps that truncated
            backpropagation unrolls, the one sweep that recurrent backpropagation differentiates. The paper's released
            code starts the next batch's free phase from it.
    """

    loss: Tensor
    output: Tensor
    free: Relaxation
    last: State


def as_target(y: Tensor, output: Tensor) -> Tensor:
    """Desired output ``(B, M)``: class indices ``(B,)`` become one-hot rows, rows are taken as they are.

    Raises:
        TypeError: The labels are no tensor of whole or real numbers.
        ValueError: There are none, they are on another device, their shape does not fit, a label is out of range or a
            target not finite (both looked at on the CPU only, for the sake of speed).
    """
    if not isinstance(y, Tensor):
        raise TypeError(f"Labels are a tensor, not {type(y).__name__}: torch.as_tensor makes one of a list.")
    if y.dtype == torch.bool or y.is_complex():
        raise TypeError(f"Labels are whole numbers and targets real ones, not {y.dtype}.")
    if y.device != output.device:
        raise ValueError(f"The labels are on {y.device} and the model's output on {output.device}: move them there.")
    if not len(output):
        raise ValueError("The batch is empty: a rule learns from at least one sample.")
    if y.shape == output.shape:
        if not (y.is_cuda or y.is_meta or bool(y.isfinite().all())):
            raise ValueError("The targets hold NaN or infinite values.")
        return y.to(output.dtype)
    if y.ndim != 1 or y.shape[0] != output.shape[0] or y.is_floating_point():
        raise ValueError(
            f"Labels are {output.shape[0]} whole numbers or a target of shape {tuple(output.shape)}, "
            f"not {y.dtype} of shape {tuple(y.shape)}."
        )
    classes = output.shape[1]
    if not (y.is_cuda or y.is_meta) and not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise ValueError(f"Labels lie in 0 .. {classes - 1}; this batch has {int(y.min())} .. {int(y.max())}.")
    return (y[:, None] == torch.arange(classes, device=y.device)).to(output.dtype)


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """The cost ``C(o, y) = 1/2 |o - y|^2``, ``(B,)``."""
    return ((output - target) ** 2).sum(1) / 2


@dataclass(frozen=True)
class Rule(ABC):
    """A learning rule.

    Attributes:
        free: Minimiser of the free phase; ``None`` takes the model's own.
        second: Minimiser of what follows: the perturbed phases of a contrastive rule, the sweeps that truncated
            backpropagation unrolls, or the adjoint steps of recurrent backpropagation.
    """

    free: Minimizer | None = None
    second: Minimizer = Backward.second

    def __post_init__(self) -> None:
        require_minimizer("free", self.free, optional=True)
        require_minimizer("second", self.second)

    @abstractmethod
    def __call__(self, model: EnergyModel, x: Tensor, y: Tensor, start: State | None = None) -> RuleOutput:
        """The rule's scalar for a batch.

        Args:
            model: An energy model.
            x: Inputs ``(B, C, H, W)``.
            y: Class indices ``(B,)``, or desired outputs ``(B, M)``.
            start: State from which the free phase starts; by default the minimiser's start.

        Raises:
            TypeError: The model has no energy.
            ValueError: The input or the labels do not fit the model.
        """


class Nudging(Enum):
    """Which two equilibria a rule contrasts, as multiples of beta: ``(state_1, state_2)``; 0 is the free one."""

    POSITIVE = (0, 1)
    NEGATIVE = (-1, 0)
    CENTERED = (-1, 1)


@dataclass(frozen=True)
class ContrastiveRule(Rule):
    """Contrast of two equilibria: ``mean(E(theta, x, s_2) - E(theta, x, s_1)) / (beta_2 - beta_1)``.

    Where the free phase has not converged, a perturbed phase also does what was left of it, and that is no effect of
    the perturbation. It cancels in the contrast of two perturbed states, but not of a perturbed one with the free one:
    there the unperturbed state needs a companion, or routes that are held.

    Attributes:
        beta: Strength of the perturbation, positive; the nudging carries the sign.
        nudging: Which two equilibria.
        hold_routes: Keep the free state's pooling routes in the perturbed phases, so that the energy is smooth in the
            strength of the perturbation, which is to be small, and take the free state to be at rest
            (`timm_ebl.relaxation.response`). Ours, not the paper's.
        settle: Give the free state two more free sweeps before the perturbed phases start from it. Ours, not the
            paper's; by default not where there is a companion.
        companion: In a one-sided rule, relax the unperturbed state as long as the perturbed one, from the same free
            state and under a perturbation of strength 0, as the paper's released code does. By default where routes
            are followed: with held routes the free state counts as at rest and is its own companion.
    """

    beta: float = 0.25
    nudging: Nudging = Nudging.CENTERED
    hold_routes: bool = True
    settle: bool | None = None
    companion: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (is_number(self.beta) and 0 < self.beta < math.inf):
            raise ValueError(f"beta is a positive number (the rule carries the sign), not {self.beta!r}.")
        require_flag("hold_routes", self.hold_routes)
        for name in ("settle", "companion"):
            require_flag(name, getattr(self, name), optional=True)

    @abstractmethod
    def perturbation(self, output: Tensor, target: Tensor, beta: Tensor) -> Perturbation:
        """The perturbation of signed strength ``beta``, ``(B, 1)``, given the free output and the target."""

    @property
    def accompanies(self) -> bool:
        """Whether the unperturbed state goes on beside the perturbed one."""
        return self.companion is not False and not self.hold_routes and 0 in self.nudging.value

    @property
    def settles(self) -> bool:
        """Whether the free state goes on by itself before the perturbed phases."""
        return not self.accompanies if self.settle is None else self.settle

    def __call__(self, model: EnergyModel, x: Tensor, y: Tensor, start: State | None = None) -> RuleOutput:
        require_energy(model)
        free = model.relax(x, start, minimizer=self.free)
        target = as_target(y, free.output)
        require_strength(self.beta, free.output.dtype)
        rest = model.settle(free, self.free, self.hold_routes) if self.settles else free
        first, second = self.nudging.value
        multiples = [multiple for multiple in (first, second) if multiple or self.accompanies]
        both = rest.repeat(len(multiples))
        perturbation = self.perturbation(
            both.state[-1],
            torch.cat([target] * len(multiples)),
            torch.cat([target.new_full((len(target), 1), multiple * self.beta) for multiple in multiples]),
        )
        pair = model.relax(both.input, both, perturbation, self.second, self.hold_routes)
        if len(multiples) == 1:
            pair = Relaxation.of_copies([pair, rest] if first else [rest, pair])
        weights = target.new_full((len(target),), 1 / (len(target) * (second - first) * self.beta))
        loss = model.contrast(pair, torch.cat([-weights, weights]))
        return RuleOutput(loss, free.output, free, tuple(layer[len(target) :] for layer in pair.state))


@dataclass(frozen=True)
class EquilibriumPropagation(ContrastiveRule):
    """Equilibrium propagation: every layer relaxes under ``E + beta C`` (Equations 4 to 6; Theorems 2 and 3).

    Attributes:
        damped: Update a nudged output by ``o <- u - beta (o - y)``, ``u`` the drive into it, as the paper's released
            code does. By default it goes to the minimum at once, ``o <- (u + beta y) / (1 + beta)``: the same fixed
            point, but the short nudged phases get nearer to it.
    """

    damped: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_flag("damped", self.damped)
        if self.nudging is not Nudging.POSITIVE and self.beta >= 1:
            raise ValueError(f"A negative nudge needs beta below 1, or the output has no minimum; got {self.beta!r}.")
        if self.damped and self.beta >= 1:
            raise ValueError(f"A damped nudge needs beta below 1, or it does not converge; got {self.beta!r}.")

    def perturbation(self, output: Tensor, target: Tensor, beta: Tensor) -> Perturbation:
        require_strength(self.beta, output.dtype, below_1=self.nudging is not Nudging.POSITIVE)
        return Nudged(target, beta, self.damped)


@dataclass(frozen=True)
class CoupledLearning(ContrastiveRule):
    """Coupled learning: the output is clamped to ``(1 - beta) o_* + beta y`` (Equations 7 to 9).

    With ``beta = 1`` and positive nudging it is contrastive learning (Equations 2 and 3; Theorem 1).
    """

    def perturbation(self, output: Tensor, target: Tensor, beta: Tensor) -> Perturbation:
        return Clamped((1 - beta) * output + beta * target)


@dataclass(frozen=True)
class TruncatedBackprop(Rule):
    """Baseline TBP: backpropagation of the cost through the last sweeps from the free state (paper, Table 1)."""

    second: Minimizer = TruncatedBackward.second

    def __call__(self, model: EnergyModel, x: Tensor, y: Tensor, start: State | None = None) -> RuleOutput:
        require_energy(model)
        free = model.relax(x, start, minimizer=self.free)
        target = as_target(y, free.output)
        state = unroll(model, x, free.state, self.second)
        last = tuple(layer.detach() for layer in state)
        return RuleOutput(squared_error(state[-1], target).mean(), free.output, free, last)


@dataclass(frozen=True)
class RecurrentBackprop(Rule):
    """Baseline RBP: implicit differentiation at the free state (Almeida, 1987; Pineda, 1987).

    With ``F`` one sweep and ``v`` the adjoint state (`timm_ebl.rules.backprop.adjoint`), the gradient is
    ``(dF/dtheta)^T v``.
    """

    second: Minimizer = RecurrentBackward.second

    def __call__(self, model: EnergyModel, x: Tensor, y: Tensor, start: State | None = None) -> RuleOutput:
        require_energy(model)
        free = model.relax(x, start, minimizer=self.free)
        target = as_target(y, free.output)
        forces = [None] * (len(free.state) - 1) + [(free.state[-1] - target) / len(target)]
        swept, adjoints = adjoint(model, x, free.state, forces, self.second)
        projection = inner(adjoints, swept)
        cost = squared_error(free.state[-1], target).mean()
        last = tuple(layer.detach() for layer in swept)
        return RuleOutput(cost + projection - projection.detach(), free.output, free, last)


class _Entry(NamedTuple):
    rule: type[Rule]
    fixed: Mapping[str, object] = MappingProxyType({})


_RULES: dict[str, _Entry] = {
    "cl": _Entry(CoupledLearning, {"nudging": Nudging.POSITIVE, "beta": 1.0, "hold_routes": False}),
    "p-ep": _Entry(EquilibriumPropagation, {"nudging": Nudging.POSITIVE}),
    "n-ep": _Entry(EquilibriumPropagation, {"nudging": Nudging.NEGATIVE}),
    "c-ep": _Entry(EquilibriumPropagation, {"nudging": Nudging.CENTERED, "companion": False}),
    "p-cpl": _Entry(CoupledLearning, {"nudging": Nudging.POSITIVE}),
    "n-cpl": _Entry(CoupledLearning, {"nudging": Nudging.NEGATIVE}),
    "c-cpl": _Entry(CoupledLearning, {"nudging": Nudging.CENTERED, "companion": False}),
    "tbp": _Entry(TruncatedBackprop),
    "rbp": _Entry(RecurrentBackprop),
}


_BUILT_IN = frozenset(_RULES)


def register_rule(name: str, rule: type[Rule], *, replace: bool = False, **fixed: object) -> None:
    """Offer a rule by name.

    Args:
        name: The name for `create_rule`.
        rule: A dataclass derived from `Rule`.
        replace: Whether it may take the name of one of the package's own.
        **fixed: Values of fields that belong to the name and are no options of it.

    Raises:
        TypeError: The rule is no such class.
        ValueError: The name is that of one of the package's own rules, or a value is no field of the rule.
    """
    if not (isinstance(rule, type) and issubclass(rule, Rule)):
        raise TypeError(f"A rule is a dataclass derived from timm_ebl.Rule, not {rule!r}.")
    if name in _BUILT_IN and not replace:
        raise ValueError(f"{name!r} is one of the package's own rules: choose another name, or pass replace=True.")
    known = [f.name for f in fields(rule)]
    unknown = [field for field in fixed if field not in known]
    if unknown:
        raise ValueError(f"Rule {name!r} has no field {unknown[0]!r}: its fields are {', '.join(known)}.")
    _RULES[name] = _Entry(rule, fixed)


def list_rules() -> list[str]:
    """Names of the rules, in the order of the paper's Section 2."""
    return list(_RULES)


def rule_options(name: str) -> list[str]:
    """Names of the options that `create_rule` takes for a rule.

    Raises:
        ValueError: The rule is unknown.
    """
    if name not in _RULES:
        raise ValueError(f"Unknown rule {name!r}: choose one of {', '.join(_RULES)}.")
    return [f.name for f in fields(_RULES[name].rule) if f.name not in _RULES[name].fixed]


def create_rule(name: str, **options: object) -> Rule:
    """Create a rule by name.

    Args:
        name: One of `list_rules`: ``cl``, ``p-ep``, ``n-ep``, ``c-ep``, ``p-cpl``, ``n-cpl``, ``c-cpl``, ``tbp``,
            ``rbp``.
        **options: Fields of the rule: ``free`` and ``second`` (`Minimizer`) for all; ``beta``, ``hold_routes``
            and ``settle`` for the contrastive ones (``cl`` has the last alone: it clamps to the target, and follows
            the routes that far); ``companion`` for the one-sided ones; ``damped`` for equilibrium propagation.

    Raises:
        ValueError: The rule or an option is unknown, or a value is out of range.
    """
    allowed = rule_options(name)
    unknown = [option for option in options if option not in allowed]
    if unknown:
        raise ValueError(f"Rule {name!r} has no option {unknown[0]!r}: its options are {', '.join(allowed)}.")
    entry = _RULES[name]
    return entry.rule(**entry.fixed, **options)
