"""Sweeps as a compiler makes them."""

import shutil
from dataclasses import replace
from functools import cache

import pytest
import timm
import torch

from timm_ebl import Minimizer, create_rule
from timm_ebl.kernels import compiled as compiled_module
from timm_ebl.relaxation import descent


@pytest.mark.parametrize("name", ["c-ep", "n-cpl", "cl"])
def test_compiled_sweeps_have_no_breaks_and_are_compiled_once(make_dchn, batch, monkeypatch, name):
    @cache
    def compiled(function, form):
        return torch.compile(function, backend="eager", dynamic=False, fullgraph=True)

    monkeypatch.setattr(descent, "compiled", compiled)
    torch.compiler.reset()
    model, (x, y) = make_dchn(dtype=torch.float32), batch
    rule = create_rule(name).fitted(model)
    phases = {"free": model.minimizer, rule.second_field: rule.second_phase}
    compiled = replace(rule, **{name: replace(phase, compiled=True) for name, phase in phases.items()})
    for step in range(4):
        with torch._dynamo.config.patch(error_on_recompile=step > 0):
            expected, found = (
                torch.autograd.grad(each(model, x.float() + step, y).loss, [*model.parameters()])
                for each in (rule, compiled)
            )
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.9)


@pytest.mark.parametrize("strict", [True, False])
def test_a_network_of_compiled_sweeps_is_exported_without_a_compiler(strict):
    model = timm.create_model("dchn_tiny_cifar10", widths=(4, 4, 4, 4), sweeps=2, compiled=True).eval()
    batch = {0: torch.export.Dim("batch", min=2, max=64)}
    exported = torch.export.export(model, (torch.rand(4, 3, 32, 32),), dynamic_shapes=(batch,), strict=strict)
    model.minimizer = replace(model.minimizer, compiled=False)
    for size in (4, 3):
        x = torch.rand(size, 3, 32, 32)
        torch.testing.assert_close(exported.module()(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiled code for a CPU needs g++, and there is none")
def test_compiled_code_walks_the_same_trajectory(make_dchn, batch):
    torch.compiler.reset()
    model, x = make_dchn(dtype=torch.float32, widths=(4, 5)), batch[0].float()
    compiled, plain = (model.relax(x, minimizer=Minimizer(sweeps=3, compiled=flag)) for flag in (True, False))
    torch.testing.assert_close(compiled.state, plain.state, rtol=0, atol=1e-5)


def test_every_form_is_compiled_however_many_there_are(make_dchn, batch, monkeypatch):
    graphs = []

    def counted(graph, inputs):
        def run(*arguments):
            graphs.append(graph)
            return graph.forward(*arguments)

        return run

    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: original(function, backend=counted, **options))
    compiled_module.compiled.cache_clear()
    torch.compiler.reset()
    model, x = make_dchn(dtype=torch.float32), batch[0].float()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for size in range(1, 13):
            images, graphs[:] = x[:1].expand(size, -1, -1, -1), []
            found = model.relax(images, minimizer=Minimizer(sweeps=2, compiled=True))
            assert len(graphs) == 2
            torch.testing.assert_close(found.state, model.relax(images, minimizer=Minimizer(sweeps=2)).state)
    compiled_module.compiled.cache_clear()
