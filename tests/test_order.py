"""Orders of update, and what an answer leaves out of the last sweeps."""

from dataclasses import replace
from itertools import pairwise

import pytest
import responses
import torch
from oracles import record_products

from timm_ebl import Minimizer, Start, register_order
from timm_ebl.relaxation import order as orders


def test_an_order_from_outside_works(make_dchn, batch):
    @register_order
    def outside_in(neighbours):
        layers = len(neighbours)
        return tuple((layer,) for layer in sorted(range(layers), key=lambda layer: min(layer, layers - 1 - layer)))

    model, (x, _) = make_dchn(order="outside_in", sweeps=2000, tolerance=1e-12), batch
    relaxation = model.relax(x)
    assert relaxation.converged.all()
    for layer, value in enumerate(relaxation.state):
        expected = responses.minimum(responses.layers_of(model), x, relaxation.state, layer)
        torch.testing.assert_close(value, expected, atol=1e-9, rtol=0)


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    """What a test registers is gone after it."""
    monkeypatch.setattr(orders._ORDERS, "_entries", dict(orders._ORDERS._entries))


def register(name, groups):
    """An order of any number of layers with these groups."""

    def fixed(neighbours):
        return groups

    fixed.__name__ = name
    return register_order(fixed)


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        (((0, 2), (1, 3)), "leaves out layer 4"),
        ((), "leaves out layer 0"),
        (((0, 1, 2, 3, 4, 5),), "names layer 5"),
        (((0, 1, 2, 3, -1),), "names layer -1"),
        (((0, 2, 4, 4), (1, 3)), "has a layer twice in one group"),
        ((0, 1, 2, 3, 4), "returns no groups of layers"),
        (((0.0, 1, 2, 3, 4),), "returns no groups of layers"),
        (None, "returns no groups of layers"),
    ],
)
def test_an_order_that_does_not_update_every_layer_is_refused(make_dchn, batch, groups, words):
    register("odd_one", groups)
    with pytest.raises(ValueError, match=f"'odd_one' {words}"):
        make_dchn(order="odd_one")
    with pytest.raises(ValueError, match=words):
        make_dchn().relax(batch[0], minimizer=Minimizer(order="odd_one"))


def test_an_order_may_go_up_and_down(make_dchn, batch):
    register("up_and_down_again", [[0], [1], [2], [3], [4], [3], [2], [1], [0]])
    model, (x, _) = make_dchn(order="up_and_down_again", sweeps=500, tolerance=1e-10), batch
    assert model.relax(x).converged.all()


def test_the_packages_own_orders_are_not_replaced_by_accident():
    with pytest.raises(ValueError, match=r"'forward' is one of the package's own orders: .*replace=True"):
        register("forward", ((0,),))
    assert register_order(orders.forward, replace=True) is orders.forward


def chain(layers):
    """The neighbours of each layer of a chain."""
    return [frozenset({layer - 1, layer + 1} & set(range(layers))) for layer in range(layers)]


@pytest.mark.parametrize("layers", [1, 2, 4, 5])
def test_every_order_updates_every_layer_once(layers):
    for order in responses.GROUPS:
        groups = Minimizer(order=order).groups(chain(layers))
        assert sorted(layer for group in groups for layer in group) == list(range(layers))
        if order != "synchronous":
            assert all(b - a > 1 for group in groups for a, b in pairwise(sorted(group)))


@pytest.mark.parametrize("order", responses.GROUPS)
@pytest.mark.parametrize("widths", [(4,), (4, 5), (4, 5, 6, 7)])
@pytest.mark.parametrize("sweeps", [1, 2, 5])
def test_an_answer_is_the_relaxations(make_dchn, batch, order, widths, sweeps):
    model, (x, _) = make_dchn(widths=widths, order=order, omega=(1.9, 1.4), sweeps=sweeps), batch
    for start in Start:
        minimizer = replace(model.minimizer, start=start)
        torch.testing.assert_close(
            model.answer(x, minimizer), model.relax(x, minimizer=minimizer).output, atol=1e-14, rtol=0
        )
    tolerant = Minimizer(sweeps=500, tolerance=1e-6)
    torch.testing.assert_close(model.answer(x, tolerant), model.relax(x, minimizer=tolerant).output)


def test_an_answer_leaves_out_what_no_longer_reaches_the_output(make_dchn, batch, monkeypatch):
    model, (x, _) = make_dchn(), batch
    calls = record_products(monkeypatch, model)
    counts = []
    for relax in (model.relax, model.answer):
        calls.clear()
        relax(x, minimizer=Minimizer(sweeps=3))
        counts.append([calls.count(layer) for layer in range(4)])
    assert counts[0] == [1, 7, 7, 7]
    # The last sweep updates neither of the two lowest layers, and nothing looks at the drive of the third any more.
    assert counts[1] == [1, 5, 5, 7]
