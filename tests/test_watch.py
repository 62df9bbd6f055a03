"""The watch speaks when something is wrong, and only then."""

import json
import math
import sys

import pytest
import torch
from predictive import small_network
from runs import arguments, results, train, train_ebl
from torch import nn

from timm_ebl.errors import Diverged
from timm_ebl.rules import contrastive as rules
from timm_ebl.training.health import Watch, report_layers, require_finite
from timm_ebl.training.progress import Progress


def result(*layers, residual=1e-3):
    return {"state": tuple(layers), "residual": torch.full((4,), residual)}


def free(*shape):
    return torch.rand(4, *shape, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05


@pytest.fixture
def said():
    return []


@pytest.fixture
def watch(said):
    return Watch(nn.Linear(2, 2), Progress(step=10), 5, 100, said.append)


def test_shares_are_counted():
    layer = torch.tensor([[0.0, 0.0, 1.0, 0.5], [0.0, 0.3, math.nan, math.inf]])
    assert report_layers((layer, torch.ones(2, 3)))[0].tolist() == [3 / 8, 2 / 8, 2 / 8]
    assert report_layers((layer, torch.ones(2, 3)))[1].tolist() == [0, 1, 0]


def test_the_upper_end_is_that_of_the_networks_units(said):
    """A rectified layer with units at 0 and far above 1 is no saturated one; it may be dead."""
    watch = Watch(small_network(), Progress(step=10), 5, 100, said.append)
    state = [free(4, 8, 8) for _ in range(5)] + [torch.randn(4, 3)]
    state[1] = (torch.randn(4, 4, 8, 8) * 5).round().relu()
    watch(result(*state))
    assert not said
    state[2] = torch.zeros(4, 4, 8, 8)
    watch(result(*state))
    assert len(said) == 1
    assert "layer 3 is dead, all its units are at 0" in said[0]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda s: s.zero_(), ["layer 2 is dead", "at 0", "larger initial gains"]),
        (lambda s: s.fill_(1), ["layer 2 is dead", "at 1", "smaller initial gains"]),
        (lambda s: s.round_(), ["layer 2 is saturated", "0.0% of its units", "--lr"]),
        (lambda s: s.view(-1)[:1].fill_(math.nan), ["layer 2 is not finite", "--lr"]),
    ],
)
def test_a_bad_layer_is_named_once_with_a_hint(watch, said, spoil, words):
    bad = free(3, 8, 8)
    spoil(bad)
    for _ in range(3):
        watch(result(free(2, 16, 16), bad, torch.randn(4, 10)))
    assert len(said) == 1
    assert all(word in said[0] for word in ["epoch 1, batch 10", *words]), said
    assert watch.progress.warnings == said


def test_the_output_layer_has_no_ends(watch, said):
    watch(result(free(2, 16, 16), torch.zeros(4, 10)))
    watch(result(free(2, 16, 16), torch.full((4, 10), 3.0)))
    assert said == []
    watch(result(free(2, 16, 16), torch.full((4, 10), math.inf)))
    assert "the output layer is not finite" in said[0]


def test_a_rising_residual_is_said_once(watch, said):
    for residual in (0.04, 0.02, 0.08, 0.09, 0.12, 0.5):
        watch(result(free(2, 4, 4), free(10), residual=residual))
    assert len(said) == 1
    assert "risen from 2.0e-02 to 1.2e-01" in said[0]


def test_it_looks_only_every_few_batches_and_at_the_last(watch, said):
    looked = []
    for watch.progress.step in range(95, 101):
        bad = torch.full((4, 10), math.nan)
        watch.progress.warned.clear()
        watch(result(free(2, 4, 4), bad))
        looked += [watch.progress.step] * (len(said) - len(looked))
    assert looked == [95, 100]
    said.clear()
    watch.progress.step, watch.batches = 97, 97
    watch.progress.warned.clear()
    watch(result(free(2, 4, 4), bad))
    assert len(said) == 1


def test_weights_that_are_not_finite_are_named():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    require_finite(model)
    with torch.no_grad():
        model[1].weight[0, 0] = math.nan
    with pytest.raises(Diverged, match=r"not finite any more: 1\.weight$"):
        require_finite(model)


def test_a_diverged_run_ends_with_its_own_status_and_keeps_the_last_good_checkpoint(
    folder, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "run"
    options = ["--watch-every", 1, "--opt", "sgd", "--lr", "1e25", "--checkpoint-minutes", "1e-9"]
    monkeypatch.setattr(sys, "argv", ["train_ebl.py", *arguments(folder, out, *options)])
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    with pytest.raises(SystemExit) as end:
        train_ebl.main()
    assert end.value.code == 3
    message = capsys.readouterr().err.split("diverged: the weights are not finite any more: ")[1]
    assert "head.weight" in message
    summary = json.loads((out / "summary.json").read_text())
    assert summary["status"] == "diverged"
    assert "head.weight" in summary["reason"]
    *_, last = sorted((out / "checkpoints").iterdir())
    weights = torch.load(last / "run.pt", weights_only=True)["model"].values()
    assert all(bool(weight.isfinite().all()) for weight in weights)


def test_saturation_in_a_run_reaches_the_summary(folder, tmp_path, capsys):
    train(*arguments(folder, tmp_path / "run", "--watch-every", 1, "--lr", 1))
    _, _, summary = results(tmp_path / "run")
    assert any("is saturated" in warning or "is dead" in warning for warning in summary["warnings"])
    assert summary["warnings"][0] in capsys.readouterr().err


def test_a_bad_batch_is_left_out_if_asked(folder, tmp_path, monkeypatch):
    original, calls = rules.EquilibriumPropagation.__call__, 0

    def spoilt(self, model, x, y, start=None):
        nonlocal calls
        calls += 1
        found = original(self, model, x, y, start)
        return found._replace(loss=found.loss * math.nan) if calls in (2, 8) else found

    monkeypatch.setattr(rules.EquilibriumPropagation, "__call__", spoilt)
    train(*arguments(folder, tmp_path / "skipped", "--skip-bad-batches", "--watch-every", 1))
    assert results(tmp_path / "skipped")[2]["skipped_batches"] == 2
    calls = 0
    with pytest.raises(Diverged):
        train(*arguments(folder, tmp_path / "kept", "--watch-every", 1))


def test_a_run_of_bad_batches_alone_has_diverged(folder, tmp_path, monkeypatch):
    original = rules.EquilibriumPropagation.__call__

    def spoilt(self, *inputs):
        found = original(self, *inputs)
        return found._replace(loss=found.loss * math.nan)

    monkeypatch.setattr(rules.EquilibriumPropagation, "__call__", spoilt)
    with pytest.raises(Diverged, match="no batch of epoch 1"):
        train(*arguments(folder, tmp_path / "run", "--skip-bad-batches"))
