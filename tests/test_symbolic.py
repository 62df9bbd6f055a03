"""Networks in graphs of torch.fx: they answer, learn, are copied, become TorchScript and are exported."""

import copy
import io
import subprocess
import sys
import warnings

import pytest
import timm
import torch
from oracles import images_for
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from timm_ebl import Minimizer

each_family = pytest.mark.parametrize("tiny", ["dchn_tiny_cifar10", "hopfield_resnet13_tiny_cifar10"], indirect=True)


@each_family
def test_a_symbolic_trace_answers_and_learns_alike(tiny):
    x = images_for(tiny)
    tiny.perturbed, tiny.force = Minimizer(sweeps=2, omega=1.0), 0.3
    tiny(x).sum().backward()
    expected = {name: parameter.grad.clone() for name, parameter in tiny.named_parameters()}
    node = get_graph_node_names(tiny)[0][-1]
    for graph in (torch.fx.symbolic_trace(tiny), create_feature_extractor(tiny, [node])):
        graph.zero_grad()
        output = graph(x)
        output = output[node] if isinstance(output, dict) else output
        torch.testing.assert_close(output, tiny(x))
        output.sum().backward()
        found = {name: parameter.grad for name, parameter in graph.named_parameters()}
        assert found.keys() == expected.keys()
        torch.testing.assert_close(found, expected)


@each_family
def test_a_symbolic_trace_is_scripted_saved_and_answers_alike(tiny):
    x, tiny.minimizer = images_for(tiny.eval(), 3), Minimizer(sweeps=2)
    maps = timm.create_model(tiny.default_cfg["architecture"], sweeps=2, features_only=True).eval()
    node = get_graph_node_names(tiny)[1][-1]
    for network, graph, answer in (
        (tiny, torch.fx.symbolic_trace(tiny), tiny),
        (tiny, create_feature_extractor(tiny, [node]), lambda x: {node: tiny(x)}),
        (maps, torch.fx.symbolic_trace(maps), maps),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.script(graph), file := io.BytesIO())
        file.seek(0)
        scripted = torch.jit.load(file)
        assert scripted.state_dict().keys() == network.state_dict().keys()
        with torch.no_grad(), torch.jit.optimized_execution(False):
            torch.testing.assert_close(scripted(x), answer(x))
            torch.testing.assert_close(scripted(x[:1]), answer(x[:1]))


@each_family
def test_copies_of_a_symbolic_trace_are_networks_of_their_own(tiny):
    x, graph = images_for(tiny.eval()), torch.fx.symbolic_trace(tiny)
    expected, other = tiny(x), timm.create_model(tiny.default_cfg["architecture"]).eval()
    torch.save(graph, file := io.BytesIO())
    file.seek(0)
    for copied in (copy.deepcopy(graph), torch.load(file, weights_only=False), torch.fx.symbolic_trace(graph)):
        assert copied.state_dict().keys() == tiny.state_dict().keys()
        torch.testing.assert_close(copied(x), expected)
        copied.load_state_dict(other.state_dict(), assign=True)
        torch.testing.assert_close(copied(x), other(x))
        torch.testing.assert_close(copied.double()(x.double()), copy.deepcopy(other).double()(x.double()))
    tiny.reset_classifier(3)
    torch.testing.assert_close(graph(x), expected)


LOAD = """
import sys, torch
exported, x, answer = (sys.argv[1] + name for name in ("/network.pt2", "/x.pt", "/answer.pt"))
torch.save(torch.export.load(exported).module()(torch.load(x)), answer)
"""


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_an_export_answers_alike_in_a_process_that_has_no_network(tiny, tmp_path, strict, grad):
    x = images_for(tiny.eval())
    with torch.set_grad_enabled(grad):
        exported = torch.export.export(
            tiny, (images_for(tiny, 3),), dynamic_shapes=({0: torch.export.Dim("b")},), strict=strict
        )
    torch.export.save(exported, tmp_path / "network.pt2")
    torch.save(x, tmp_path / "x.pt")
    subprocess.run([sys.executable, "-c", LOAD, str(tmp_path)], check=True)
    torch.testing.assert_close(torch.load(tmp_path / "answer.pt"), tiny(x).detach())


def test_a_compiled_graph_whose_network_is_gone_says_so(tiny):
    x, parameters = images_for(tiny), list(tiny.parameters())
    with pytest.raises(RuntimeError, match="network of this compiled graph is not in this process: compile it here"):
        torch.ops.timm_ebl.relaxed_layers(x, parameters, 0, [-1], None)
