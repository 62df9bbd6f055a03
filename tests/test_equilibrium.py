"""What a checkpoint says of the distance of its answers from equilibrium."""

import json
from dataclasses import replace

import pytest
import timm
import torch

from timm_ebl import PAPER, Minimizer
from timm_ebl.data.dataset import load_dataset
from timm_ebl.errors import CheckpointError
from timm_ebl.hub.__main__ import main
from timm_ebl.hub.package import package
from timm_ebl.hub.verify import verify
from timm_ebl.training.equilibrium import Nearness, limit, measure_nearness, nearness
from timm_ebl.training.trained import TrainedModel

NEAR = Nearness(200, 0.0426, 0.1, 196, 0)


@pytest.mark.parametrize("free", [replace(PAPER, sweeps=5), Minimizer(sweeps=4)])
def test_distances_and_classes_are_those_of_plain_sweeps(make_dchn, batch, free):
    model, (x, _) = make_dchn(gains=1.3), batch
    model.minimizer = free
    answer, later = (model.relax(x, minimizer=replace(free, sweeps=sweeps)) for sweeps in (free.sweeps, 200))
    end = model.relax(x, later, minimizer=Minimizer(sweeps=500, omega=1.0))
    state, last = (torch.cat([s.flatten(1) for s in relaxation.state], 1) for relaxation in (answer, end))
    away = ((state - last).norm(dim=1) / last.norm(dim=1)).sort().values
    found = nearness(model, x)
    assert found.median == pytest.approx(float(away[2] + away[3]) / 2, rel=1e-9)
    assert found.percentile_95 == pytest.approx(float(away[4] + 3 * away[5]) / 4, rel=1e-9)
    assert found.same_class == int((answer.output.argmax(1) == later.output.argmax(1)).sum()) == 4
    assert (found.images, found.unsettled) == (6, 0)


def test_a_limit_goes_on_from_a_start_and_ends_without_a_warning(make_dchn, batch, recwarn):
    model, (x, _) = make_dchn(), batch
    begun = limit(model, x, PAPER, 4)
    assert not begun.converged.any()
    assert limit(model, x, PAPER, start=begun).converged.all()
    assert not recwarn


def test_a_network_that_answers_by_its_equilibrium_has_no_distance():
    model = timm.create_model("pcn_vgg5_tiny_cifar10").eval()
    assert nearness(model, torch.zeros(2, 3, 32, 32)) is None


def test_a_distance_in_words():
    assert str(NEAR) == (
        "median 4.26 %, 95th percentile 10.00 % of its norm in the first 200 test images; 196 of them have the same "
        "class after 200 sweeps"
    )
    assert str(replace(NEAR, unsettled=3)).endswith("200 sweeps; 3 do not come to rest")


@pytest.mark.parametrize(
    ("change", "agrees"),
    [
        ({"median": 0.0440}, True),
        ({"median": 0.0460}, False),
        ({"percentile_95": 0.11}, False),
        ({"same_class": 194, "unsettled": 1}, True),
        ({"same_class": 193}, False),
        ({"images": 199}, False),
    ],
)
def test_two_measurements_differ_by_rounding_alone(change, agrees):
    assert NEAR.agrees(replace(NEAR, **change)) == agrees
    assert not NEAR.agrees(None)


def test_what_is_packaged_says_its_distance_and_verify_compares_it(tmp_path, run, images, capsys):
    (tmp_path / "records").mkdir()
    name = package(TrainedModel.open(run), weights=tmp_path, records=tmp_path / "records")
    config = json.loads((tmp_path / name / "config.json").read_text())
    measured = measure_nearness(tmp_path / name, load_dataset(str(images), "test"))
    assert measured == Nearness(**config["evaluation"]["equilibrium"])
    assert measured.median > 1e-3
    card = (tmp_path / "records" / name / "README.md").read_text()
    assert f"| distance from equilibrium | {measured} |" in card
    assert "--dataset FOLDER` measures the test error and the distance from equilibrium again." in card

    main(["verify", str(tmp_path / name), "--dataset", str(images)])
    assert f"\ndistance from equilibrium: {measured}\n" in capsys.readouterr().out
    config["evaluation"]["equilibrium"]["median"] *= 2
    (tmp_path / name / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"has another distance from equilibrium \(median .*its config.json says"):
        verify(tmp_path / name, dataset=str(images))
    config["evaluation"]["equilibrium"]["median"] = "near"
    (tmp_path / name / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="equilibrium: median is a number of at least 0, not 'near'"):
        verify(tmp_path / name, dataset=str(images))
