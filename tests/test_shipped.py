"""What comes with the package loads, is what its record says, and needs no network (it is off in these tests)."""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import timm
import torch
from oracles import images_for
from safetensors.torch import load_file

from timm_ebl.hub import card
from timm_ebl.hub.verify import verify
from timm_ebl.models.weights import SHIPPED, list_shipped, source_of
from timm_ebl.training.finding import RECIPES
from timm_ebl.training.records import CARD
from timm_ebl.training.trained import TrainedModel

ROOT = Path(__file__).parents[1]
ELEVEN_SWEEPS = {
    f"{network}.c_ep"
    for network in ("dchn_tiny_cifar10", "dchn_small_cifar10", "dchn_small_cifar100", "dchn_small_fashion_mnist")
}
"""Networks trained with 11 free sweeps; the others had as many as the default."""


def test_timm_lists_exactly_these():
    assert set(timm.list_models(["dchn*", "hopfield_resnet*", "pcn*"], pretrained=True)) == set(list_shipped())
    assert list_shipped()


@pytest.mark.parametrize("name", list_shipped())
def test_weights_and_record_belong_together(name):
    shipped = TrainedModel.open(name)
    assert shipped == TrainedModel(name, SHIPPED / name, RECIPES / name)
    content = (SHIPPED / name / "model.safetensors").read_bytes()
    assert shipped.config["sha256"] == hashlib.sha256(content).hexdigest()
    assert shipped.config["architecture"] == name.partition(".")[0]
    assert shipped.summary["test_error"] == shipped.evaluation.error
    assert shipped.claims()["README.md"] == pytest.approx(shipped.evaluation.error, abs=1e-3)
    assert (shipped.evaluation.equilibrium is None) == timm.create_model(name).rests
    text = card.render_card(name, name, shipped.recipe, shipped.summary, shipped.config)
    assert (RECIPES / name / CARD).read_text() == text
    assert len((RECIPES / name / "metrics.jsonl").read_text().splitlines()) == shipped.summary["epochs"]


@pytest.mark.parametrize("name", list_shipped())
def test_it_answers_alike_by_name_by_path_and_by_its_tensors(name):
    model, architecture = timm.create_model(name, pretrained=True), name.partition(".")[0]
    file, x = source_of(name)["file"], images_for(model, 3)
    assert model.pretrained_cfg["file"] == file
    said = TrainedModel.open(name).config["model_args"]
    own = {key: said[key] for key in ("order", "sweeps", "omega", "start") if key in said}
    assert own.get("sweeps") == (None if model.rests else 11 if name in ELEVEN_SWEEPS else 7)
    assert len(own) == (0 if model.rests else 4)
    assert "tolerance" not in said
    plain = timm.create_model(architecture, **own)
    plain.load_state_dict(load_file(file))
    by_path = timm.create_model(architecture, checkpoint_path=file, **own)
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(plain(x), expected)
        assert torch.equal(by_path(x), expected)


def test_the_name_alone_takes_the_first_tag():
    name = list_shipped()[0]
    first, second = (timm.create_model(n, pretrained=True) for n in (name, name.partition(".")[0]))
    assert second.pretrained_cfg["tag"] == name.partition(".")[2]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_without_the_file_the_hub_is_the_source(monkeypatch, tmp_path):
    name = list_shipped()[0]
    (tmp_path / name).mkdir()
    shutil.copy(SHIPPED / name / "config.json", tmp_path / name)
    monkeypatch.setattr("timm_ebl.models.weights.SHIPPED", tmp_path)
    assert source_of(name)["hf_hub_id"] == f"timm-ebl/{name}"
    assert "file" not in source_of(name)


def test_the_figure_of_the_embedded_sample_is_reproduced():
    assert verify("dchn_tiny_fashion_mnist.c_ep_sample").images == 1000


@pytest.mark.slow
def test_a_wheel_has_every_file_of_the_package(tmp_path):
    pytest.importorskip("setuptools", "77")
    for name in ("pyproject.toml", "README.md", "LICENSE", "timm_ebl"):
        (tmp_path / name).symlink_to(ROOT / name)
    command = "from setuptools import build_meta; build_meta.build_wheel('wheels')"
    (tmp_path / "wheels").mkdir()
    subprocess.run([sys.executable, "-c", command], cwd=tmp_path, check=True, capture_output=True)
    with zipfile.ZipFile(next((tmp_path / "wheels").iterdir())) as wheel:
        packed = {name: wheel.read(name) for name in wheel.namelist() if name.startswith("timm_ebl/")}
    guides = {*(ROOT / "timm_ebl").glob("*/README.md")} - {ROOT / "timm_ebl" / "embedded" / "README.md"}
    found = {*(ROOT / "timm_ebl").rglob("*")} - guides
    files = [path for path in found if path.is_file() and path.suffix != ".pyc"]
    assert packed == {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in files}
    assert {f"timm_ebl/pretrained/{name}/model.safetensors" for name in list_shipped()} <= packed.keys()
