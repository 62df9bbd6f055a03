"""A DCHN is trained by what timm trains any model with."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from oracles import images_for
from timm.data import Mixup, create_dataset, create_loader, resolve_data_config
from timm.models import load_checkpoint
from timm.models._manipulate import group_parameters
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask, LogitDistillationTask
from timm.utils import CheckpointSaver, ModelEmaV3, NativeScaler, accuracy
from torchvision.transforms.functional import to_pil_image

import timm_ebl
from timm_ebl.data.dataset import load_dataset
from timm_ebl.training.task import RuleTask


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
    assert average(images_for(tiny)).shape == (2, 10)
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
    x, y = data.batch(range(256))
    x = x.float() / 127.5 - 1
    model = timm.create_model("dchn_tiny_fashion_mnist", widths=(8, 16, 32, 32))
    task = tasks(model)[name]
    average = task.setup_ema(decay=0.9)
    optimizer = create_optimizer_v2(model, opt="adam", lr=3e-3)
    for epoch in range(24):
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
    x, y = images_for(tiny, 8), torch.arange(8)
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
        pictures, labels = load_dataset(None, "train" if split == "train" else "test").batch(range(count))
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
