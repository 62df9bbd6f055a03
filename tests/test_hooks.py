"""Hooks on the interactions of a network see each layer's equilibrium, once for each forward pass."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from oracles import images_for, parameter_gradients
from torch.nn.utils import prune
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from timm_ebl.kernels.native import is_watched


@pytest.fixture
def watched(make_live):
    """A network, one like it with a hook on each interaction, and what these hooks have seen."""
    plain, model, seen = make_live(), make_live(), []
    for interaction in model.interactions:
        interaction.register_forward_hook(lambda module, inputs, output: seen.append((module, inputs[0], output)))
    return plain, model, seen


# ---------------------------------------------------------------------------------------------------------- closed form


@pytest.mark.parametrize("learns", [True, False])
def test_each_hook_sees_its_layer_at_equilibrium_once(watched, batch, learns):
    (plain, model, seen), (x, _) = watched, batch
    with torch.set_grad_enabled(learns):
        output = model(x)
    free = plain.relax(x)
    assert torch.equal(output, free.output)
    assert [module for module, _, _ in seen] == [*model.interactions]
    expected = (*free.state[:-1], free.output)
    for (_, lower, state), below, layer in zip(seen, (x, *expected), expected, strict=False):
        assert torch.equal(state, layer)
        assert torch.equal(lower, below)


def test_the_features_reach_the_hooks_of_the_hidden_layers_and_the_head_its_own(watched, batch):
    (plain, model, seen), (x, _) = watched, batch
    output = model.forward_head(model.forward_features(x))
    assert torch.equal(output, plain(x))
    assert [module for module, _, _ in seen] == [*model.interactions]
    seen.clear()
    *_, chosen = model.forward_intermediates(x, indices=[1])
    assert torch.equal(chosen[0], plain.relax(x).state[1])
    assert [module for module, _, _ in seen] == [*model.layers]


def test_a_class_activation_map_has_its_gradient_by_features_and_head(make_live, batch):
    model, (x, _) = make_live(), batch
    found = {}
    layer = model.layers[-1]
    layer.register_forward_hook(lambda *call: found.update(state=call[2]))
    layer.register_full_backward_hook(lambda *call: found.update(gradient=call[2][0]))
    model.forward_head(model.forward_features(x))[:, 2].sum().backward()
    assert torch.equal(found["state"], model.relax(x).state[-2])
    weight = model.head.weight[2].view(1, *found["state"].shape[1:])
    torch.testing.assert_close(found["gradient"], weight.expand_as(found["state"]), rtol=0, atol=0)


def test_what_a_hook_of_the_head_returns_is_the_answer(make_live, batch):
    plain, model = make_live(), make_live()
    model.head.register_forward_hook(lambda module, inputs, output: 2 * output)
    assert torch.equal(model(batch[0]), 2 * plain(batch[0]))


# ------------------------------------------------------------------------------------------------------------- property


def test_hooks_change_no_gradient(watched, batch):
    (plain, model, _), (x, y) = watched, batch
    expected, found = (parameter_gradients(each, F.cross_entropy(each(x), y)) for each in (plain, model))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_hooks_that_make_a_weight_watch_nothing(make_live):
    layer = make_live().layers[1]
    prune.random_unstructured(layer, "weight", 0.4)
    assert not is_watched(layer)
    layer.register_forward_pre_hook(lambda *_: None)
    assert is_watched(layer)


def test_an_interaction_alone_is_its_drive(make_live, batch):
    model = make_live()
    assert torch.equal(model.layers[0](batch[0]), model.layers[0].drive(batch[0]))


# ----------------------------------------------------------------------------------------------------------- end to end


def test_hooks_leave_graphs_their_answers(tiny):
    x = images_for(tiny)
    expected = tiny.eval()(x).detach()
    called = []
    for interaction in tiny.interactions:
        interaction.register_forward_hook(lambda *_: called.append(1))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(torch.jit.script(tiny)(x), expected)
        torch.testing.assert_close(torch.jit.trace(tiny, x)(x), expected)
        torch.testing.assert_close(torch.export.export(tiny, (x,)).module()(x), expected)
        torch.testing.assert_close(torch.fx.symbolic_trace(tiny)(x), expected)
        node = get_graph_node_names(tiny)[1][-1]
        torch.testing.assert_close(create_feature_extractor(tiny, [node])(x)[node], expected)


def test_hooks_of_a_compiled_network_are_called(tiny):
    x, called = images_for(tiny), []
    for interaction in tiny.interactions:
        interaction.register_forward_hook(lambda *_: called.append(1))
    torch.compiler.reset()
    compiled = torch.compile(tiny, backend="eager")
    with torch.no_grad():
        expected = tiny(x)
        called.clear()
        torch.testing.assert_close(compiled(x), expected)
    assert len(called) == 5
