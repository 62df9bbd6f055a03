"""What a learning rule is, and the rules by name.

A rule called on ``(model, x, y)`` returns a `RuleOutput`, whose ``loss`` is a scalar. Its gradient in the parameters is
descended: minus the paper's update, without the learning rate. So mixed precision, gradient accumulation and data
parallelism work as for any loss.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..kernels.native import require
from ..registry import Registry, Variant
from ..relaxation.minimizer import Minimizer, require_minimizer

if TYPE_CHECKING:
    from ..energy.functional import State
    from ..relaxation.model import EnergyModel
    from ..relaxation.record import Relaxation

__all__ = [
    "RULES",
    "Rule",
    "RuleOutput",
    "as_target",
    "create_rule",
    "list_rules",
    "register_rule",
    "require_energy",
    "require_strength",
    "rule_class",
    "rule_options",
    "squared_error",
]


ROUNDINGS = 1024
"""Least size of a perturbation in units of rounding, so that three digits of its effect remain."""


class RuleOutput(NamedTuple):
    """What a rule returns.

    Attributes:
        loss: Scalar whose gradient the rule descends: a contrast of energies, or the cost for the baselines.
        output: Answer of the free phase, ``(B, M)`` (`Relaxation.output`).
        free: The free phase.
        last: The state that the second phase left: ``state_2`` of a contrast (or the only one relaxed), the last of the
            sweeps that truncated backpropagation unrolls, the one sweep that recurrent backpropagation
            differentiates. The paper's released code starts the next batch's free phase from it.
    """

    loss: Tensor
    output: Tensor
    free: Relaxation
    last: State


def as_target(y: Tensor, output: Tensor) -> Tensor:
    """Desired output ``(B, M)``: class indices ``(B,)`` become one-hot rows, rows are taken as they are.

    Raises:
        TypeError: The labels are no tensor of whole or real numbers.
        ValueError: There are none, or no classes, they are on another device, their shape does not fit, a target is not
            finite (on CUDA nobody looks) or a label out of range (there, the device says so:
            `timm_ebl.kernels.native.require`).
    """
    if not isinstance(y, Tensor):
        raise TypeError(f"Labels are a tensor, not {type(y).__name__}: torch.as_tensor makes one of a list.")
    if y.dtype == torch.bool or y.is_complex():
        raise TypeError(f"Labels are whole numbers and targets real ones, not {y.dtype}.")
    if y.device != output.device:
        raise ValueError(f"The labels are on {y.device} and the model's output on {output.device}: move them there.")
    if not len(output):
        raise ValueError("The batch is empty: a rule learns from at least one sample.")
    if not output.shape[-1]:
        raise ValueError("The model has no classes to learn, num_classes=0: model.reset_classifier gives it some.")
    if y.shape == output.shape:
        if not (y.is_meta or y.is_cuda or bool(y.isfinite().all())):
            raise ValueError("The targets hold NaN or infinite values.")
        return y.to(output.dtype)
    if y.ndim != 1 or y.shape[0] != output.shape[0] or y.is_floating_point():
        raise ValueError(
            f"Labels are {output.shape[0]} whole numbers or a target of shape {tuple(output.shape)}, "
            f"not {y.dtype} of shape {tuple(y.shape)}."
        )
    classes = output.shape[1]
    if not y.is_meta:
        found = "others" if y.is_cuda else f"{int(y.min())} .. {int(y.max())}"
        require(((y >= 0) & (y < classes)).all(), f"Labels lie in 0 .. {classes - 1}; this batch has {found}.")
    return (y[:, None] == torch.arange(classes, device=y.device)).to(output.dtype)


def require_energy(model: object) -> None:
    """Refuse a model that cannot tell its energy; what wraps one that can (`torch.compile`) passes.

    Raises:
        TypeError: It is none.
    """
    if not _has_energy(model):
        name = type(model).__name__
        if _has_energy(getattr(model, "module", None)):
            raise TypeError(
                f"A {name} has no energy to relax, but its .module has: give the rule that, and for data parallelism "
                "wrap the rule's call, as timm_ebl.training.task.RuleTask.prepare_distributed does."
            )
        raise TypeError(
            f"A {name} has no energy to relax: choose one of timm.list_models(['dchn*', "
            "'hopfield_resnet*', 'pcn*']), or derive the model from timm_ebl.EnergyModel."
        )


def _has_energy(model: object) -> bool:
    return all(hasattr(model, name) for name in ("energy", "relax", "sweep"))


def require_strength(beta: float, dtype: torch.dtype, below_1: bool = False) -> None:
    """Refuse a strength of a perturbation of which rounding leaves nothing.

    Args:
        beta: The strength, a positive number.
        dtype: Type of the states; contrasted ones are kept in at least 32 bits.
        below_1: Whether ``1 - beta`` is divided by.

    Raises:
        ValueError: It, its inverse or ``1 - beta`` is too near to 0.
    """
    wide = torch.promote_types(dtype, torch.float32)
    least = ROUNDINGS * torch.finfo(wide).eps
    here = f"In {str(wide).removeprefix('torch.')}"
    if not least <= beta <= 1 / least:
        raise ValueError(f"{here}, rounding leaves a beta of {least:.1e} to {1 / least:.1e} its digits, not {beta!r}.")
    if below_1 and 1 - beta < least:
        raise ValueError(f"{here}, a negative nudge needs beta below 1 - {least:.1e}; got {beta!r}.")


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """The cost ``C(o, y) = 1/2 |o - y|^2``, ``(B,)``."""
    return ((output - target) ** 2).sum(1) / 2


@dataclass(frozen=True)
class Rule(ABC):
    """A learning rule: a frozen dataclass whose fields are its options.

    Attributes:
        free: Minimiser of the free phase; ``None`` takes the model's own.
        second_field: Name of the field with the minimiser of the second phase, which follows the free one:
            ``"perturbed"``, ``"unrolled"``, ``"adjoint"``; ``None`` for a rule without such a field. `train_ebl.py`
            sets its sweeps by ``--nudged-sweeps``, and where the name is ``"perturbed"`` its order and
            over-relaxation by ``--nudged-order`` and ``--nudged-omega``.

    Raises:
        TypeError: A minimiser is none.
    """

    free: Minimizer | None = None

    second_field: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        require_minimizer("free", self.free, optional=True)
        if self.second_field is not None:
            require_minimizer(self.second_field, self.second_phase, optional=True)

    @property
    def second_phase(self) -> Minimizer | None:
        """The minimiser of the second phase (`second_field`); ``None`` for none, or for the model's own (`fitted`)."""
        return None if self.second_field is None else getattr(self, self.second_field)

    @property
    def draws(self) -> bool:
        """Whether it needs a random sign for each sample."""
        return False

    def fitted(self, model: EnergyModel) -> Rule:
        """The rule for a model: with its own settings where `second_field` or ``beta`` is ``None``, and as it can."""
        left = (name for name in (self.second_field, "beta") if name and getattr(self, name, 0) is None)
        return replace(self, **{name: getattr(model, name) for name in left})

    def check(self) -> None:  # noqa: B027 (most options go together)
        """Refuse, by a ValueError, options that do not go together in learning; `create_rule` asks for it."""

    @abstractmethod
    def __call__(self, model: EnergyModel, x: Tensor, y: Tensor, start: State | None = None) -> RuleOutput:
        """The rule's scalar for a batch.

        A rule that `draws` takes the signs of the samples as well, ``signs=``, ``(B,)`` (`random_signs`).

        Args:
            model: An energy model.
            x: Inputs ``(B, C, H, W)``.
            y: Class indices ``(B,)``, or desired outputs ``(B, M)``.
            start: State from which the free phase starts; by default the minimiser's start.

        Raises:
            ValueError: The input or the labels do not fit the model.
        """


RULES: Registry[Variant[Rule]] = Registry("rule")


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
    RULES.register(name, Variant(f"Rule {name!r}", rule, fixed), replace=replace)


def list_rules() -> list[str]:
    """Names of the rules: contrastive ones in the order of the paper's Section 2, baselines, then registered ones."""
    return RULES.names()


def rule_class(name: str) -> type[Rule]:
    """The class of a rule.

    Raises:
        ValueError: The rule is unknown.
    """
    return RULES[name].kind


def rule_options(name: str) -> list[str]:
    """Names of the options that `create_rule` takes for a rule.

    Raises:
        ValueError: The rule is unknown.
    """
    return RULES[name].options


def create_rule(name: str, **options: object) -> Rule:
    """Create a rule by name.

    Args:
        name: One of `list_rules`: ``cl``, ``p-ep``, ``n-ep``, ``c-ep``, ``r-ep``, ``p-cpl``, ``n-cpl``, ``c-cpl``,
            ``r-cpl``, ``tbp``, ``rbp``.
        **options: Fields of the rule: ``free`` (`Minimizer`) for all; ``perturbed`` (`Minimizer`), ``beta``,
            ``linear_response`` and ``settle`` for the contrastive ones (``cl`` has neither ``beta`` nor
            ``linear_response``: it clamps to the target, and follows the routes that far); ``companion`` for the
            one-sided ones; ``damped`` for equilibrium propagation; ``cost`` for equilibrium propagation and the
            baselines; ``unrolled`` for ``tbp``; ``adjoint`` for ``rbp``.

    Raises:
        TypeError: A minimiser is none.
        ValueError: The rule or an option is unknown, or a value is out of range.
    """
    rule = RULES[name].create(**options)
    rule.check()
    return rule
