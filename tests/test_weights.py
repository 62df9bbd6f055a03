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
from oracles import images_for
from published_runs import set_sha256
from safetensors.torch import load_file, save_file

from timm_ebl import Minimizer, card, published
from timm_ebl.errors import WeightsError
from timm_ebl.hub import verify
from timm_ebl.published import RECIPES, Checkpoint
from timm_ebl.weights import SHIPPED, list_shipped, source_of, without_defaults

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


def change_weights(change):
    """Replaces tensors, and the checksum with them."""

    def spoil(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")
        set_sha256(folder)

    return spoil


def change_settings(part="model_args", **changes):
    """Replaces the saved arguments of the network, or what is known of its weights."""

    def spoil(folder):
        config = json.loads((folder / "config.json").read_text())
        config[part] |= changes
        (folder / "config.json").write_text(json.dumps(config))

    return spoil


def change_classes(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_classes": 7}))


@change_weights
def rename_a_tensor(tensors):
    tensors["head.wait"] = tensors.pop("head.weight")


@change_weights
def widen(tensors):
    tensors["layers.1.weight"] = torch.zeros(9, 4, 3, 3)


@change_weights
def put_nan(tensors):
    tensors["head.bias"][0] = torch.nan


@change_weights
def put_a_large_number(tensors):
    tensors["layers.2.weight"][0, 0, 0, 0] = 1e30


@change_weights
def put_more_than_32_bits_hold(tensors):
    tensors["head.bias"] = tensors["head.bias"].double() * 1e300


@change_weights
def use_8_bits(tensors):
    tensors["layers.1.weight"] = tensors["layers.1.weight"].to(torch.float8_e4m3fn)


@change_weights
def use_whole_numbers(tensors):
    tensors["layers.1.bias"] = tensors["layers.1.bias"].long()


def other_weights(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file({name: value + 0.01 for name, value in tensors.items()}, folder / "model.safetensors")


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
        (put_a_large_number, ["above 4e+09", "layers.2.weight"]),
        (put_more_than_32_bits_hold, ["above 4e+09", "head.bias"]),
        (use_8_bits, ["float8_e4m3fn", "layers.1.weight", "float16, bfloat16, float32, float64"]),
        (use_whole_numbers, ["int64", "layers.1.bias"]),
        (other_weights, ["damaged", "SHA-256"]),
        (change_settings(num_classes=7), ["head.bias", "(3,) there and (7,) here"]),
        (change_classes, ["head.bias", "(3,) there and (7,) here"]),
        (change_settings(in_chans=1), ["layers.0.weight", "(4, 3, 3, 3) there and (4, 1, 3, 3) here"]),
        (change_settings(img_size=64), ["head.weight", "(3, 16) there and (3, 64) here"]),
        (change_settings(img_size=10**9), ["head.weight", "(3, 16) there"]),
        (change_settings(widths=[10**7] * 4), ["head.weight", "(3, 16) there and (3, 40000000) here"]),
        (change_settings(widths=[2**60] * 4), ["config.json describes no dchn_tiny_cifar10"]),
        (change_settings(widths=[4] * 10**6), ["config.json asks for 1,000,000 layers", "1,000 at most"]),
        (change_settings(sweeps=10**9), ["config.json asks for 1e+09 sweeps", "10,000 at most"]),
        (change_settings(sweeps=99_999), ["config.json asks for 99999 sweeps", "10,000 at most"]),
        (change_settings(gains=1e300), ["config.json describes no dchn_tiny_cifar10", "gains"]),
        (change_settings(sweeps="many"), ["config.json describes no dchn_tiny_cifar10", "sweeps"]),
        (change_settings(wings=2), ["config.json describes no dchn_tiny_cifar10", "wings"]),
        (change_settings(device="meta"), ["config.json describes no dchn_tiny_cifar10", "device"]),
        (change_settings(widths=None), ["config.json describes no dchn_tiny_cifar10", "widths"]),
        (change_settings(img_size=3.5), ["config.json describes no dchn_tiny_cifar10", "img_size"]),
        (change_settings(features_only=True), ["config.json describes no dchn_tiny_cifar10", "features_only"]),
        (change_settings(pretrained=True), ["config.json describes no dchn_tiny_cifar10", "pretrained"]),
        (change_settings("pretrained_cfg", input_size=None), ["input_size is [channels, height, width], not None"]),
        (change_settings("pretrained_cfg", first_conv="conv1"), ["first_conv is 'layers.0', not 'conv1'"]),
        (change_settings("pretrained_cfg", label_offset=1), ["label_offset is 0, not 1"]),
        (change_settings("pretrained_cfg", num_classes="3"), ["num_classes is a whole number, not [3, '3']"]),
        (change_settings("pretrained_cfg", unheard_of=1), ["config.json describes no dchn_tiny_cifar10", "unheard_of"]),
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


def test_a_run_keeps_the_checksum_of_its_weights(finished):
    config = json.loads((finished / "config.json").read_text())
    assert config["sha256"] == hashlib.sha256((finished / "model.safetensors").read_bytes()).hexdigest()


def as_transformers_builds_it(folder):
    """The network, by the call of `TimmWrapperForImageClassification`: no argument may be there twice."""
    config = json.loads((folder / "config.json").read_text())
    network = timm.create_model(
        config["architecture"], pretrained=False, num_classes=config["num_classes"], **config["model_args"]
    )
    network.load_state_dict({name: value.float() for name, value in load_file(folder / "model.safetensors").items()})
    return network


@pytest.mark.parametrize(
    "folder_of", [lambda finished: finished, *(lambda _, n=n: SHIPPED / n for n in list_shipped())]
)
def test_transformers_builds_the_same_network(finished, folder_of):
    folder = folder_of(finished)
    wrapped, own = as_transformers_builds_it(folder), timm.create_model(f"local-dir:{folder}", pretrained=True)
    x = torch.rand(2, own.in_chans, *own.img_size)
    assert wrapped.minimizer == own.minimizer
    assert torch.equal(wrapped(x), own(x))


def test_a_model_that_transformers_has_saved_again_loads_without_the_checksum_of_other_weights(folder):
    other_weights(folder)
    config = json.loads((folder / "config.json").read_text()) | {"evaluation": {}, "transformers_version": "5.24.0"}
    (folder / "config.json").write_text(json.dumps(config))
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert torch.equal(model.head.bias, load_file(folder / "model.safetensors")["head.bias"])
    assert not Checkpoint.open(folder).is_packaged


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[]", "names no architecture"),
        ('{"architecture": "dchn_tiny_cifar10", "model_args": []}', "model_args is no mapping"),
        ('{"architecture": "dchn_tiny_cifar10", "pretrained_cfg": 1}', "pretrained_cfg is no mapping"),
    ],
)
def test_a_configuration_that_is_none_is_refused(folder, text, words):
    (folder / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=rf"config.json .*{words}") as refusal:
        timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert len(str(refusal.value)) < 500


@pytest.mark.parametrize("top", [3, 10])
def test_a_configuration_that_contradicts_itself_follows_what_describes_the_network(folder, top):
    config = json.loads((folder / "config.json").read_text())
    config["num_classes"], config["pretrained_cfg"]["num_classes"] = top, 10
    if top != 3:
        config["model_args"]["num_classes"] = 3  # as timm repeats it
    (folder / "config.json").write_text(json.dumps(config))
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert model.pretrained_cfg["num_classes"] == model.num_classes == 3
    assert torch.equal(model.head.weight, load_file(folder / "model.safetensors")["head.weight"])


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

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    def test_a_download_that_arrives_corrupt_is_fetched_again(self, on_hub, folder, name):
        on_hub.plan(Fault.CORRUPT, f"GET /me/net/resolve/.*{name}")
        model = timm.create_model("hf-hub:me/net", pretrained=True)
        expected = load_file(folder / "model.safetensors")
        assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    def test_one_that_always_does_is_refused_and_does_not_stay_in_the_cache(self, on_hub, name):
        on_hub.plan(Fault.CORRUPT, f"GET /me/net/resolve/.*{name}", times=2)
        with pytest.raises(WeightsError, match=f"{name} of me/net arrived damaged twice and was removed") as refusal:
            timm.create_model("hf-hub:me/net", pretrained=True)
        assert "\n" not in str(refusal.value)
        timm.create_model("hf-hub:me/net", pretrained=True)

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    def test_a_copy_that_is_damaged_in_the_cache_is_fetched_again(self, on_hub, name, monkeypatch):
        timm.create_model("hf-hub:me/net", pretrained=True)
        (stored,) = Path(huggingface_hub.constants.HF_HUB_CACHE).glob(f"models--me--net/snapshots/*/{name}")
        stored.resolve().write_bytes(stored.read_bytes()[:-7])
        with monkeypatch.context() as offline:
            offline.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
            with pytest.raises(WeightsError, match=f"{name} is damaged in the cache: .*HF_HUB_OFFLINE"):
                timm.create_model("hf-hub:me/net", pretrained=True)
        timm.create_model("hf-hub:me/net", pretrained=True)

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    def test_a_checkpoint_that_arrives_corrupt_is_fetched_again(self, on_hub, folder, name):
        on_hub.plan(Fault.CORRUPT, f"GET /me/net/resolve/.*{name}")
        assert (Checkpoint.open("me/net").weights / name).read_bytes() == (folder / name).read_bytes()

    @pytest.mark.parametrize("fault", [Fault.UNAVAILABLE, Fault.DROPPED, Fault.CUT])
    @pytest.mark.parametrize("name", ["config.json", "safetensors"])
    def test_a_failing_download_is_tried_again(self, on_hub, fault, name):
        on_hub.plan(fault, f"GET /me/net/resolve/.*{name}")
        timm.create_model("hf-hub:me/net", pretrained=True)

    @pytest.mark.parametrize(
        ("break_it", "words"),
        [
            (
                lambda hub, patch: hub.plan(Fault.UNAVAILABLE, "GET .*config", times=99),
                "out of order .status 503.: try",
            ),
            (lambda hub, patch: hub.plan(Fault.DROPPED, "config", times=99), "cannot be reached for me/net"),
            (lambda hub, patch: patch.setenv("HF_TOKEN", "hf_wrong"), "hf auth login"),
            (lambda hub, patch: hub.repos.clear(), "there is no repository me/net"),
            (lambda hub, patch: patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True), "HF_HUB_OFFLINE"),
        ],
        ids=["503", "dropped", "token", "absent", "offline"],
    )
    def test_what_cannot_be_fetched_ends_in_one_sentence_with_its_cause(self, on_hub, monkeypatch, break_it, words):
        break_it(on_hub, monkeypatch)
        with pytest.raises(WeightsError, match=f"config.json of me/net cannot be loaded: .*{words}") as refusal:
            timm.create_model("hf-hub:me/net", pretrained=True)
        assert "\n" not in str(refusal.value)
        assert refusal.value.__cause__ is not None

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
    def test_it_answers_alike_by_name_by_path_and_by_its_tensors(self, name):
        model, architecture = timm.create_model(name, pretrained=True), name.partition(".")[0]
        file, x = source_of(name)["file"], images_for(model, 3)
        assert model.pretrained_cfg["file"] == file
        assert (
            not {"order", "sweeps", "tolerance", "omega", "start"} & Checkpoint.open(name).config["model_args"].keys()
        )
        plain = timm.create_model(architecture)
        plain.load_state_dict(load_file(file))
        by_path = timm.create_model(architecture, checkpoint_path=file)
        with torch.no_grad():
            expected = model(x)
            assert torch.equal(plain(x), expected)
            assert torch.equal(by_path(x), expected)

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


def test_a_tolerance_is_not_bounded_by_the_sweeps_that_a_checkpoint_was_saved_with(folder):
    saved = json.loads((folder / "config.json").read_text())["model_args"]["sweeps"]
    for name, pretrained in (
        ("dchn_tiny_mnist.c_ep", True),
        (f"local-dir:{folder}", True),
        (f"local-dir:{folder}", False),
    ):
        model = timm.create_model(name, pretrained=pretrained, tolerance=1e-2)
        assert model.minimizer.sweeps == 1000
        assert model.relax(torch.zeros(2, model.in_chans, *model.img_size)).converged.all()
        assert timm.create_model(name, pretrained=pretrained, tolerance=1e-2, sweeps=9).minimizer.sweeps == 9
    assert timm.create_model(f"local-dir:{folder}", pretrained=True).minimizer.sweeps == saved


DEFAULT = {"order": "asynchronous", "sweeps": 7, "omega": [*Minimizer.omega], "start": "feedforward"}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({}, {}),
        (DEFAULT, {}),
        ({"sweeps": 4}, {"sweeps": 4}),
        (DEFAULT | {"omega": 1.5, "start": "zero"}, {"omega": 1.5, "start": "zero"}),
        ({"omega": [1.5, 1.5]}, {"omega": [1.5, 1.5]}),
        ({"order": "backward", "sweeps": None}, {"order": "backward"}),
        (DEFAULT | {"tolerance": 1e-3, "sweeps": 1000}, {"tolerance": 1e-3}),
        (DEFAULT | {"tolerance": 1e-3}, {"tolerance": 1e-3, "sweeps": 7}),
    ],
)
def test_a_configuration_names_a_minimiser_only_where_it_is_another_than_the_names(given, kept):
    settings = {"in_chans": 3, "widths": [4, 4]}
    config = {"architecture": "dchn_tiny_cifar10", "num_classes": 10, "model_args": settings | given}
    found = without_defaults(config)
    assert found == config | {"model_args": settings | kept}
    before, after = (timm.create_model("dchn_tiny_cifar10", **each["model_args"]).minimizer for each in (config, found))
    assert before == after
