"""Sweeps as a compiler makes them."""

import shutil
from dataclasses import replace
from functools import cache

import pytest
import torch

from timm_ebl import Minimizer, create_rule
from timm_ebl.relaxation import descent


@pytest.mark.parametrize("name", ["c-ep", "n-cpl", "cl"])
def test_compiled_sweeps_have_no_breaks_and_are_compiled_once(make_dchn, batch, monkeypatch, name):
    @cache
    def compiled_sweep(phase):
        return torch.compile(phase.sweep, backend="eager", dynamic=False, fullgraph=True)

    monkeypatch.setattr(descent, "compiled_sweep", compiled_sweep)
    torch.compiler.reset()
    model, (x, y) = make_dchn(dtype=torch.float32), batch
    rule = create_rule(name)
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


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiled code for a CPU needs g++, and there is none")
def test_compiled_code_walks_the_same_trajectory(make_dchn, batch):
    torch.compiler.reset()
    model, x = make_dchn(dtype=torch.float32, widths=(4, 5)), batch[0].float()
    compiled, plain = (model.relax(x, minimizer=Minimizer(sweeps=3, compiled=flag)) for flag in (True, False))
    torch.testing.assert_close(compiled.state, plain.state, rtol=0, atol=1e-5)
