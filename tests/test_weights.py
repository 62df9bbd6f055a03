"""Loading: weights in the package, in folders and on the Hub; what is refused; what is shipped."""

import hashlib
import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from hub_server import Fault, Repo
from safetensors.torch import load_file, save_file

from timm_ebl import card, published
from timm_ebl.errors import WeightsError
from timm_ebl.hub import verify
from timm_ebl.published import RECIPES, Checkpoint
from timm_ebl.weights import SHIPPED, list_shipped, source_of

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path, finished):
    """The two files that timm loads, for a test to spoil."""
    (tmp_path / "net").mkdir()
    for name in ("model.safetensors", "config.json"):
        (tmp_path / "net" / name).write_bytes((finished / name).read_bytes())
    return tmp_path / "net"


@pytest.fixture
def on_hub(hub, folder):
    """The same two files in a repository."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.repos["models", "me/net"] = Repo(commits=[files])
    return hub


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def set_sha256(folder):
    config = json.loads((folder / "config.json").read_text())
    config["sha256"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "config.json").write_text(json.dumps(config))


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def cut_header(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:20])


def empty(folder):
    (folder / "model.safetensors").write_bytes(b"")


def flip_a_bit(folder):
    set_sha256(folder)
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(bytes(content))


def rename_a_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["head.wait"] = tensors.pop("head.weight")
    save_file(tensors, folder / "model.safetensors")


def widen(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["layers.1.weight"] = torch.zeros(9, 4, 3, 3)
    save_file(tensors, folder / "model.safetensors")


def put_nan(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["head.bias"][0] = torch.nan
    save_file(tensors, folder / "model.safetensors")


def put_pickle(folder):
    with open(folder / "model.safetensors", "wb") as file:
        pickle.dump({"head.bias": Bomb(folder / "exploded")}, file)


def pickle_beside(folder):
    (folder / "model.safetensors").unlink()
    with open(folder / "pytorch_model.bin", "wb") as file:
        pickle.dump({"head.bias": Bomb(folder / "exploded")}, file)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (truncate, ["truncated"]),
        (cut_header, ["truncated"]),
        (empty, ["truncated"]),
        (flip_a_bit, ["damaged", "SHA-256"]),
        (rename_a_tensor, ["does not fit dchn_tiny_cifar10", "head.wait", "absent"]),
        (widen, ["layers.1.weight", "(9, 4, 3, 3)", "(4, 4, 3, 3)"]),
        (put_nan, ["NaN", "head.bias"]),
        (put_pickle, ["not in the safetensors format"]),
        (pickle_beside, ["has no model.safetensors", "never loaded"]),
    ],
)
def test_a_file_that_cannot_be_trusted_is_refused_by_name(folder, spoil, words):
    spoil(folder)
    with pytest.raises(WeightsError) as refusal:
        timm.create_model(f"local-dir:{folder}", pretrained=True)
    message = str(refusal.value)
    assert all(word in message for word in [str(folder), *words]), message
    assert "\n" not in message
    assert not (folder / "exploded").exists()


def test_a_file_of_another_format_is_refused(folder):
    path = folder / "weights.bin"
    torch.save({}, path)
    with pytest.raises(WeightsError, match=r"weights.bin is no .safetensors file"):
        timm.create_model("dchn_tiny_cifar10", pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    overlay = {"file": str(folder / "absent.safetensors")}
    with pytest.raises(WeightsError, match=r"absent.safetensors cannot be read"):
        timm.create_model("dchn_tiny_cifar10", pretrained=True, pretrained_cfg_overlay=overlay)


def test_a_model_without_weights_is_refused_with_those_that_have_some():
    with pytest.raises(WeightsError, match=r"no pretrained weights for dchn_svhn; .*c_ep"):
        timm.create_model("dchn_svhn", pretrained=True)


def test_saved_settings_are_defaults_and_survive_another_saving(folder, tmp_path):
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert model.minimizer.sweeps == 4
    assert timm.create_model(f"local-dir:{folder}", pretrained=True, sweeps=9).minimizer.sweeps == 9
    timm.models.save_for_hf(model, tmp_path / "again", safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path / 'again'}", pretrained=True)
    assert again.minimizer == model.minimizer
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_weights_are_not_kept_in_the_configuration(folder):
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert "state_dict" not in model.pretrained_cfg
    assert model.pretrained_cfg["source"] == "local-dir"


def test_other_classes_and_channels_are_adapted_as_timm_does(folder):
    tensors = load_file(folder / "model.safetensors")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=7, in_chans=1)
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 7)
    assert torch.equal(model.layers[1].weight, tensors["layers.1.weight"])
    torch.testing.assert_close(model.layers[0].weight, tensors["layers.0.weight"].sum(1, keepdim=True))
    assert timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0)(torch.zeros(1, 3, 32, 32)).ndim == 2


class TestFromTheHub:
    def test_the_hub_id_of_the_configuration_is_used(self, on_hub, folder):
        overlay = {"hf_hub_id": "me/net", "file": None, "num_classes": 3}
        model = timm.create_model("dchn_tiny_cifar10", pretrained=True, pretrained_cfg_overlay=overlay, widths=[4] * 4)
        tensors = load_file(folder / "model.safetensors")
        assert all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items())

    def test_a_cached_model_loads_offline(self, on_hub, monkeypatch):
        before = timm.create_model("hf-hub:me/net", pretrained=True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        asked = len(on_hub.requests)
        after = timm.create_model("hf-hub:me/net", pretrained=True)
        assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
        assert len(on_hub.requests) == asked

    def test_offline_without_a_copy(self, on_hub, monkeypatch):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        overlay = {"hf_hub_id": "me/net", "file": None}
        with pytest.raises(WeightsError, match="me/net is not in the cache, and HF_HUB_OFFLINE forbids"):
            timm.create_model("dchn_tiny_cifar10", pretrained=True, pretrained_cfg_overlay=overlay)

    def test_a_download_that_arrives_corrupt_is_refused(self, on_hub, folder):
        set_sha256(folder)
        on_hub.repos["models", "me/net"].commits[0]["config.json"] = (folder / "config.json").read_bytes()
        on_hub.plan(Fault.CORRUPT, "GET /me/net/resolve/.*safetensors")
        with pytest.raises(WeightsError, match=r"model.safetensors is damaged"):
            timm.create_model("hf-hub:me/net", pretrained=True)

    @pytest.mark.parametrize("fault", [Fault.UNAVAILABLE, Fault.DROPPED, Fault.CUT])
    def test_a_failing_download_is_tried_again(self, on_hub, fault):
        on_hub.plan(fault, "GET /me/net/resolve/.*safetensors")
        timm.create_model("hf-hub:me/net", pretrained=True)

    def test_pickled_weights_on_the_hub_are_not_even_fetched(self, on_hub):
        files = on_hub.repos["models", "me/net"].commits[0]
        files["pytorch_model.bin"] = files.pop("model.safetensors")
        with pytest.raises(WeightsError, match=r"model.safetensors of me/net cannot be loaded: me/net lacks a file"):
            timm.create_model("hf-hub:me/net", pretrained=True)
        assert not on_hub.count("pytorch_model.bin")

    def test_a_private_model_needs_the_token(self, on_hub, monkeypatch, tmp_path):
        on_hub.repos["models", "me/net"].private = True
        overlay = {"hf_hub_id": "me/net", "file": None, "num_classes": 3}
        options = {"pretrained": True, "pretrained_cfg_overlay": overlay, "widths": [4] * 4}
        timm.create_model("dchn_tiny_cifar10", **options)
        monkeypatch.delenv("HF_TOKEN")
        with pytest.raises(WeightsError, match=r"no repository me/net .* or it is private; .*hf auth login"):
            timm.create_model("dchn_tiny_cifar10", **options, cache_dir=tmp_path / "empty")


class TestShipped:
    """What comes with the package loads, is what its record says, and needs no network (it is off in these tests)."""

    def test_timm_lists_exactly_these(self):
        assert set(timm.list_models("dchn*", pretrained=True)) == set(list_shipped())
        assert list_shipped()

    @pytest.mark.parametrize("name", list_shipped())
    def test_weights_and_record_belong_together(self, name):
        shipped = Checkpoint.open(name)
        assert shipped == Checkpoint(name, SHIPPED / name, RECIPES / name)
        content = (SHIPPED / name / "model.safetensors").read_bytes()
        assert shipped.config["sha256"] == hashlib.sha256(content).hexdigest()
        assert shipped.config["architecture"] == name.partition(".")[0]
        assert shipped.summary["test_error"] == shipped.evaluation.error
        assert shipped.claims()["README.md"] == pytest.approx(shipped.evaluation.error, abs=1e-3)
        text = card.render_card(name, name, shipped.recipe, shipped.summary, shipped.config)
        assert (RECIPES / name / published.CARD).read_text() == text
        assert len((RECIPES / name / "metrics.jsonl").read_text().splitlines()) == shipped.summary["epochs"]

    @pytest.mark.parametrize("name", list_shipped())
    def test_it_loads_by_name_and_tells_its_minimiser(self, name):
        model = timm.create_model(name, pretrained=True)
        saved = Checkpoint.open(name).config["model_args"]
        assert {key: getattr(model.minimizer, key) for key in ("sweeps", "order", "omega")} == {
            key: saved[key] for key in ("sweeps", "order", "omega")
        }
        assert model.pretrained_cfg["file"] == source_of(name)["file"]
        assert model(torch.zeros(1, model.in_chans, *model.img_size)).isfinite().all()

    def test_the_name_alone_takes_the_first_tag(self):
        name = list_shipped()[0]
        first, second = (timm.create_model(n, pretrained=True) for n in (name, name.partition(".")[0]))
        assert second.pretrained_cfg["tag"] == name.partition(".")[2]
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))

    def test_without_the_file_the_hub_is_the_source(self, monkeypatch, tmp_path):
        name = list_shipped()[0]
        (tmp_path / name).mkdir()
        shutil.copy(SHIPPED / name / "config.json", tmp_path / name)
        monkeypatch.setattr("timm_ebl.weights.SHIPPED", tmp_path)
        assert source_of(name)["hf_hub_id"] == f"timm-ebl/{name}"
        assert "file" not in source_of(name)

    def test_the_figure_of_the_embedded_sample_is_reproduced(self):
        assert verify("dchn_tiny_fashion_mnist.c_ep_sample").images == 1000

    @pytest.mark.slow
    def test_a_wheel_has_every_file_of_the_package(self, tmp_path):
        pytest.importorskip("setuptools", "77")
        for name in ("pyproject.toml", "README.md", "LICENSE", "timm_ebl"):
            (tmp_path / name).symlink_to(ROOT / name)
        command = "from setuptools import build_meta; build_meta.build_wheel('wheels')"
        (tmp_path / "wheels").mkdir()
        subprocess.run([sys.executable, "-c", command], cwd=tmp_path, check=True, capture_output=True)
        with zipfile.ZipFile(next((tmp_path / "wheels").iterdir())) as wheel:
            packed = {name: wheel.read(name) for name in wheel.namelist() if name.startswith("timm_ebl/")}
        files = [path for path in (ROOT / "timm_ebl").rglob("*") if path.is_file() and path.suffix != ".pyc"]
        assert packed == {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in files}
        assert {f"timm_ebl/pretrained/{name}/model.safetensors" for name in list_shipped()} <= packed.keys()
