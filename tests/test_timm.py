"""What timm offers for a classification network, on every DCHN: the checks of timm's own tests, and its training."""

import copy
import warnings

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.data import Mixup, create_dataset, create_loader, create_transform, resolve_data_config
from timm.data.model_config import resolve_input_data_config
from timm.models import FeatureInfo, load_checkpoint
from timm.models._manipulate import group_parameters
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask, LogitDistillationTask
from timm.utils import CheckpointSaver, ModelEmaV3, NativeScaler, accuracy
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names
from torchvision.transforms.functional import to_pil_image

import timm_ebl
from timm_ebl.data import load_dataset
from timm_ebl.task import RuleTask

NAMES = timm.list_models("dchn*")
CLASSES = {name: 100 if name.endswith("cifar100") else 10 for name in NAMES}


def images(model, count=2):
    return torch.randn(count, model.in_chans, *model.img_size, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return timm.create_model("dchn_tiny_cifar10")


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
    assert {config["first_conv"] + ".weight", config["classifier"] + ".weight"} <= set(model.state_dict())
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
    outputs = model(images(model))
    outputs.mean().backward()
    assert outputs.shape == (2, 42)
    assert all(parameter.grad.shape == parameter.shape for parameter in model.parameters())


def test_arguments_that_do_not_exist_or_fit_are_refused(tiny):
    with pytest.raises(TypeError, match="not_an_argument"):
        timm.create_model("dchn_tiny_mnist", not_an_argument=1)
    with pytest.raises(ValueError, match="global_pool is 'flatten' or '', not 'avg'"):
        timm.create_model("dchn_tiny_mnist", global_pool="avg")
    with pytest.raises(ValueError, match="global_pool='' goes with num_classes=0"):
        tiny.reset_classifier(10, "")
    with pytest.raises(ValueError, match="no gradient checkpointing"):
        tiny.set_grad_checkpointing()
    tiny.set_grad_checkpointing(False)
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


def test_pretrained_weights_adapt_to_channels_and_classes(tiny, tmp_path):
    timm.models.save_for_hf(tiny, tmp_path, safe_serialization=True)
    adapted = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, in_chans=1, num_classes=5)
    torch.testing.assert_close(adapted.layers[0].weight, tiny.layers[0].weight.sum(1, keepdim=True))
    assert torch.equal(adapted.layers[3].weight, tiny.layers[3].weight)
    assert adapted(torch.randn(2, 1, 32, 32)).shape == (2, 5)
    features = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True)
    x = images(tiny)
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
    assert backbone.feature_info.channels() == [layer.out_channels for layer in model.layers]
    assert backbone.feature_info.reduction() == [2, 4, 8, 16]
    x = images(model)
    for features, state in zip(backbone(x), model.relax(x).state, strict=False):
        assert torch.equal(features, state)


def test_features_are_chosen_by_index(tiny):
    x = images(tiny)
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
    assert tiny(images(tiny).double()).shape == (2, 10)
    assert resolve_input_data_config(tiny)["input_size"] == (3, 48, 80)
    timm.models.save_for_hf(tiny.float(), tmp_path, safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert torch.equal(loaded(images(tiny)), tiny(images(tiny)))
    with pytest.raises(ValueError, match="too small"):
        tiny.set_input_size(8)
    with pytest.raises(ValueError, match="number of pixels"):
        tiny.set_input_size((32, 0))


def test_resizing_and_resetting_keep_what_is_frozen(tiny):
    tiny.requires_grad_(False)
    tiny.set_input_size(64)
    assert not any(p.requires_grad for p in tiny.parameters())
    tiny.reset_classifier(0)
    tiny.set_input_size(32)
    assert tiny(images(tiny)).shape == (2, 256)
    assert not any(p.requires_grad for p in tiny.parameters())


# -------------------------------------------------------------------------------------------------- layouts and graphs


def test_channels_last_changes_nothing(tiny):
    x = images(tiny)
    expected = tiny(x)
    found = tiny.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_scripted_and_exported_networks_answer_alike(tiny, batch_size):
    x = images(tiny, batch_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(tiny.eval())
    torch.testing.assert_close(scripted(x), tiny(x).detach())
    with torch.no_grad():
        batch = {0: torch.export.Dim("batch", min=1, max=64)}
        exported = torch.export.export(tiny, (images(tiny, 3),), dynamic_shapes=(batch,))
    torch.testing.assert_close(exported.module()(x), tiny(x).detach())


def test_a_symbolic_trace_answers_and_learns_alike(tiny):
    x = images(tiny)
    tiny(x).sum().backward()
    expected = {name: parameter.grad.clone() for name, parameter in tiny.named_parameters()}
    node = get_graph_node_names(tiny)[0][-1]
    for graph in (torch.fx.symbolic_trace(tiny), create_feature_extractor(tiny, [node])):
        graph.zero_grad()
        output = graph(x)
        output = output[node] if isinstance(output, dict) else output
        torch.testing.assert_close(output, tiny(x))
        output.sum().backward()
        found = {name: parameter.grad for name, parameter in graph.named_parameters()}
        assert found.keys() == expected.keys()
        torch.testing.assert_close(found, expected)


def test_a_symbolic_trace_is_not_scripted(tiny):
    with pytest.raises(TypeError, match=r"graph of torch.fx: give torch.jit.script the network itself"):
        torch.jit.script(torch.fx.symbolic_trace(tiny.eval()))


@pytest.mark.slow
def test_a_compiled_network_answers_and_learns_alike(tiny):
    x = images(tiny)
    tiny(x).sum().backward()
    expected = [parameter.grad.clone() for parameter in tiny.parameters()]
    tiny.zero_grad()
    output = torch.compile(tiny, backend="eager")(x)
    torch.testing.assert_close(output, tiny(x))
    output.sum().backward()
    torch.testing.assert_close([parameter.grad for parameter in tiny.parameters()], expected)


# ------------------------------------------------------------------------------------------------------------ training


def test_parameters_are_grouped_by_interaction(tiny):
    groups = group_parameters(tiny, tiny.group_matcher(), reverse=True)
    assert [groups[f"layers.{index}.weight"] for index in range(4)] == [0, 1, 2, 3]
    assert groups["layers.2.bias"] == 2
    assert groups["head.weight"] > 3
    assert tiny.no_weight_decay() == set()
    optimizer = create_optimizer_v2(tiny, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.5)
    decays = {
        p: (group["weight_decay"], group["lr_scale"]) for group in optimizer.param_groups for p in group["params"]
    }
    assert len(decays) == 10
    assert decays[tiny.head.weight] == (0.05, 1.0)
    scales = [decays[layer.weight][1] for layer in tiny.layers]
    assert scales == [0.5 * scale for scale in (*scales[1:], 1.0)]
    assert {decays[layer.bias][0] for layer in tiny.layers} == {0.0}


def test_an_average_of_the_weights_follows_them(tiny):
    average = ModelEmaV3(tiny, decay=0.5)
    before = copy.deepcopy(tiny)
    with torch.no_grad():
        for parameter in tiny.parameters():
            parameter.add_(1e-2)
    average.update(tiny, step=2)
    for old, new, mean in zip(before.parameters(), tiny.parameters(), average.module.parameters(), strict=True):
        torch.testing.assert_close(mean, (old + new) / 2)
    assert average(images(tiny)).shape == (2, 10)
    assert average.module.backward == tiny.backward


def tasks(model):
    teacher = timm.create_model("dchn_tiny_fashion_mnist", widths=(4, 4))
    return {
        "label smoothing": ClassificationTask(model, criterion_kwargs={"smoothing": 0.1}, verbose=False),
        "distillation": LogitDistillationTask(model, teacher, task_loss_weight=0.7, verbose=False),
        "a rule": RuleTask(model, timm_ebl.create_rule("c-ep"), verbose=False),
    }


@pytest.mark.parametrize("name", ["label smoothing", "distillation", "a rule"])
def test_timms_tasks_learn(name):
    torch.manual_seed(0)
    data = load_dataset(None, "train")
    x, y = data.__getitems__(range(256))
    x = x.float() / 127.5 - 1
    model = timm.create_model("dchn_tiny_fashion_mnist", widths=(8, 16, 32, 32))
    task = tasks(model)[name]
    average = task.setup_ema(decay=0.9)
    optimizer = create_optimizer_v2(model, opt="adam", lr=3e-3)
    for epoch in range(16):
        for part in torch.randperm(256).split(32):
            result = task(x[part], y[part])
            optimizer.zero_grad()
            result["loss"].backward()
            optimizer.step()
            task.update_ema(step=epoch)
    for network in (task.get_eval_model(), average):
        with torch.no_grad():
            right = accuracy(network.eval()(x), y)[0]
        assert right > 50
    assert set(task.get_checkpoint_state()["state_dict"]) == set(model.state_dict())


def test_mixed_labels_have_their_gradient(tiny):
    x, y = images(tiny, 8), torch.arange(8)
    x, y = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=10)(x, y)
    tiny.double()
    found = {}
    for name in ("ep", "rbp"):
        tiny.backward = timm_ebl.create_backward(name)
        tiny.zero_grad()
        timm.loss.SoftTargetCrossEntropy()(tiny(x.double()), y.double()).backward()
        found[name] = tiny.head.weight.grad.flatten().clone()
    assert F.cosine_similarity(found["ep"], found["rbp"], dim=0) > 0.95


def test_a_loop_of_timms_parts_learns_from_a_folder_of_images(tmp_path):
    torch.manual_seed(0)
    for split, count in (("train", 600), ("validation", 100)):
        pictures, labels = load_dataset(None, "train" if split == "train" else "test").__getitems__(range(count))
        for index, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
            folder = tmp_path / "images" / split / str(int(label))
            folder.mkdir(parents=True, exist_ok=True)
            to_pil_image(picture).save(folder / f"{index}.png")
    as_in_train_py = {"drop_rate": 0.0, "drop_path_rate": None, "global_pool": None, "scriptable": False}
    model = timm.create_model("dchn_tiny_fashion_mnist", in_chans=1, num_classes=10, **as_in_train_py)
    config = resolve_data_config({}, model=model)
    loaders = [
        create_loader(
            create_dataset("", root=tmp_path / "images", split=split, is_training=train, input_img_mode="L"),
            batch_size=32,
            is_training=train,
            no_aug=True,
            use_prefetcher=False,
            num_workers=0,
            **{key: config[key] for key in ("input_size", "interpolation", "mean", "std", "crop_pct")},
            device=torch.device("cpu"),
        )
        for split, train in (("train", True), ("validation", False))
    ]
    optimizer = create_optimizer_v2(model, opt="adamw", lr=3e-3, weight_decay=0.01, layer_decay=0.9)
    scheduler, epochs = create_scheduler_v2(optimizer, sched="cosine", num_epochs=4, warmup_epochs=0)
    scaler = NativeScaler(device="cpu")
    saver = CheckpointSaver(model, optimizer, amp_scaler=scaler, checkpoint_dir=tmp_path, recovery_dir=tmp_path)
    for epoch in range(epochs):
        model.train()
        for x, y in loaders[0]:
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(model(x), y, label_smoothing=0.1)
            optimizer.zero_grad()
            scaler(loss, optimizer, clip_grad=1.0, parameters=model.parameters())
        scheduler.step(epoch + 1)
        with torch.no_grad():
            outputs, labels = zip(*((model.eval()(x), y) for x, y in loaders[1]), strict=True)
        right = float(accuracy(torch.cat(outputs), torch.cat(labels))[0])
        saver.save_checkpoint(epoch, metric=right)
    assert right > 50
    fresh = timm.create_model("dchn_tiny_fashion_mnist")
    load_checkpoint(fresh, str(tmp_path / "last.pth.tar"))
    assert torch.equal(fresh(x), model(x))
