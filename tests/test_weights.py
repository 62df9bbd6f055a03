"""Weights that cannot be trusted are refused by name, and nothing is ever unpickled."""

import json
import pickle

import pytest
import timm
import torch
from published_runs import set_sha256
from safetensors.torch import load_file, save_file

from timm_ebl.errors import WeightsError


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def truncate(net):
    path = net / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def cut_header(net):
    path = net / "model.safetensors"
    path.write_bytes(path.read_bytes()[:20])


def empty(net):
    (net / "model.safetensors").write_bytes(b"")


def flip_a_bit(net):
    set_sha256(net)
    path = net / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(bytes(content))


def change_weights(change):
    """Replaces tensors, and the checksum with them."""

    def spoil(net):
        tensors = load_file(net / "model.safetensors")
        change(tensors)
        save_file(tensors, net / "model.safetensors")
        set_sha256(net)

    return spoil


def change_settings(part="model_args", **changes):
    """Replaces the saved arguments of the network, or what is known of its weights."""

    def spoil(net):
        config = json.loads((net / "config.json").read_text())
        config[part] |= changes
        (net / "config.json").write_text(json.dumps(config))

    return spoil


def change_classes(net):
    config = json.loads((net / "config.json").read_text())
    (net / "config.json").write_text(json.dumps(config | {"num_classes": 7}))


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


def other_weights(net):
    tensors = load_file(net / "model.safetensors")
    save_file({name: value + 0.01 for name, value in tensors.items()}, net / "model.safetensors")


def put_pickle(net):
    with open(net / "model.safetensors", "wb") as file:
        pickle.dump({"head.bias": Bomb(net / "exploded")}, file)


def pickle_beside(net):
    (net / "model.safetensors").unlink()
    with open(net / "pytorch_model.bin", "wb") as file:
        pickle.dump({"head.bias": Bomb(net / "exploded")}, file)


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
def test_a_file_that_cannot_be_trusted_is_refused_by_name(net, spoil, words):
    spoil(net)
    with pytest.raises(WeightsError) as refusal:
        timm.create_model(f"local-dir:{net}", pretrained=True)
    message = str(refusal.value)
    assert all(word in message for word in [str(net), *words]), message
    assert "\n" not in message
    assert not (net / "exploded").exists()


def test_a_file_of_another_format_is_refused(net):
    path = net / "weights.bin"
    torch.save({}, path)
    with pytest.raises(WeightsError, match=r"weights.bin is no .safetensors file"):
        timm.create_model("dchn_tiny_cifar10", pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    overlay = {"file": str(net / "absent.safetensors")}
    with pytest.raises(WeightsError, match=r"absent.safetensors cannot be read"):
        timm.create_model("dchn_tiny_cifar10", pretrained=True, pretrained_cfg_overlay=overlay)


def test_a_model_without_weights_is_refused_with_those_that_have_some():
    with pytest.raises(WeightsError, match=r"no pretrained weights for dchn_svhn; .*c_ep"):
        timm.create_model("dchn_svhn", pretrained=True)
