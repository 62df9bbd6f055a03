"""The package's own rules by name, and the ways to differentiate an equilibrium by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..registry import Registry, Variant
from .backprop import RecurrentBackprop, TruncatedBackprop
from .contrastive import CoupledLearning, EquilibriumPropagation
from .cost import SQUARED_ERROR
from .nudging import Nudging
from .rule import RULES, register_rule

if TYPE_CHECKING:
    from .backward import Backward

__all__ = ["create_backward", "list_backwards", "name_of"]

register_rule("cl", CoupledLearning, nudging=Nudging.POSITIVE, beta=1.0, linear_response=False)
register_rule("p-ep", EquilibriumPropagation, nudging=Nudging.POSITIVE)
register_rule("n-ep", EquilibriumPropagation, nudging=Nudging.NEGATIVE)
register_rule("c-ep", EquilibriumPropagation, nudging=Nudging.CENTERED, companion=False)
register_rule("r-ep", EquilibriumPropagation, nudging=Nudging.RANDOM)
register_rule("p-cpl", CoupledLearning, nudging=Nudging.POSITIVE)
register_rule("n-cpl", CoupledLearning, nudging=Nudging.NEGATIVE)
register_rule("c-cpl", CoupledLearning, nudging=Nudging.CENTERED, companion=False)
register_rule("r-cpl", CoupledLearning, nudging=Nudging.RANDOM)
register_rule("tbp", TruncatedBackprop)
register_rule("rbp", RecurrentBackprop)
RULES.close()

# The free phase is the network's own, the loss is the cost, and a force has one update, damped or not.
_BACKWARDS: Registry[Variant[Backward]] = Registry("backward")
_FORCED = {"free": None, "cost": SQUARED_ERROR}
_BACKWARDS.register("ep", Variant("Backward 'ep'", EquilibriumPropagation, {**_FORCED, "damped": False}))
_BACKWARDS.register("tbp", Variant("Backward 'tbp'", TruncatedBackprop, _FORCED))
_BACKWARDS.register("rbp", Variant("Backward 'rbp'", RecurrentBackprop, _FORCED))


def list_backwards() -> list[str]:
    """Names of the ways to differentiate an equilibrium."""
    return _BACKWARDS.names()


def name_of(backward: Backward) -> str | Backward:
    """The name by which `create_backward` makes a way to differentiate; without such a name the way itself."""
    return next((name for name in _BACKWARDS.names() if backward == create_backward(name)), backward)


def create_backward(name: str, **options: object) -> Backward:
    """A way to differentiate an equilibrium, by name.

    Args:
        name: ``ep``, ``tbp`` or ``rbp``.
        **options: Fields of the method: for ``ep`` ``perturbed``, ``beta`` (by default `EnergyModel.force`),
            ``nudging`` (by default centred), ``linear_response``, ``settle`` and ``companion``; ``unrolled`` for
            ``tbp``; ``adjoint`` for ``rbp``.

    Raises:
        TypeError: A minimiser is none.
        ValueError: The name or an option is unknown, or a value is out of range.
    """
    return _BACKWARDS[name].create(**options)
