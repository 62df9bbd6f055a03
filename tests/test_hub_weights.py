"""Weights on the Hub: fetched, tried again, checked and refused."""

import pickle
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from hub_server import Fault
from safetensors.torch import load_file

from timm_ebl.errors import WeightsError
from timm_ebl.training.trained import TrainedModel


def test_the_hub_id_of_the_configuration_is_used(on_hub, net):
    overlay = {"hf_hub_id": "me/net", "file": None, "num_classes": 3}
    model = timm.create_model("dchn_tiny_cifar10", pretrained=True, pretrained_cfg_overlay=overlay, widths=[4] * 4)
    tensors = load_file(net / "model.safetensors")
    assert all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items())


def test_a_cached_model_loads_offline(on_hub, monkeypatch):
    before = timm.create_model("hf-hub:me/net", pretrained=True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    asked = len(on_hub.requests)
    after = timm.create_model("hf-hub:me/net", pretrained=True)
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    assert len(on_hub.requests) == asked


def test_offline_without_a_copy(on_hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    overlay = {"hf_hub_id": "me/net", "file": None}
    with pytest.raises(WeightsError, match="me/net is not in the cache, and HF_HUB_OFFLINE forbids"):
        timm.create_model("dchn_tiny_cifar10", pretrained=True, pretrained_cfg_overlay=overlay)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_download_that_arrives_corrupt_is_fetched_again(on_hub, net, name):
    on_hub.plan(Fault.CORRUPT, f"GET /me/net/resolve/.*{name}")
    model = timm.create_model("hf-hub:me/net", pretrained=True)
    expected = load_file(net / "model.safetensors")
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_one_that_always_does_is_refused_and_does_not_stay_in_the_cache(on_hub, name):
    on_hub.plan(Fault.CORRUPT, f"GET /me/net/resolve/.*{name}", times=2)
    with pytest.raises(WeightsError, match=f"{name} of me/net arrived damaged twice and was removed") as refusal:
        timm.create_model("hf-hub:me/net", pretrained=True)
    assert "\n" not in str(refusal.value)
    timm.create_model("hf-hub:me/net", pretrained=True)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_copy_that_is_damaged_in_the_cache_is_fetched_again(on_hub, name, monkeypatch):
    timm.create_model("hf-hub:me/net", pretrained=True)
    (stored,) = Path(huggingface_hub.constants.HF_HUB_CACHE).glob(f"models--me--net/snapshots/*/{name}")
    stored.resolve().write_bytes(stored.read_bytes()[:-7])
    with monkeypatch.context() as offline:
        offline.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(WeightsError, match=f"{name} is damaged in the cache: .*HF_HUB_OFFLINE"):
            timm.create_model("hf-hub:me/net", pretrained=True)
    timm.create_model("hf-hub:me/net", pretrained=True)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_checkpoint_that_arrives_corrupt_is_fetched_again(on_hub, net, name):
    on_hub.plan(Fault.CORRUPT, f"GET /me/net/resolve/.*{name}")
    assert (TrainedModel.open("me/net").weights / name).read_bytes() == (net / name).read_bytes()


@pytest.mark.parametrize("fault", [Fault.UNAVAILABLE, Fault.DROPPED, Fault.CUT])
@pytest.mark.parametrize("name", ["config.json", "safetensors"])
def test_a_failing_download_is_tried_again(on_hub, fault, name):
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
def test_what_cannot_be_fetched_ends_in_one_sentence_with_its_cause(on_hub, monkeypatch, break_it, words):
    break_it(on_hub, monkeypatch)
    with pytest.raises(WeightsError, match=f"config.json of me/net cannot be loaded: .*{words}") as refusal:
        timm.create_model("hf-hub:me/net", pretrained=True)
    assert "\n" not in str(refusal.value)
    assert isinstance(refusal.value, type(refusal.value.__cause__))  # so it is caught as the client's error, too
    assert type(pickle.loads(pickle.dumps(refusal.value))) is WeightsError


def test_pickled_weights_on_the_hub_are_not_even_fetched(on_hub):
    files = on_hub.repos["models", "me/net"].commits[0]
    files["pytorch_model.bin"] = files.pop("model.safetensors")
    with pytest.raises(WeightsError, match=r"model.safetensors of me/net cannot be loaded: me/net lacks a file"):
        timm.create_model("hf-hub:me/net", pretrained=True)
    assert not on_hub.count("pytorch_model.bin")


def test_a_private_model_needs_the_token(on_hub, monkeypatch, tmp_path):
    on_hub.repos["models", "me/net"].private = True
    overlay = {"hf_hub_id": "me/net", "file": None, "num_classes": 3}
    options = {"pretrained": True, "pretrained_cfg_overlay": overlay, "widths": [4] * 4}
    timm.create_model("dchn_tiny_cifar10", **options)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(WeightsError, match=r"no repository me/net .* or it is private; .*hf auth login"):
        timm.create_model("dchn_tiny_cifar10", **options, cache_dir=tmp_path / "empty")
