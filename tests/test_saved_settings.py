"""What is saved beside weights: settings of the network, as timm and Transformers read them."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from timm_ebl import PAPER, Minimizer, create_backward, create_rule
from timm_ebl.errors import WeightsError
from timm_ebl.models.weights import SHIPPED, list_shipped
from timm_ebl.training.trained import TrainedModel


def test_saved_settings_are_defaults_and_survive_another_saving(net, tmp_path):
    model = timm.create_model(f"local-dir:{net}", pretrained=True)
    assert model.minimizer.sweeps == 4
    assert timm.create_model(f"local-dir:{net}", pretrained=True, sweeps=9).minimizer.sweeps == 9
    timm.models.save_for_hf(model, tmp_path / "again", safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path / 'again'}", pretrained=True)
    assert again.minimizer == model.minimizer
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    "minimizer", [PAPER, Minimizer(tolerance=1e-2), Minimizer(order="backward", omega=(1.5, 1.2)), Minimizer()]
)
@pytest.mark.parametrize("resized", [False, True])
def test_a_minimiser_that_was_set_is_saved(tmp_path, minimizer, resized):
    given = timm.create_model("dchn_tiny_cifar10", sweeps=9, start="zero", pooling="average")
    given.minimizer = Minimizer(sweeps=2) if resized else minimizer
    if resized:
        given.set_input_size(48)
        given.minimizer = minimizer
    timm.models.save_for_hf(given, tmp_path, safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert (loaded.minimizer, loaded.pooling, loaded.img_size) == (minimizer, given.pooling, given.img_size)
    given.minimizer = replace(minimizer, compiled=True)
    timm.models.save_for_hf(given, tmp_path, safe_serialization=True)
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True).minimizer == minimizer


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("dchn_tiny_cifar10", {"sweeps": 3, "omega": [1.5, 1.25], "kernel_size": 5, "pool": 2, "tolerance": 0.125}),
        ("hopfield_resnet13_tiny_cifar10", {"omega": 1.5, "bias_gain": 0.25}),
        ("pcn_vgg5_tiny_cifar10", {"beta": 0.125, "pools": [1, 1, 2, 2, 2], "gains": 0.5}),
    ],
)
def test_numbers_of_numpy_are_taken_and_saved_as_numbers(tmp_path, name, settings):
    def of_numpy(value):
        if isinstance(value, list):
            return [of_numpy(each) for each in value]
        return np.int64(value) if isinstance(value, int) else np.float32(value)

    given = {"num_classes": 7, "in_chans": 1, "widths": [4, 4, 4, 4, 4]} | settings
    model = timm.create_model(name, **{key: of_numpy(value) for key, value in given.items()})
    model.reset_classifier(np.int64(5))
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    config = json.loads((tmp_path / "config.json").read_text())
    saved = config["model_args"]
    assert {key: saved[key] for key in given} == given | {"num_classes": 5}
    assert (saved["global_pool"], saved["img_size"]) == ("flatten", [32, 32])
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True)(torch.rand(2, 1, 32, 32)).shape == (2, 5)
    assert type(create_rule("c-ep", beta=np.float32(0.1)).beta) is float


def test_a_run_keeps_the_checksum_of_its_weights(finished):
    config = json.loads((finished / "config.json").read_text())
    assert config["sha256"] == hashlib.sha256((finished / "model.safetensors").read_bytes()).hexdigest()


def as_transformers_builds_it(net):
    """The network, by the call of `TimmWrapperForImageClassification`: no argument may be there twice."""
    config = json.loads((net / "config.json").read_text())
    network = timm.create_model(
        config["architecture"], pretrained=False, num_classes=config["num_classes"], **config["model_args"]
    )
    network.load_state_dict({name: value.float() for name, value in load_file(net / "model.safetensors").items()})
    return network


@pytest.mark.parametrize(
    "folder_of", [lambda finished: finished, *(lambda _, n=n: SHIPPED / n for n in list_shipped())]
)
def test_transformers_builds_the_same_network(finished, folder_of):
    net = folder_of(finished)
    wrapped, own = as_transformers_builds_it(net), timm.create_model(f"local-dir:{net}", pretrained=True)
    x = torch.rand(2, own.in_chans, *own.img_size)
    assert wrapped.minimizer == own.minimizer
    assert torch.equal(wrapped(x), own(x))


def test_a_model_that_transformers_has_saved_again_loads_without_the_checksum_of_other_weights(net):
    tensors = load_file(net / "model.safetensors")
    save_file({name: value + 0.01 for name, value in tensors.items()}, net / "model.safetensors")
    config = json.loads((net / "config.json").read_text()) | {"evaluation": {}, "transformers_version": "5.24.0"}
    (net / "config.json").write_text(json.dumps(config))
    model = timm.create_model(f"local-dir:{net}", pretrained=True)
    assert torch.equal(model.head.bias, load_file(net / "model.safetensors")["head.bias"])
    assert not TrainedModel.open(net).is_packaged


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
def test_a_configuration_that_is_none_is_refused(net, text, words):
    (net / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=rf"config.json .*{words}") as refusal:
        timm.create_model(f"local-dir:{net}", pretrained=True)
    assert len(str(refusal.value)) < 500


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        (None, FileNotFoundError, "config.json cannot be read"),
        ("{", ValueError, "config.json cannot be read"),
        ('{"architecture": "resnet18", "model_args": null, "pretrained_cfg": {}}', AttributeError, "no mapping"),
        ('{"architecture": "resnet18", "model_args": {"sweeps": 99999}, "pretrained_cfg": {}}', TypeError, "'sweeps'"),
        ('{"architecture": "resnet17"}', RuntimeError, "^Unknown model"),
    ],
)
def test_what_timm_refuses_is_caught_as_without_the_package(tmp_path, text, kind, words):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(kind, match=words):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True)


@pytest.mark.parametrize("top", [3, 10])
def test_a_configuration_that_contradicts_itself_follows_what_describes_the_network(net, top):
    config = json.loads((net / "config.json").read_text())
    config["num_classes"], config["pretrained_cfg"]["num_classes"] = top, 10
    if top != 3:
        config["model_args"]["num_classes"] = 3  # as timm repeats it
    (net / "config.json").write_text(json.dumps(config))
    model = timm.create_model(f"local-dir:{net}", pretrained=True)
    assert model.pretrained_cfg["num_classes"] == model.num_classes == 3
    assert torch.equal(model.head.weight, load_file(net / "model.safetensors")["head.weight"])


def test_weights_are_not_kept_in_the_configuration(net):
    model = timm.create_model(f"local-dir:{net}", pretrained=True)
    assert "state_dict" not in model.pretrained_cfg
    assert model.pretrained_cfg["source"] == "local-dir"


def test_other_classes_and_channels_are_adapted_as_timm_does(net):
    tensors = load_file(net / "model.safetensors")
    model = timm.create_model(f"local-dir:{net}", pretrained=True, num_classes=7, in_chans=1)
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 7)
    assert torch.equal(model.layers[1].weight, tensors["layers.1.weight"])
    torch.testing.assert_close(model.layers[0].weight, tensors["layers.0.weight"].sum(1, keepdim=True))
    assert timm.create_model(f"local-dir:{net}", pretrained=True, num_classes=0)(torch.zeros(1, 3, 32, 32)).ndim == 2


def test_a_tolerance_is_not_bounded_by_the_sweeps_that_a_checkpoint_was_saved_with(net):
    saved = json.loads((net / "config.json").read_text())["model_args"]["sweeps"]
    for name, pretrained in (
        ("dchn_tiny_mnist.c_ep", True),
        (f"local-dir:{net}", True),
        (f"local-dir:{net}", False),
    ):
        model = timm.create_model(name, pretrained=pretrained, tolerance=1e-2)
        assert model.minimizer.sweeps == 1000
        assert model.relax(torch.zeros(2, model.in_chans, *model.img_size)).converged.all()
        assert timm.create_model(name, pretrained=pretrained, tolerance=1e-2, sweeps=9).minimizer.sweeps == 9
    assert timm.create_model(f"local-dir:{net}", pretrained=True).minimizer.sweeps == saved


DEFAULT = {"order": "asynchronous", "sweeps": 7, "omega": [*Minimizer.omega], "start": "feedforward"}
RESNETS = DEFAULT | {"sweeps": 15, "omega": 1.8}


@pytest.mark.parametrize(
    ("network", "given", "named"),
    [
        ("dchn_tiny_cifar10", {}, DEFAULT),
        ("dchn_tiny_cifar10", DEFAULT, DEFAULT),
        ("dchn_tiny_cifar10", {"sweeps": 4}, DEFAULT | {"sweeps": 4}),
        ("dchn_tiny_cifar10", {"omega": [1.5, 1.5], "start": "zero"}, DEFAULT | {"omega": 1.5, "start": "zero"}),
        ("dchn_tiny_cifar10", {"order": "backward", "sweeps": None}, DEFAULT | {"order": "backward"}),
        ("dchn_tiny_cifar10", {"tolerance": 1e-3}, DEFAULT | {"tolerance": 1e-3, "sweeps": 1000}),
        ("dchn_tiny_cifar10", {"tolerance": 1e-3, "sweeps": 7}, DEFAULT | {"tolerance": 1e-3}),
        ("hopfield_resnet13_tiny_cifar10", {}, RESNETS),
        ("pcn_vgg5_tiny_cifar10", {}, {}),
    ],
)
def test_a_configuration_names_the_minimiser_of_every_network_that_sweeps(tmp_path, network, given, named):
    model = timm.create_model(network, **given)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_args"] == named | {
        key: config["model_args"][key] for key in ("num_classes", "in_chans", "global_pool", "img_size")
    }
    assert timm.create_model(network, **config["model_args"]).minimizer == model.minimizer


def test_a_backward_pass_without_a_name_is_no_hindrance(tmp_path):
    model = timm.create_model("dchn_tiny_cifar10", backward="tbp")
    model.backward = create_backward("ep", beta=0.125)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True).backward == create_backward("tbp")


@pytest.mark.parametrize(
    ("network", "given", "then", "named"),
    [
        ("dchn_tiny_cifar10", {}, "tbp", "tbp"),
        ("dchn_tiny_cifar10", {"backward": "tbp"}, create_backward("rbp"), "rbp"),
        ("pcn_vgg5_tiny_cifar10", {"backward": "rbp"}, None, "bp"),
    ],
)
def test_a_backward_pass_that_was_set_is_saved(tmp_path, network, given, then, named):
    model = timm.create_model(network, **given)
    model.backward = then
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    assert json.loads((tmp_path / "config.json").read_text())["model_args"]["backward"] == named
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True).backward == model.backward
