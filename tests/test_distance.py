"""How near its own equilibrium a free phase comes."""

import pytest
import torch

import timm_ebl.tools.distance
from timm_ebl import EQUILIBRIUM, PAPER, Minimizer, Start
from timm_ebl.relaxation.descent import relative_change
from timm_ebl.tools.distance import NEAR, SHARE, approach, print_distances

SCHEDULES = {"paper": PAPER, "ours": Minimizer(), "equilibrium": EQUILIBRIUM}


def part_near(model, x, free, sweeps, limit):
    """The part of the samples that a fixed number of sweeps of a minimiser brings near a state."""
    fixed = Minimizer(order=free.order, omega=free.omega, start=free.start, sweeps=sweeps)
    return float((relative_change(model.relax(x, minimizer=fixed).state, limit) <= NEAR).double().mean())


def test_a_distance_is_relative_and_over_all_layers():
    limit = (torch.tensor([[3.0], [0.0]]), torch.tensor([[0.0, 4.0], [0.0, 2.0]]))
    state = (torch.tensor([[3.0], [0.0]]), torch.tensor([[0.5, 4.0], [0.0, 2.0]]))
    assert torch.equal(relative_change(state, limit), torch.tensor([0.1, 0.0]))


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_limit_is_at_rest_and_the_sweeps_are_the_fewest_that_come_near(make_dchn, batch, name):
    model, (x, _), free = make_dchn(), batch, SCHEDULES[name]
    limit, sweeps, unsettled = approach(model, x, free)
    assert unsettled == 0
    swept = model.relax(x, limit, minimizer=Minimizer(sweeps=1, omega=1.0))
    assert relative_change(swept.state, limit).max() <= 1e-12
    assert part_near(model, x, free, sweeps, limit) >= SHARE
    assert part_near(model, x, free, sweeps - 1, limit) < SHARE


def test_samples_that_are_not_at_rest_are_counted(make_dchn, batch):
    model, (x, _) = make_dchn(), batch
    limit, sweeps, unsettled = approach(model, x, PAPER, most=4)
    expected = model.relax(x, minimizer=Minimizer(sweeps=4, omega=1.0, start=Start.ZERO)).state
    assert relative_change(limit, expected).max() <= 1e-14
    assert sweeps <= 4
    assert unsettled == len(x)


@pytest.mark.parametrize("gains", [0.5, 1.5, 3.0])
def test_the_minimiser_for_the_equilibrium_comes_near_it(make_dchn, batch, gains):
    model, (x, _) = make_dchn(gains=gains), batch
    found = model.relax(x, minimizer=EQUILIBRIUM)
    assert found.converged.all()
    assert (relative_change(found.state, approach(model, x, EQUILIBRIUM).limit) <= NEAR).all()


def test_the_distances_and_sweeps_are_printed(make_dchn, batch, capsys, monkeypatch):
    model, (x, _) = make_dchn(gains=0.5), batch
    monkeypatch.setattr(
        timm_ebl.tools.distance, "median_seconds", lambda calls, turns: [(call(), 6e-3)[1] for call in calls]
    )
    print_distances(model, x, 2, 1)
    title, *lines = capsys.readouterr().out.splitlines()
    assert "of 6 images" in title
    away = relative_change(model.relax(x, minimizer=Minimizer()).state, approach(model, x, Minimizer()).limit)
    assert lines[1] == f"  after our default's 7 sweeps: {away.median():.1e}, {away.quantile(0.95):.1e}"
    assert lines[4].startswith("  after EQUILIBRIUM's residual of 0.001: ")
    assert lines[5] == "95% of these images are within 1% of it"
    for line, name in zip(lines[6:], ("the paper's", "our default's", "EQUILIBRIUM's"), strict=True):
        free = {"the paper's": PAPER, "our default's": Minimizer(), "EQUILIBRIUM's": EQUILIBRIUM}[name]
        assert line == f"  after {name} {approach(model, x, free).sweeps} sweeps: 3.00 ms an image (1.0 x)"
