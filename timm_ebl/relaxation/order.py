"""Orders of update: which layers change together, and in what sequence, within one sweep (paper, Section 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import index

from ..registry import Registry

__all__ = ["Groups", "Neighbours", "Order", "groups_of", "leading_to", "list_orders", "register_order"]

Groups = tuple[tuple[int, ...], ...]
Neighbours = Sequence[frozenset[int]]
Order = Callable[[Neighbours], Groups]

_ORDERS: Registry[Order] = Registry("order")


def register_order(order: Order, *, replace: bool = False) -> Order:
    """Offer an order of update under its function's name.

    Args:
        order: Takes, for each free layer, the layers that share an interaction with it (`Graph.neighbours`), and
            returns the groups of one sweep, as tuples of the indices ``0 .. L - 1``, output included. Every layer is in
            some group, or it would never change and seem converged; it may be in several, but only once in each. The
            energy never rises if no two layers of a group are neighbours.
        replace: Whether it may take the name of one of the package's own.

    Raises:
        ValueError: The name is that of one of the package's own orders.
    """
    _ORDERS.register(order.__name__, order, replace=replace)
    return order


def list_orders() -> list[str]:
    """Names of the registered orders of update."""
    return sorted(_ORDERS.names())


def groups_of(name: str, neighbours: Neighbours | None = None) -> Groups:
    """The groups of one sweep in an order; without layers none, but the name is known.

    Raises:
        ValueError: No order has that name, or it returns no groups of indices, leaves out a layer, or has one twice in
            a group.
    """
    order = _ORDERS[name]
    if neighbours is None:
        return ()
    groups, layers = order(neighbours), set(range(len(neighbours)))
    try:
        groups = tuple(tuple(group) for group in groups)
        named = {index(layer) for group in groups for layer in group}
    except TypeError:
        raise ValueError(f"The order {name!r} returns no groups of layers: {groups!r}.") from None
    if wrong := named ^ layers:
        what = "leaves out" if wrong <= layers else "names"
        raise ValueError(
            f"The order {name!r} {what} layer {min(wrong)}, and a sweep updates every layer from 0 to {max(layers)}."
        )
    if any(len(set(group)) < len(group) for group in groups):
        raise ValueError(f"The order {name!r} has a layer twice in one group: {groups!r}.")
    return groups


def leading_to(layers: Iterable[int], groups: Groups, sweeps: int, neighbours: Neighbours) -> list[Groups]:
    """The updates of every sweep that the final state of some layers depends on; others need not be made."""
    wanted, found = set(layers), []
    for _ in range(sweeps):
        kept: list[tuple[int, ...]] = []
        for group in reversed(groups):
            updated = tuple(layer for layer in group if layer in wanted)
            wanted.update(*(neighbours[layer] for layer in updated))
            kept.append(updated)
        found.append(tuple(filter(None, reversed(kept))))
    return found[::-1]


@register_order
def asynchronous(neighbours: Neighbours) -> Groups:
    """Layers that no interaction joins together: a colouring of the graph, found from the lowest layer upwards.

    For a chain ``{1, 3, o}``, ``{2, 4}``, as in the paper (Section 3) and its code. The energy never rises.
    """
    colours: list[int] = []
    for layer, near in enumerate(neighbours):
        taken = {colours[other] for other in near if other < layer}
        colours.append(next(colour for colour in range(len(neighbours)) if colour not in taken))
    return tuple(tuple(k for k, colour in enumerate(colours) if colour == c) for c in range(max(colours) + 1))


@register_order
def synchronous(neighbours: Neighbours) -> Groups:
    """Every layer from the old state (Laborieux et al., 2021). The energy may rise."""
    return (tuple(range(len(neighbours))),)


@register_order
def forward(neighbours: Neighbours) -> Groups:
    """One layer after the other, from the input to the output. The energy never rises."""
    return tuple((layer,) for layer in range(len(neighbours)))


@register_order
def backward(neighbours: Neighbours) -> Groups:
    """One layer after the other, from the output to the input. The energy never rises. Not in the paper.

    A nudge of the output reaches every layer in a single sweep; in the asynchronous order that takes half as many
    sweeps as there are layers.
    """
    return tuple((layer,) for layer in reversed(range(len(neighbours))))


_ORDERS.close()
