"""What timm offers for a classification network, on every DCHN and some networks with skips: timm's own checks."""

import copy
import warnings

import pytest
import timm
import torch
import torch.nn.functional as F
from oracles import images_for
from timm.data import create_transform, resolve_data_config
from timm.data.model_config import resolve_input_data_config
from timm.models import FeatureInfo
from torchvision.transforms.functional import to_pil_image

SKIPS = ["hopfield_resnet13_small_cifar10", "hopfield_resnet13_tiny_mnist", "hopfield_resnet13_tiny_cifar100"]
NAMES = timm.list_models("dchn*") + SKIPS
CLASSES = {name: 100 if name.endswith("cifar100") else 10 for name in NAMES}

each_family = pytest.mark.parametrize("tiny", ["dchn_tiny_cifar10", "hopfield_resnet13_tiny_cifar10"], indirect=True)


# ------------------------------------------------------------------------------------------------------ timm's contract


@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_names_are_those_of_the_configuration(name):
    model = timm.create_model(name, device="meta", dtype=torch.float32)
    config = model.default_cfg
    x = torch.randn(2, *config["input_size"], device="meta")
    features = model.forward_features(x)
    pre_logits = model.forward_head(features, pre_logits=True)
    assert features.shape == (2, model.num_features, *config["pool_size"])
    assert pre_logits.shape == (2, model.head_hidden_size)
    assert model(x).shape == model.forward_head(features).shape == (2, CLASSES[name])
    first = config["first_conv"]
    parts = (*(first if isinstance(first, tuple) else (first,)), config["classifier"])
    assert {f"{part}.weight" for part in parts} <= set(model.state_dict())
    assert model.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16
    assert {t.device.type for t in (*model.parameters(), *model.buffers())} == {"meta"}


@pytest.mark.parametrize("name", NAMES)
def test_the_classifier_can_be_taken_away_and_put_back(name):
    for model in (timm.create_model(name, device="meta"), timm.create_model(name, num_classes=0, device="meta")):
        x = torch.randn(2, *model.default_cfg["input_size"], device="meta")
        model.reset_classifier(0)
        assert model.num_classes == 0
        assert model(x).shape == (2, model.head_hidden_size)
        model.reset_classifier(0, "")
        assert model(x).shape == model.forward_features(x).shape == (2, model.num_features, 2, 2)
        model.eval().to(torch.float64).reset_classifier(7)
        assert model(x.double()).shape == (2, 7)
        assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.float64)}
        assert not any(module.training for module in model.modules())
    unpooled = timm.create_model(name, num_classes=0, global_pool="", device="meta")
    assert unpooled(x).shape == (2, unpooled.num_features, 2, 2)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_has_a_gradient(name):
    model = timm.create_model(name, num_classes=42).train()
    outputs = model(images_for(model))
    outputs.mean().backward()
    assert outputs.shape == (2, 42)
    assert all(parameter.grad.shape == parameter.shape for parameter in model.parameters())


def test_arguments_that_do_not_exist_or_fit_are_refused(tiny):
    with pytest.raises(TypeError, match="not_an_argument"):
        timm.create_model("dchn_tiny_mnist", not_an_argument=1)
    with pytest.raises(ValueError, match="global_pool is 'flatten' or '', not 'avg'"):
        timm.create_model("dchn_tiny_mnist", global_pool="avg")
    before = (tiny.head, tiny.num_classes, tiny.global_pool)
    for arguments, words in (
        ((10, ""), "global_pool='' goes with num_classes=0"),
        *(((count,), f"num_classes is a whole number of at least 0, not {count!r}") for count in (-3, 2.5, "5", True)),
    ):
        with pytest.raises(ValueError, match=words):
            tiny.reset_classifier(*arguments)
        assert (tiny.head, tiny.num_classes, tiny.global_pool) == before
    for model, words in (
        (tiny, r"A DCHN has no gradient checkpointing: .* ep, tbp, rbp keeps the free state alone\."),
        (timm.create_model("pcn_vgg5_tiny_mnist"), r"A PCN has no gradient checkpointing: .* alone, and that of 'bp'"),
    ):
        with pytest.raises(ValueError, match=words):
            model.set_grad_checkpointing()
        model.set_grad_checkpointing(False)
    with pytest.raises(ValueError, match="no dropout; got drop_rate"):
        timm.create_model("dchn_tiny_mnist", drop_rate=0.1)
    with pytest.raises(ValueError, match="Unknown pooling 'min': choose one of max, average"):
        timm.create_model("dchn_tiny_mnist", pooling="min")


def test_data_configuration_and_transforms_come_from_timm(tiny):
    config = resolve_data_config({}, model=tiny)
    assert config["input_size"] == (3, 32, 32)
    assert config["mean"] == (0.4914, 0.4822, 0.4465)
    picture = to_pil_image(torch.rand(3, 40, 36))
    assert create_transform(**config)(picture).shape == (3, 32, 32)
    assert create_transform(**config, is_training=True)(picture).shape == (3, 32, 32)


@each_family
def test_pretrained_weights_adapt_to_channels_and_classes(tiny, tmp_path):
    timm.models.save_for_hf(tiny, tmp_path, safe_serialization=True)
    adapted = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, in_chans=1, num_classes=5)
    for edge, own in zip(adapted.graph.edges, tiny.interactions, strict=True):
        if edge.lower is None:
            torch.testing.assert_close(edge.interaction.weight, own.weight.sum(1, keepdim=True))
    assert torch.equal(adapted.layers[3].weight, tiny.layers[3].weight)
    assert adapted(torch.randn(2, 1, 32, 32)).shape == (2, 5)
    features = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True)
    x = images_for(tiny)
    assert torch.equal(features(x)[0], tiny.relax(x).state[0])
    other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True, num_classes=0)
    assert torch.equal(other.model.layers[3].weight, tiny.layers[3].weight)


# ------------------------------------------------------------------------------------------------------------- features


@pytest.mark.parametrize("name", NAMES)
def test_the_feature_maps_are_the_states_at_equilibrium(name):
    torch.manual_seed(0)
    backbone = timm.create_model(name, features_only=True)
    torch.manual_seed(0)
    model = timm.create_model(name)
    x = images_for(model)
    *states, _ = model.relax(x).state
    assert backbone.feature_info.channels() == [state.shape[1] for state in states]
    assert backbone.feature_info.reduction() == [32 // state.shape[2] for state in states]
    assert all(map(torch.equal, backbone(x), states))
    modules = dict(model.named_modules())
    for name, state in zip(backbone.feature_info.module_name(), states, strict=True):
        assert modules[name].out_channels == state.shape[1]


def test_features_are_chosen_by_index(tiny):
    x = images_for(tiny)
    *states, _ = tiny.relax(x).state
    last, chosen = tiny.forward_intermediates(x, indices=[0, -2], stop_early=True, norm=True)
    assert torch.equal(last, states[3])
    assert torch.equal(last, tiny.forward_features(x))
    assert all(torch.equal(a, b) for a, b in zip(chosen, (states[0], states[2]), strict=True))
    assert [f.shape[1] for f in tiny.forward_intermediates(x, indices=2, intermediates_only=True)] == [64, 64]
    backbone = timm.create_model("dchn_tiny_cifar10", features_only=True, out_indices=(1, 3))
    assert [tuple(f.shape) for f in backbone(x)] == [(2, 32, 8, 8), (2, 64, 2, 2)]
    assert FeatureInfo(tiny.feature_info, (0, 1)).reduction() == [2, 4]
    with pytest.raises(ValueError, match="output_fmt='NHWC'"):
        tiny.forward_intermediates(x, output_fmt="NHWC")
    with pytest.raises(ValueError, match="feature_cls is 'getter', not 'hook'"):
        timm.create_model("dchn_tiny_cifar10", features_only=True, feature_cls="hook")


def test_a_backbone_trains():
    torch.manual_seed(0)
    backbone = timm.create_model("dchn_tiny_mnist", features_only=True, num_classes=0)
    assert not any("head" in name for name in backbone.state_dict())
    x, target = torch.randn(8, 1, 32, 32), torch.rand(8, 64, 2, 2)
    optimizer, losses = torch.optim.Adam(backbone.parameters(), 2e-3), []
    for _ in range(15):
        losses.append(F.mse_loss(backbone(x)[-1], target))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


# --------------------------------------------------------------------------------------------------------- other sizes


def test_another_input_size_keeps_the_answer_to_a_uniform_map(tiny, tmp_path):
    tiny.double()
    uniform = torch.rand(3, 64, 1, 1, dtype=torch.float64)
    before = tiny.forward_head(uniform.expand(-1, -1, 2, 2))
    for size, side in ((64, (4, 4)), ((48, 80), (3, 5)), (32, (2, 2))):
        tiny.set_input_size(img_size=size)
        torch.testing.assert_close(tiny.forward_head(uniform.expand(-1, -1, *side)), before)
        assert tiny.head.in_features == tiny.head_hidden_size == 64 * side[0] * side[1]
    tiny.set_input_size((48, 80))
    with pytest.raises(ValueError, match=r"\(B, 3, 48, 80\), not \(1, 3, 32, 32\)"):
        tiny(torch.zeros(1, 3, 32, 32))
    assert tiny(images_for(tiny).double()).shape == (2, 10)
    assert resolve_input_data_config(tiny)["input_size"] == (3, 48, 80)
    timm.models.save_for_hf(tiny.float(), tmp_path, safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert torch.equal(loaded(images_for(tiny)), tiny(images_for(tiny)))
    with pytest.raises(ValueError, match="too small"):
        tiny.set_input_size(8)
    with pytest.raises(ValueError, match="number of pixels"):
        tiny.set_input_size((32, 0))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_weights_in_16_bits_are_resized_as_those_in_32(tiny, kind):
    assert timm.create_model("dchn_tiny_mnist.c_ep", pretrained=True, img_size=48).img_size == (48, 48)
    tiny.to(kind).float()
    exact = copy.deepcopy(tiny)
    exact.set_input_size(48)
    tiny.to(kind).set_input_size(48)
    assert torch.equal(tiny.head.weight, exact.head.weight.to(kind))


@each_family
@pytest.mark.parametrize("size", [64, (48, 80), 32])
def test_pretrained_weights_at_another_size_are_those_of_resizing(tiny, tmp_path, size):
    timm.models.save_for_hf(tiny, tmp_path, safe_serialization=True)
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, img_size=size)
    tiny.set_input_size(size)
    assert model.img_size == tiny.img_size
    assert resolve_input_data_config(model)["input_size"] == (3, *tiny.img_size)
    assert torch.equal(model(images_for(tiny)), tiny(images_for(tiny)))
    other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, img_size=size, num_classes=7, in_chans=1)
    assert other(images_for(other)).shape == (2, 7)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert torch.equal(again(images_for(tiny)), tiny(images_for(tiny)))


@each_family
def test_resizing_and_resetting_keep_what_is_frozen(tiny):
    tiny.requires_grad_(False)
    tiny.set_input_size(64)
    assert not any(p.requires_grad for p in tiny.parameters())
    tiny.reset_classifier(0)
    tiny.set_input_size(32)
    assert tiny(images_for(tiny)).shape == (2, 256)
    assert not any(p.requires_grad for p in tiny.parameters())


# -------------------------------------------------------------------------------------------------- layouts and graphs


@each_family
def test_channels_last_changes_nothing(tiny):
    x = images_for(tiny)
    expected = tiny(x)
    found = tiny.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected)


@each_family
@pytest.mark.parametrize("batch_size", [1, 5])
def test_scripted_and_exported_networks_answer_alike(tiny, batch_size):
    x = images_for(tiny, batch_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(tiny.eval())
    torch.testing.assert_close(scripted(x), tiny(x).detach())
    with torch.no_grad():
        batch = {0: torch.export.Dim("batch", min=1, max=64)}
        exported = torch.export.export(tiny, (images_for(tiny, 3),), dynamic_shapes=(batch,))
    torch.testing.assert_close(exported.module()(x), tiny(x).detach())


@each_family
@pytest.mark.slow
def test_a_compiled_network_answers_and_learns_alike(tiny):
    x = images_for(tiny)
    tiny(x).sum().backward()
    expected = [parameter.grad.clone() for parameter in tiny.parameters()]
    tiny.zero_grad()
    output = torch.compile(tiny, backend="eager")(x)
    torch.testing.assert_close(output, tiny(x))
    output.sum().backward()
    torch.testing.assert_close([parameter.grad for parameter in tiny.parameters()], expected)
