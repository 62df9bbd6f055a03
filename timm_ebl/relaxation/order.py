"""Orders of update: which layers change together, and in what sequence, within one sweep (paper, Section 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import index

__all__ = [
    "Groups",
    "Order",
    "asynchronous",
    "backward",
    "checked",
    "forward",
    "get_order",
    "leading_to",
    "list_orders",
    "register_order",
    "synchronous",
]

Groups = tuple[tuple[int, ...], ...]
Order = Callable[[int], Groups]
_ORDERS: dict[str, Order] = {}
_BUILT_IN: frozenset[str] = frozenset()


def register_order(order: Order, *, replace: bool = False) -> Order:
    """Offer an order of update under its function's name.

    Args:
        order: Takes the number of free layers ``L`` (output included) and returns the groups of one sweep, as tuples
            of the indices ``0 .. L - 1``. Every layer is in some group, or it would never change and seem converged;
            it may be in several, but only once in each.
        replace: Whether it may take the name of one of the package's own.

    Raises:
        ValueError: The name is that of one of the package's own orders.
    """
    name = order.__name__
    if name in _BUILT_IN and not replace:
        raise ValueError(f"{name!r} is one of the package's own orders: choose another name, or pass replace=True.")
    _ORDERS[name] = order
    return order


def checked(name: str, groups: Groups, layers: int) -> Groups:
    """The groups of one sweep over so many layers, if they are that.

    Args:
        name: Name of the order.
        groups: What it returned.
        layers: The number of free layers.

    Raises:
        ValueError: They are no groups of indices, leave out a layer, or have one twice in a group.
    """
    try:
        groups = tuple(tuple(group) for group in groups)
        named = {index(layer) for group in groups for layer in group}
    except TypeError:
        raise ValueError(f"The order {name!r} returns no groups of layers: {groups!r}.") from None
    if named != set(range(layers)):
        wrong = named.symmetric_difference(range(layers))
        what = "leaves out" if wrong <= set(range(layers)) else "names"
        raise ValueError(
            f"The order {name!r} {what} layer {min(wrong)}, and a sweep updates every layer from 0 to {layers - 1}."
        )
    if any(len(set(group)) < len(group) for group in groups):
        raise ValueError(f"The order {name!r} has a layer twice in one group: {groups!r}.")
    return groups


def get_order(name: str) -> Order:
    """The order of a name.

    Raises:
        ValueError: No order has it.
    """
    if not isinstance(name, str) or name not in _ORDERS:
        raise ValueError(f"Unknown order of update {name!r}: choose one of {', '.join(list_orders())}.")
    return _ORDERS[name]


def list_orders() -> list[str]:
    """Names of the registered orders of update."""
    return sorted(_ORDERS)


def leading_to(layers: Iterable[int], groups: Groups, sweeps: int) -> list[Groups]:
    """The updates of every sweep that the final state of some layers depends on.

    An update reads its layer and both neighbours, so that the last sweeps have layers whose update no longer matters.

    Args:
        layers: The layers whose final state is wanted.
        groups: The groups of one sweep.
        sweeps: The number of sweeps.
    """
    wanted, found = set(layers), []
    for _ in range(sweeps):
        kept: list[tuple[int, ...]] = []
        for group in reversed(groups):
            updated = tuple(layer for layer in group if layer in wanted)
            wanted |= {near for layer in updated for near in (layer - 1, layer, layer + 1)}
            kept.append(updated)
        found.append(tuple(filter(None, reversed(kept))))
    return found[::-1]


@register_order
def asynchronous(layers: int) -> Groups:
    """Odd layers together, then even ones: ``{1, 3, o}``, ``{2, 4}`` (paper, Section 3). The energy never rises."""
    return tuple(range(0, layers, 2)), tuple(range(1, layers, 2))


@register_order
def synchronous(layers: int) -> Groups:
    """Every layer from the old state (Laborieux et al., 2021). The energy may rise."""
    return (tuple(range(layers)),)


@register_order
def forward(layers: int) -> Groups:
    """One layer after the other, from the input to the output. The energy never rises."""
    return tuple((layer,) for layer in range(layers))


@register_order
def backward(layers: int) -> Groups:
    """One layer after the other, from the output to the input. The energy never rises.

    A nudge of the output reaches every layer in a single sweep, where the asynchronous order takes half as many sweeps
    as there are layers. Not in the paper.
    """
    return tuple((layer,) for layer in reversed(range(layers)))


_BUILT_IN = frozenset(_ORDERS)
