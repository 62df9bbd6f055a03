"""Every optimiser that timm can build here goes on from a checkpoint as if nothing had happened, to the last bit."""

import pytest
import timm.optim
import torch
from noise_runs import Run

from timm_ebl.errors import ConfigError

LOOKAHEAD = ["lookahead_adam", "lookahead_sgd", "lookahead_lamb", "lookahead_kron", "lookahead_muon"]
FOREIGN = timm.optim.list_optimizers(["bnb*", "fused*"])
OURS = sorted({*timm.optim.list_optimizers()} - {*FOREIGN, "adahessian"})


def same(first, second):
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def assert_same(first, second):
    assert same(first.model.state_dict(), second.model.state_dict())
    assert same(first.optimizer.state_dict(), second.optimizer.state_dict())


@pytest.mark.parametrize("name", [*OURS, *LOOKAHEAD])
def test_an_optimiser_goes_on_exactly(tmp_path, monkeypatch, name):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    run = Run(tmp_path, opt=name)
    run.step()
    run.checkpoints.save()
    run.step()
    other = Run(tmp_path, opt=name)
    assert other.checkpoints.resume(force=False)
    other.step()
    assert_same(run, other)


@pytest.mark.parametrize("name", [*FOREIGN, "adahessian", "none", "lookahead_none"])
def test_an_optimiser_that_cannot_be_built_or_used_is_refused_before_the_run(tmp_path, monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=f"The optimiser '{name}' cannot be built .*; timm.optim has adabelief, "):
        Run(tmp_path, opt=name)


def test_other_rates_by_force_leave_the_moments_and_other_settings_of_the_optimiser_begin_anew(tmp_path, capsys):
    run = Run(tmp_path, opt="lamb")
    run.step()
    run.checkpoints.save()
    other = Run(tmp_path, opt="lamb", lr=(0.5,), weight_decay=0.25)
    other.checkpoints.resume(force=True)
    (group, *_), (before, *_) = other.optimizer.param_groups, run.optimizer.param_groups
    assert (group["lr"], group["weight_decay"], group["step"]) == (0.5, 0.25, before["step"])
    assert same(other.optimizer.state_dict()["state"], run.optimizer.state_dict()["state"])
    assert capsys.readouterr().err == ""
    for settings in ({"opt": "sgd"}, {"opt": "lamb", "opt_betas": (0.5, 0.9)}):
        other = Run(tmp_path, **settings)
        other.checkpoints.resume(force=True)
        assert other.optimizer.state_dict()["state"] == {}
        assert "the optimiser, which begins anew" in capsys.readouterr().err
        other.step()
