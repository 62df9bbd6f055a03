"""The predictive coding networks of timm's registry, as a timm user meets them: they are feed-forward networks."""

import json
import warnings

import pytest
import timm
import torch
import torch.nn.functional as F
from oracles import images_for
from predictive import small_network
from runs import SMALL, arguments, assert_same_run, train, write_images
from torchvision.models.feature_extraction import create_feature_extractor

from timm_ebl import PCN
from timm_ebl.data.transforms import BatchTransform
from timm_ebl.models.factory import family_of
from timm_ebl.training.config import TrainConfig
from timm_ebl.training.splits import load_splits

NAMES = timm.list_models("pcn*")
TINY = ["--model", "pcn_vgg5_tiny_fashion_mnist", "--opt", "nesterov", "--lr", 0.04]


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return timm.create_model("pcn_vgg5_tiny_cifar10").eval()


def by_hand(widths, side, classes, below=3, neck=0):
    """Weights and biases of 3x3 convolutions, a neck of 7x7 and a read-out of a map of that side."""
    channels = (below, *widths)
    count = sum(9 * a * b + b for a, b in zip(channels, widths, strict=False))
    count += (49 * widths[-1] + 1) * neck
    return count + ((neck or widths[-1] * side**2) + 1) * classes


def test_every_size_has_a_name_for_every_data_set():
    sets = ("mnist", "fashion_mnist", "svhn", "cifar10", "cifar100")
    assert set(NAMES) == {f"pcn_vgg5_{size}{name}" for size in ("", "small_", "tiny_") for name in sets} | {"pcn_vgg10"}
    assert all(family_of(name) is PCN for name in NAMES)


def test_parameters_are_those_of_the_published_layers():
    def count(name):
        return sum(parameter.numel() for parameter in timm.create_model(name, device="meta").parameters())

    assert count("pcn_vgg5_cifar10") == by_hand((128, 256, 512, 512, 512), 2, 10)
    assert count("pcn_vgg5_small_cifar100") == by_hand((32, 64, 128, 128, 128), 2, 100)
    assert count("pcn_vgg5_tiny_mnist") == by_hand((16, 32, 64, 64, 64), 2, 10, below=1)
    assert count("pcn_vgg10") == by_hand((64, 128, 256, 256, 512, 512, 512, 512), 1, 1000, neck=2048)


@pytest.mark.parametrize("name", NAMES)
def test_shapes_are_those_of_the_configuration(name):
    model = timm.create_model(name, device="meta").eval()
    config, x = model.default_cfg, torch.randn(2, *model.default_cfg["input_size"], device="meta")
    features, (height, width), last = model.forward_features(x), x.shape[2:], model.feature_info[-1]["reduction"]
    assert features.shape == (2, model.num_features, height // last, width // last)
    assert features.shape[2:] == config["pool_size"]
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    assert model(x).shape == model.forward_head(features).shape == (2, config["num_classes"])
    assert {config["first_conv"] + ".weight", config["classifier"] + ".weight"} <= set(model.state_dict())
    maps = model.forward_intermediates(x, intermediates_only=True)
    for layer, info in zip(maps, model.feature_info, strict=True):
        assert layer.shape == (2, info["num_chs"], *(side // info["reduction"] for side in x.shape[2:]))
    model.reset_classifier(0)
    assert model(x).shape == (2, model.head_hidden_size)
    model.reset_classifier(7)
    assert model(x).shape == (2, 7)


def test_it_is_compiled_exported_scripted_and_traced_like_any_network(tiny):
    x = images_for(tiny, 3)
    expected = tiny(x)
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ways = {
            "compiled": torch.compile(tiny, fullgraph=True, backend="aot_eager"),
            "exported": torch.export.export(tiny, (x,), dynamic_shapes=({0: batch},)).module(),
            "scripted": torch.jit.script(tiny),
            "recorded": torch.jit.trace(tiny, x),
            "symbolic": torch.fx.symbolic_trace(tiny),
            "symbolic, scripted": torch.jit.script(torch.fx.symbolic_trace(tiny)),
        }
    for name, network in ways.items():
        torch.testing.assert_close(network(x), expected, msg=name)
        torch.testing.assert_close(network(x[:2]), expected[:2], msg=name)
    loss = F.cross_entropy(ways["compiled"](x), torch.tensor([0, 1, 2]))
    wanted = torch.autograd.grad(F.cross_entropy(expected, torch.tensor([0, 1, 2])), [*tiny.parameters()])
    torch.testing.assert_close(torch.autograd.grad(loss, [*tiny.parameters()]), wanted)


@pytest.mark.filterwarnings("ignore")
def test_it_is_exported_to_onnx_with_any_batch_size(tiny):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    x = images_for(tiny, 3)
    program = torch.onnx.export(tiny, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},), dynamo=True)
    session = runtime.InferenceSession(program.model_proto.SerializeToString())
    for images in (x, x[:2]):
        (output,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        torch.testing.assert_close(torch.from_numpy(output), tiny(images))


def test_its_layers_are_features_for_every_tool(tiny):
    x, seen = images_for(tiny), []
    expected = tiny.forward_intermediates(x, intermediates_only=True)
    torch.manual_seed(0)
    assert all(map(torch.equal, timm.create_model("pcn_vgg5_tiny_cifar10", features_only=True).eval()(x), expected))
    extractor = create_feature_extractor(tiny, {"layers.1.relu": "map"})
    assert torch.equal(extractor(x)["map"], expected[1])
    tiny.layers[2].register_forward_hook(lambda module, inputs, output: seen.append(output))
    tiny(x)
    assert torch.equal(seen[0], expected[2])


@pytest.mark.parametrize("backward", ["ep", "tbp", "rbp", "bp"])
@pytest.mark.parametrize("indices", [(0, 1), (1,), (-1,), (4, 2)])
def test_feature_maps_leave_out_what_they_do_not_need_and_learn_alike(backward, indices):
    def built(**options):
        torch.manual_seed(0)
        return timm.create_model("pcn_vgg5_tiny_cifar10", backward=backward, dtype=torch.float64, **options).train()

    whole, backbone, taken = built(), built(features_only=True, out_indices=indices), [index % 5 for index in indices]
    x = images_for(whole).double()
    maps, expected = backbone(x), whole.forward_intermediates(x, list(indices), intermediates_only=True)
    torch.testing.assert_close(maps, expected)
    assert backbone.feature_info.channels() == [whole.feature_info[index]["num_chs"] for index in taken]
    losses = [sum(each.square().mean() for each in several) for several in (maps, expected)]
    names = [name.removeprefix("model.") for name, _ in backbone.named_parameters()]
    assert names == [f"layers.{level}.{part}" for level in range(max(taken) + 1) for part in ("weight", "bias")]
    found = torch.autograd.grad(losses[0], [*backbone.parameters()])
    torch.testing.assert_close(
        found, torch.autograd.grad(losses[1], [dict(whole.named_parameters())[n] for n in names])
    )


def test_what_is_left_of_a_pruned_network_is_one(tiny):
    x = images_for(tiny)
    *_, expected, _, _, _ = tiny.relax(x).state
    assert tiny.prune_intermediate_layers((2, 0), prune_head=False) == [2, 0]
    torch.testing.assert_close(tiny(x), expected)
    tiny.init_weights()
    tiny.reset_classifier(7)
    assert tiny(x).shape == tiny.relax(x).output.shape == (2, 7)
    assert tiny.prune_intermediate_layers(1, prune_head=False) == [2]
    assert tiny(x).shape == (2, 7)


def test_weights_are_saved_loaded_and_adapted(tiny, tmp_path):
    timm.models.save_for_hf(tiny, tmp_path, safe_serialization=True)
    x, source = images_for(tiny), f"local-dir:{tmp_path}"
    assert torch.equal(timm.create_model(source, pretrained=True).eval()(x), tiny(x))
    adapted = timm.create_model(source, pretrained=True, in_chans=1, num_classes=5, img_size=48).eval()
    torch.testing.assert_close(adapted.layers[0].weight, tiny.layers[0].weight.sum(1, keepdim=True))
    assert adapted(torch.randn(2, 1, 48, 48)).shape == (2, 5)


def test_what_it_cannot_do_is_refused(tiny):
    for settings, words in (
        ({"widths": ()}, "widths is a non-empty sequence"),
        ({"pools": (2, 2)}, "pools has one window for each of the widths"),
        ({"img_size": 8}, "too small"),
        ({"drop_rate": 0.1}, "A PCN has no dropout"),
        ({"beta": 0}, "beta is a positive number, not 0"),
        ({"beta": "x"}, "beta is a positive number, not 'x'"),
        ({"backward": "sgd"}, "Unknown backward 'sgd' of a PCN: choose one of ep, tbp, rbp, bp"),
    ):
        with pytest.raises(ValueError, match=words):
            PCN(**settings)
    with pytest.raises(TypeError, match=r"backward is a name or a timm_ebl\.Backward, not 3"):
        tiny.backward = 3
    for call in (tiny, tiny.answer, tiny.relax):
        with pytest.raises(ValueError, match=r"takes images of shape \(B, 3, 32, 32\)"):
            call(torch.zeros(1, 3, 28, 28))
    assert "energy='predictive coding', beta=0.02, backward='ep'" in repr(tiny)


def test_nan_passes_through_the_feed_forward_network_alone(tiny):
    x = images_for(tiny)
    x[0, 0, 0, 0] = torch.nan
    assert tiny(x).isnan().any(1).tolist() == [True, False]
    for call in (tiny.answer, tiny.relax, tiny.train()):
        with pytest.raises(ValueError, match="NaN"):
            call(x)


def test_a_plain_loop_learns_by_equilibrium_propagation():
    model = small_network(dtype=torch.float32).train()
    x, y = torch.randn(12, 2, 8, 8), torch.arange(12) % 3
    optimizer, losses = torch.optim.SGD(model.parameters(), 0.1, 0.9), []
    for _ in range(20):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.6 * losses[0]


def test_a_run_with_random_signs_stopped_within_an_epoch_goes_on_exactly(tmp_path, train_until):
    folder = write_images(tmp_path / "images")
    small = ["--algo", "r-ep", *TINY, "--model-kwargs", "widths=[4, 4, 4, 4, 4]"]
    outs = tmp_path / "whole", tmp_path / "stopped"
    whole, stopped = ([*arguments(folder, out)[: -len(SMALL)], *small, "--threads", 1] for out in outs)
    train(*whole)
    train_until(8, *stopped)
    train(*stopped, "--resume")
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_a_run_by_the_cross_entropy_says_so_and_other_rules_refuse_it(tmp_path, capsys):
    folder = write_images(tmp_path / "images")
    words = [*arguments(folder, tmp_path / "run")[: -len(SMALL)], *TINY, "--threads", 1, "--epochs", 1]
    train(*words, "--cost", "cross-entropy")
    assert "cost: cross-entropy" in (tmp_path / "run" / "args.yaml").read_text()
    (metrics,) = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    data = load_splits(TrainConfig(dataset=str(folder))).held_out
    model = timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True).eval()
    assert "tag" not in json.loads((tmp_path / "run" / "config.json").read_text())["pretrained_cfg"]
    images = BatchTransform(model.pretrained_cfg["mean"], model.pretrained_cfg["std"]).eval(data.images)
    expected = float(F.cross_entropy(model.answer(images), data.labels))
    assert metrics["held_out_cost"] == pytest.approx(expected, rel=1e-4)
    for more, answer in (
        (["--cost", "hinge"], "--cost is one of squared-error, cross-entropy, not 'hinge'"),
        (["--cost", "cross-entropy", "--algo", "c-cpl"], "Rule 'c-cpl' has no use for --cost"),
    ):
        with pytest.raises(SystemExit):
            train(*words, *more)
        assert answer in capsys.readouterr().err
