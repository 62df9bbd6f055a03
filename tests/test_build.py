"""What a configuration builds, and what of it is refused in one sentence before work is spent."""

import pytest
import torch
from runs import SMALL, train, train_ebl

from timm_ebl.errors import ConfigError
from timm_ebl.training.build import build_model, build_optimizer, check_config
from timm_ebl.training.config import TrainConfig
from timm_ebl.training.splits import load_splits


def test_learning_rates_go_to_their_interactions_and_follow_the_cosine(folder):
    config = TrainConfig(dataset=str(folder), lr=(0.1, 0.2, 0.3, 0.4, 0.5), opt="momentum", weight_decay=0.01, epochs=4)
    model = build_model(config, load_splits(config).train)
    optimizer = build_optimizer(config, model)
    assert type(optimizer) is torch.optim.SGD
    for interaction, group, rate in zip(model.interactions, optimizer.param_groups, config.lr, strict=True):
        assert {id(p) for p in group["params"]} == {id(interaction.weight), id(interaction.bias)}
        assert (group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]) == (rate, 0.9, 0.01, False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "resnet18"}, ["resnet18", "no energy", "dchn"]),
        ({"model": "dchn_huge"}, ["dchn_huge", "dchn_tiny_mnist"]),
        ({"model": "dchn_tiny_cifar10.nope"}, ["no checkpoint 'dchn_tiny_cifar10.nope'", "dchn_tiny_cifar10.c_ep"]),
        ({"model": "dchn_tiny_cifar10.c_ep"}, ["--pretrained dchn_tiny_cifar10.c_ep", "--model dchn_tiny_cifar10"]),
        ({"freeze": 5}, ["--freeze", "at most 4", "5"]),
        ({"model": "dchn_svhn.nope"}, ["no checkpoint 'dchn_svhn.nope'", "has none"]),
        ({"model_kwargs": {"width": 3}}, ["width", "kernel_size"]),
        ({"model_kwargs": {"gains": [1, 2]}}, ["gains", "5"]),
        ({"model_kwargs": {"widths": [10**15]}}, ["cannot be built", "memory"]),
        ({"model_kwargs": {"sweeps": 3}, "free_sweeps": 7}, ["no sweeps", "--free-sweeps"]),
        ({"model_kwargs": {"img_size": 28}}, ["no img_size", "--img-size"]),
        ({"img_size": 8}, ["8", "too small"]),
        ({"model_kwargs": {"device": "meta"}}, ["no device", "accelerate"]),
        ({"model_kwargs": {"checkpoint_path": "x.pt"}}, ["no checkpoint_path", "--pretrained"]),
        ({"model_kwargs": {"in_chans": 3}}, ["no in_chans", "data"]),
        ({"model_kwargs": {"pretrained": True}}, ["no pretrained", "--pretrained"]),
        ({"lr": (0.1, 0.2)}, ["--lr", "5"]),
        ({"opt": "adamm"}, ["adamm", "momentum"]),
        ({"opt": "adahessian"}, ["adahessian", "second derivatives"]),
        ({"opt": "lookahead_adahessian"}, ["adahessian", "second derivatives"]),
        ({"opt_betas": (0.9,)}, ["--opt-betas has 1 values", "takes 2"]),
        ({"opt": "sgd", "opt_betas": (0.9, 0.9)}, ["--opt-betas has 2 values", "takes none"]),
        ({"momentum": 0.5}, ["'adamw'", "no --momentum"]),
        ({"beta": -0.1}, ["beta", "positive"]),
        ({"algo": "n-ep", "beta": 1.5}, ["beta", "below 1"]),
        ({"beta": 1e-20}, ["beta", "float32", "1e-20"]),
        ({"algo": "p-ep", "beta": 1e20}, ["beta", "float32", "1e+20"]),
        ({"algo": "n-ep", "beta": 0.999999999}, ["float32", "below 1"]),
        ({"model_kwargs": {"widths": 8}}, ["widths", "8"]),
        ({"data_root": "copies"}, ["--data-root", "fashion-mnist-sample"]),
        ({"data_root": "copies", "dataset": "."}, ["--data-root", "leave one of the two out"]),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_sentence_before_data_are_loaded(change, words):
    with pytest.raises(ConfigError) as refusal:
        check_config(TrainConfig(**change))
    assert all(word in str(refusal.value) for word in words), refusal.value
    assert "\n" not in str(refusal.value)


def test_what_can_be_built_passes_and_loads_no_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("timm_ebl.models.factory.build_with_weights", None)
    check_config(TrainConfig(model="dchn_tiny_cifar10", pretrained="dchn_tiny_cifar10.c_ep"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cifar10").mkdir()  # the name of a data set comes first
    check_config(TrainConfig(dataset="cifar10", data_root="copies", opt="lookahead_adan", opt_betas=(0.9, 0.9, 0.9)))


def test_what_cannot_be_built_ends_a_run_before_its_data_are_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(train_ebl, "load_splits", None)
    with pytest.raises(ConfigError, match="second derivatives"):
        train("--output-dir", tmp_path / "run", "--opt", "adahessian", *SMALL)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_an_optimiser_that_needs_a_gpu_is_refused():
    with pytest.raises(ConfigError, match=r"'fusedadam' cannot be built .*CUDA"):
        check_config(TrainConfig(opt="fusedadam"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_kwargs": {"num_classes": 2}}, ["3 classes", "2 outputs"]),
        ({"dataset": "no-such-set"}, ["no-such-set", "cifar10"]),
    ],
)
def test_what_does_not_fit_the_data_is_refused_in_one_sentence(folder, change, words):
    config = TrainConfig(**({"dataset": str(folder)} | change))
    with pytest.raises(ValueError, match=words[0]) as refusal:
        build_model(config, load_splits(config).train)
    assert all(word in str(refusal.value) for word in words), refusal.value
