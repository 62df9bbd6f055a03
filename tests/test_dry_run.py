"""A CUDA device without a GPU: nothing mixes devices, and the host waits for the device only where it must."""

import re
import warnings
from types import SimpleNamespace

import pytest
import timm
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from fake_cuda import Waits, fake_cuda, gradients, on_cuda
from graphs import GraphNetwork, residual_graph

from timm_ebl import Minimizer, create_backward, create_rule, list_rules
from timm_ebl.data.dataset import ImageDataset
from timm_ebl.data.loader import build_eval_loader, build_train_loader
from timm_ebl.data.transforms import BatchTransform
from timm_ebl.energy.graph import Layer
from timm_ebl.energy.perturbation import Clamped, Forced, Nudged
from timm_ebl.kernels import native
from timm_ebl.kernels.packed import Packed
from timm_ebl.kernels.plain import Plain
from timm_ebl.training.average import WeightAverage
from timm_ebl.training.engine import evaluate, train_epoch
from timm_ebl.training.health import Watch
from timm_ebl.training.launch import start_accelerator
from timm_ebl.training.progress import Progress
from timm_ebl.training.task import RuleTask

FAMILIES = ["dchn_tiny_cifar10", "hopfield_resnet13_tiny_cifar10", "pcn_vgg5_tiny_cifar10"]
NETWORKS = [*FAMILIES, "a graph with skips"]
PRECISIONS = [None, torch.bfloat16, torch.float16]

LOOK = "relaxation/descent.py:reached"
EPOCH = "training/engine.py:train_epoch"
BAR = "training/progress.py:means"


@pytest.fixture
def fake():
    with fake_cuda() as watched:
        yield watched


def build(name):
    """A network on the fake device with a batch of images and labels; few sweeps, as all of them are alike."""
    if name in FAMILIES:
        network, x = timm.create_model(name), torch.empty(4, 3, 32, 32, device="cuda")
    else:
        network, x = GraphNetwork(residual_graph(torch.float32)), torch.empty(4, 2, 8, 8, device="cuda")
    network.minimizer = Minimizer(sweeps=3)
    return on_cuda(network), x, torch.zeros(4, dtype=torch.int64, device="cuda")


def cast(dtype):
    return torch.autocast("cuda", dtype, enabled=dtype is not None)


def learn(network, x, y, algo, **options):
    rule = create_rule(algo, **options)
    if rule.second_field != "perturbed":
        rule = create_rule(algo, **{rule.second_field: Minimizer(sweeps=2, omega=1.0)}, **options)
    return rule(network, x, y, **({"signs": torch.ones(len(x), device="cuda")} if rule.draws else {}))


def require_gradients(loss, network):
    parameters = list(network.parameters())
    for parameter, gradient in zip(parameters, gradients(loss, parameters, materialize_grads=True), strict=True):
        assert gradient.is_cuda
        assert (gradient.shape, gradient.dtype) == (parameter.shape, torch.float32)


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_step_of_a_rule_never_waits(fake, network, precision):
    some = precision is not None and network == "hopfield_resnet13_tiny_cifar10"  # the graph with skips is as good
    network, x, y = build(network)
    for algo in ("p-ep", "c-ep", "c-cpl", "tbp", "rbp") if some else list_rules():
        with cast(precision):
            step = learn(network, x, y, algo)
        assert step.output.is_cuda
        require_gradients(step.loss, network)


@pytest.mark.parametrize("options", [{"linear_response": False}, {"cost": "cross-entropy"}], ids=str)
def test_a_step_with_other_options_never_waits(fake, options):
    network, x, y = build("dchn_tiny_cifar10")
    require_gradients(learn(network, x, y, "c-ep", **options).loss, network)


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("network", NETWORKS)
def test_every_phase_never_waits(fake, network, precision):
    network, x, _ = build(network)
    with cast(precision):
        output = network.answer(x)
        free = network.relax(x)
        rest, target = network.settle(free), torch.zeros_like(free.output)
        forces = [0.1 * layer for layer in free.state]
        ended = [network.relax(x, free.state, Nudged(target, -0.25, damped=True)), network.relax(x, free)]
        ended += [network.relax(x, rest, each) for each in (Nudged(target, 0.25), Clamped(target), Forced(forces))]
        opposite = torch.tensor([[0.25], [-0.25]]).to("cuda", non_blocking=True).repeat_interleave(len(x), 0)
        ended.append(network.respond(rest.twice(), Nudged(target.repeat(2, 1), opposite), Minimizer(sweeps=5)))
        energies = [network.energy(relaxation.input, relaxation) for relaxation in ended]
    assert all(tensor.is_cuda for relaxation in ended for tensor in relaxation.state)
    assert all(tensor.is_cuda for tensor in (output, free.converged, *energies))


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("backward", ["ep", "tbp", "rbp"])
def test_the_backward_pass_of_a_loss_never_waits(fake, backward, precision):
    network, x, _ = build("dchn_tiny_cifar10")
    options = {"tbp": "unrolled", "rbp": "adjoint"}
    few = {options[backward]: Minimizer(sweeps=2, omega=1.0)} if backward in options else {}
    network.backward = create_backward(backward, **few)
    with cast(precision):
        loss = network(x.requires_grad_()).log_softmax(1).sum()
    require_gradients(loss, network)


def test_a_device_convolves_as_pytorch_does_without_what_is_for_a_cpu():
    on_cpu = timm.create_model("dchn_cifar10")
    with torch.no_grad():
        engines = [type(part.engine) for part in on_cpu.graph.operators(torch.Size([32, 3, 32, 32]))[:-1]]
    assert Plain not in engines
    assert Packed in engines
    with fake_cuda(), torch.no_grad():
        parts = on_cuda(on_cpu).graph.operators(torch.Size([32, 3, 32, 32]))[:-1]
        assert {type(part.engine) for part in parts} == {Plain}
        assert not any(part.images.kept for part in parts)
        with cast(torch.float16):
            assert {part.dtype for part in on_cpu.graph.operators(torch.Size([32, 3, 32, 32]))[:-1]} == {torch.float16}


# --------------------------------------------------------------------------------------------- what a check must find


PLANTED = {
    "item": lambda field: field * field.sum().item(),
    "float": lambda field: field * float(field.sum()),
    "bool": lambda field: field if (field > 0).any() else -field,
    "cpu": lambda field: field + field.cpu().to(field.device),
    "tolist": lambda field: field * field.sum((1, 2, 3)).tolist()[0],
    "nonzero": lambda field: field.index_put(field.nonzero(as_tuple=True), field.new_zeros(())),
    "mask": lambda field: field + field[field > 0].sum(),
    "equal": lambda field: field if torch.equal(field, field) else -field,
    "a number for the device": lambda field: field * torch.tensor([0.5], device=field.device),
    "an index of the host": lambda field: field[torch.arange(len(field), device="cpu")],
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_wait_planted_in_a_sweep_is_found(fake, monkeypatch, planted):
    network, x, y = build("dchn_tiny_cifar10")
    monkeypatch.setattr(Layer, "clip_", lambda self, field: PLANTED[planted](field))
    with pytest.raises(Waits, match=r"^relaxation/phase.py:_clipped waits for the device by "):
        learn(network, x, y, "c-ep")


def test_a_tensor_of_another_device_planted_in_a_sweep_is_found(fake, monkeypatch):
    network, x, y = build("dchn_tiny_cifar10")
    monkeypatch.setattr(Layer, "clip_", lambda self, field: field + torch.zeros(field.shape))
    with pytest.raises(RuntimeError, match="device"):
        learn(network, x, y, "c-ep")


def test_labels_and_images_of_the_host_are_refused_in_one_sentence(fake):
    network, x, _ = build("dchn_tiny_cifar10")
    with pytest.raises(ValueError, match=re.escape("The labels are on cpu and the model's output on cuda:0")):
        learn(network, x, torch.zeros(4, dtype=torch.int64), "c-ep")
    with pytest.raises(ValueError, match=re.escape("The input is on cpu and the network on cuda:0")):
        network.answer(torch.zeros(x.shape))


def test_the_device_is_told_what_to_say_of_wrong_labels_and_to_look_at_nothing_else(fake, monkeypatch):
    said = []
    device = SimpleNamespace(msg=lambda good, message: said.append((good.shape, good.is_cuda, message)))
    monkeypatch.setattr(native, "_REQUIRE", device)
    network, x, y = build("dchn_tiny_cifar10")
    step = create_rule("c-ep")(network, x, y)
    create_rule("c-ep")(network, x, torch.zeros_like(step.output), step.last)
    assert said == [((), True, "Labels lie in 0 .. 9; this batch has others.")]


# ------------------------------------------------------------------------------------------- where the host does wait


@pytest.mark.parametrize("sweeps", [3, 9])
def test_with_a_tolerance_the_host_waits_every_fourth_sweep_and_at_the_end(sweeps):
    with fake_cuda(LOOK) as watched, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network, x, _ = build("dchn_tiny_cifar10")
        network.relax(x, minimizer=Minimizer(sweeps=sweeps, tolerance=1e-3))
        assert watched.waits == {LOOK: sweeps // 4 + 1}


class Loader(list):
    """Batches on the device."""

    dataset = range(12)

    def set_epoch(self, epoch):
        pass


@pytest.fixture
def accelerator():
    """An accelerator of the fake device."""
    AcceleratorState._reset_state(True)
    accelerator = Accelerator(cpu=True)
    accelerator.state.device = torch.device("cuda")
    yield accelerator
    AcceleratorState._reset_state(True)


def batches():
    images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8, device="cuda")
    return Loader(
        (images, torch.zeros_like(images[:, 0, 0, 0]).long(), torch.arange(4, device="cuda")) for _ in range(3)
    )


def test_an_epoch_waits_at_its_ends_and_at_its_looks_alone(accelerator):
    looks = ["training/health.py:require_finite", "training/health.py:__call__"]
    with fake_cuda(EPOCH, "training/progress.py:reduced", *looks) as watched:
        network, *_ = build("dchn_tiny_cifar10")
        task, progress = RuleTask(network, create_rule("r-ep"), device=accelerator.device), Progress()
        optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
        transform = BatchTransform((0.5,) * 3, (0.2,) * 3, padding=4, flip=True)
        watch = Watch(network, progress, every=2, batches=3, say=lambda _: None)
        average = WeightAverage(timm.create_model("dchn_tiny_cifar10"), 0.9)  # its generator needs a real device
        average.module = on_cuda(average.module)
        options = {"warm_start": True, "clip_grad": 1.0, "average": average, "watch": watch}
        train_epoch(accelerator, task, batches(), optimizer, transform, progress, **options)
        assert progress.step == average.steps == 3
        # The random draws of the whole epoch go to the device at its begin, the watch looks twice, the means are read.
        assert watched.waits == {EPOCH: 2, looks[0]: 2, looks[1]: 2, "training/progress.py:reduced": 1}


def test_batches_go_to_the_device_from_pinned_memory_without_a_wait(accelerator):
    data = ImageDataset(torch.zeros(12, 3, 4, 4, dtype=torch.uint8), torch.zeros(12).long(), ("a",), "none", None)
    for loader in (build_train_loader(data, 4, 0, accelerator), build_eval_loader(data, 4, accelerator)):
        assert loader.base_dataloader.pin_memory
    assert start_accelerator(SimpleNamespace(mixed_precision="no", grad_accum_steps=1)).non_blocking


def test_an_evaluation_waits_at_its_end_alone(accelerator):
    with fake_cuda("training/engine.py:evaluate", BAR) as watched:
        network, *_ = build("dchn_tiny_cifar10")
        loader = [batch[:2] for batch in batches()]
        evaluate(accelerator, network, loader, BatchTransform((0.5,) * 3, (0.2,) * 3))
        assert watched.waits == {"training/engine.py:evaluate": 1, BAR: 2}
