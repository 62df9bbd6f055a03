"""The models as a timm user meets them."""

import subprocess
import sys

import pytest
import timm
import torch

import timm_ebl
from timm_ebl import Minimizer, create_backward, create_rule
from timm_ebl.data.catalogue import DATASETS, EMBEDDED
from timm_ebl.models.weights import list_shipped
from timm_ebl.relaxation import order
from timm_ebl.training.command_line import parse_config
from timm_ebl.training.trained import TrainedModel

NAMES = [
    f"dchn_{size}{dataset}"
    for size in ("", "small_", "tiny_")
    for dataset in ("mnist", "fashion_mnist", "svhn", "cifar10", "cifar100")
]


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_importing_the_package_registers_every_model():
    code = "import timm, timm_ebl; print(*timm.list_models('dchn*'))"
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert names == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_model_fits_its_data_set(name):
    model = timm.create_model(name)
    config = timm.data.resolve_data_config(model.pretrained_cfg)
    classes = 100 if name.endswith("cifar100") else 10
    channels = 1 if name.endswith("mnist") else 3
    assert model.num_classes == model.pretrained_cfg["num_classes"] == classes
    assert config["input_size"] == (channels, 32, 32)
    assert len(config["mean"]) == len(config["std"]) == channels
    assert "Comparative Study" in model.pretrained_cfg["paper_name"]


def test_widths_are_the_papers_and_a_quarter_and_an_eighth_of_it():
    # The paper's figure, then the same sums for a quarter and an eighth of the width by hand.
    assert count(timm.create_model("dchn_cifar10")) == 3_859_210

    def by_hand(widths, classes=10):
        channels = (3, *widths)
        convolutions = sum(lower * upper * 9 + upper for lower, upper in zip(channels, widths, strict=False))
        return convolutions + widths[-1] * 4 * classes + classes

    assert count(timm.create_model("dchn_small_cifar10")) == by_hand((32, 64, 128, 128))
    assert count(timm.create_model("dchn_tiny_cifar10")) == by_hand((16, 32, 64, 64))


def test_states_halve_the_image_at_every_layer():
    state = timm.create_model("dchn_tiny_svhn", sweeps=1).relax(torch.zeros(2, 3, 32, 32)).state
    assert [tuple(s.shape) for s in state] == [(2, 16, 16, 16), (2, 32, 8, 8), (2, 64, 4, 4), (2, 64, 2, 2), (2, 10)]


def test_constructor_arguments_arrive_through_timm():
    model = timm.create_model(
        "dchn_tiny_cifar10",
        widths=(4, 6),
        gains=(0.1, 0.2, 0.3),
        num_classes=7,
        in_chans=2,
        img_size=16,
        sweeps=9,
        order="synchronous",
        omega=1.2,
        tolerance=1e-2,
        start="zero",
    )
    assert model.minimizer == timm_ebl.Minimizer(
        order="synchronous", sweeps=9, omega=1.2, tolerance=1e-2, start=timm_ebl.Start.ZERO
    )
    assert model(torch.zeros(3, 2, 16, 16)).shape == (3, 7)
    for interaction, gain in zip(model.interactions, (0.1, 0.2, 0.3), strict=True):
        bound = gain / interaction.weight[0].numel() ** 0.5
        assert 0.8 * bound < interaction.weight.abs().max() <= bound


def test_forward_is_the_output_layer_at_equilibrium():
    model = timm.create_model("dchn_tiny_mnist", gains=1.0, sweeps=200, omega=1.0)
    x = torch.randn(4, 1, 32, 32)
    output = model(x)
    assert output.shape == (4, 10)
    torch.testing.assert_close(output, model.relax(x).output, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output, model.forward_head(model.forward_features(x)))


def test_without_classes_the_model_returns_features():
    for model in (timm.create_model("dchn_tiny_mnist", num_classes=0), timm.create_model("dchn_tiny_mnist")):
        model.reset_classifier(0)
        assert model(torch.randn(2, 1, 32, 32)).shape == (2, 64 * 2 * 2)
        assert not any(key.startswith("head") for key in model.state_dict())


def test_a_reset_classifier_has_the_new_classes():
    model = timm.create_model("dchn_tiny_cifar10", gains=0.4)
    model.reset_classifier(3)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    assert model.get_classifier() is model.head
    assert 0.3 / 256**0.5 < model.head.weight.abs().max() <= 0.4 / 256**0.5


def test_weights_and_arguments_survive_timms_own_format(tmp_path):
    model = timm.create_model("dchn_tiny_cifar10", num_classes=4, sweeps=7, omega=1.3).eval()
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(3, 3, 32, 32)
    assert loaded.minimizer == model.minimizer
    assert all(torch.equal(a, loaded.state_dict()[key]) for key, a in model.state_dict().items())
    assert torch.equal(model(x), loaded(x))


def test_initialisation_follows_the_seed():
    torch.manual_seed(3)
    first = timm.create_model("dchn_tiny_mnist")
    torch.manual_seed(3)
    second = timm.create_model("dchn_tiny_mnist")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


NORMALISATION = {
    "mnist": ((0.1307,), (0.3081,)),
    "fashion-mnist": ((0.2860,), (0.3530,)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (3 * 0.2023, 3 * 0.1994, 3 * 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}
"""Mean and deviation of the paper's released code."""


@pytest.mark.parametrize("dataset", NORMALISATION)
def test_under_the_preset_a_data_set_is_normalised_as_in_the_released_code(dataset):
    config = parse_config(["--preset", "paper", "--dataset", dataset])
    spec = DATASETS[dataset]
    assert (config.mean or spec.mean) == NORMALISATION[dataset][0]
    assert (config.std or spec.std) == pytest.approx(NORMALISATION[dataset][1])
    assert parse_config(["--preset", "paper", "--dataset", spec.hub_id]).std == config.std
    assert parse_config(["--dataset", dataset]).std is None


def test_trained_networks_have_the_normalisation_that_they_were_trained_with():
    for name in list_shipped():
        config, recipe = timm.create_model(name, pretrained=True).pretrained_cfg, TrainedModel.open(name).recipe
        spec = DATASETS[recipe.dataset or EMBEDDED]
        assert (tuple(config["mean"]), tuple(config["std"])) == (recipe.mean or spec.mean, recipe.std or spec.std)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "pooling='max'|order='asynchronous', sweeps=7, omega=(1.9, |, start='feedforward'|backward='ep'"),
        ({"pooling": "average", "omega": 1.5, "backward": "tbp"}, "pooling='average'|omega=1.5, |backward='tbp'"),
        ({"omega": (1.0, 1.9, 1.0), "sweeps": 3, "start": "zero"}, "sweeps=3, omega=(1.0, 1.9, 1.0), start='zero'"),
        ({"tolerance": 1e-3, "order": "backward"}, "order='backward', sweeps=1000, tolerance=0.001, omega="),
        ({"compiled": True}, "start='feedforward', compiled=True"),
        (
            {"backward": create_backward("ep", beta=0.1)},
            "backward=EquilibriumPropagation(free=None, perturbed=|, beta=0.1, ",
        ),
    ],
)
def test_printing_a_network_tells_how_it_relaxes_and_learns(make_dchn, options, words):
    model = make_dchn(**options)
    text = str(model)
    assert all(word in text for word in words.split("|")), text
    settings = eval(f"dict({model.extra_repr().splitlines()[1]})")
    assert model.minimizer == Minimizer(**settings)


def test_printing_a_network_names_an_order_of_ones_own(make_dchn, monkeypatch):
    monkeypatch.setitem(order._ORDERS._entries, "upwards", order.forward)
    assert "order='upwards', sweeps=7" in str(make_dchn(order="upwards"))


def test_a_backward_pass_is_set_by_name_as_by_itself(make_live, batch):
    (model, other), (x, _) = (make_live(), make_live(backward="tbp")), batch
    model.backward = "tbp"
    assert model.backward == other.backward == create_backward("tbp")
    found, expected = (torch.autograd.grad(each(x).sum(), [*each.parameters()]) for each in (model, other))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_what_is_set_on_a_network_and_is_of_another_kind_is_refused(make_dchn, batch):
    model, (x, _) = make_dchn(), batch
    for backward in (None, "bp", "sgd"):
        with pytest.raises(ValueError, match=rf"Unknown backward {backward!r} of a DCHN: choose one of ep, tbp, rbp\."):
            model.backward = backward
    with pytest.raises(TypeError, match=r"backward is a name or a timm_ebl.Backward, not 3"):
        model.backward = 3
    assert model.backward == create_backward("ep")
    model.minimizer = 7
    with pytest.raises(TypeError, match=r"minimizer is a timm_ebl.Minimizer, not 7"):
        model(x)


def test_a_head_that_takes_no_part_in_the_relaxation_is_refused(make_dchn, batch):
    x, y = batch
    for head in (torch.nn.Linear(7, 5), torch.nn.Identity(), torch.nn.Sequential(torch.nn.Linear(7, 5))):
        model = make_dchn()
        model.head = head
        words = rf"head is a {type(head).__name__}, .*: model.reset_classifier\(num_classes\) makes one"
        features = torch.zeros(1, 7, 1, 1, dtype=x.dtype)
        calls = [lambda m: m(x), lambda m: m.forward_head(features), lambda m: create_rule("c-ep")(m, x, y)]  # noqa: B023
        for call in calls:
            with pytest.raises(TypeError, match=words):
                call(model)
        model.reset_classifier(5)
        assert model(x).shape == (6, 5)
    model.layers[1] = torch.nn.Conv2d(4, 5, 3, padding=1)
    with pytest.raises(TypeError, match=r"timm_ebl.Interaction, not a Conv2d"):
        model(x)


def test_an_unknown_model_argument_is_refused():
    with pytest.raises(TypeError, match="nonsense"):
        timm.create_model("dchn_tiny_mnist", nonsense=1)
