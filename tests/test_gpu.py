"""Runs on a CUDA device: every precision, compiled, stopped and taken up again, and the watch."""

import json
import os
import signal

import pytest
import timm
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from runs import arguments, results, train_ebl, write_images

from timm_ebl import create_rule, list_rules
from timm_ebl.errors import Interrupted
from timm_ebl.tools.gradients import layer_cosines, rule_gradients
from timm_ebl.training.checkpoint import Checkpoints

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(autouse=True)
def fresh_state():
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def train(command, **options):
    config = train_ebl.parse_config(list(map(str, command)))
    accelerator = Accelerator(**options)
    assert accelerator.device.type == "cuda"
    train_ebl.train(train_ebl.replace(config, mixed_precision=accelerator.mixed_precision), accelerator)
    return accelerator


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_run_in_every_precision(folder, tmp_path, precision):
    out = tmp_path / "run"
    accelerator = train(arguments(folder, out, "--warm-start"), mixed_precision=precision)
    weights, metrics, summary = results(out)
    assert (accelerator.scaler is not None) == (precision == "fp16")
    assert all(weight.dtype == torch.float32 and bool(weight.isfinite().all()) for weight in weights.values())
    assert all(epoch["residual"] < 0.5 for epoch in metrics)
    assert summary["status"] == "completed"
    assert yaml_precision(out) == precision


def yaml_precision(out):
    return train_ebl.parse_config(["--config", str(out / "args.yaml")]).mixed_precision


@pytest.mark.slow
def test_a_compiled_run(folder, tmp_path):
    train(arguments(folder, tmp_path / "plain", "--epochs", 1))
    AcceleratorState._reset_state(True)
    train(arguments(folder, tmp_path / "compiled", "--epochs", 1), dynamo_backend="inductor")
    plain, compiled = (results(tmp_path / name)[1][0] for name in ("plain", "compiled"))
    assert compiled["energy"] == pytest.approx(plain["energy"], rel=1e-2)


@pytest.mark.parametrize("precision", ["no", "fp16"])
def test_a_stopped_run_goes_on(folder, tmp_path, monkeypatch, precision):
    """Device kernels are free to sum in any order: the runs agree to rounding, and the scaler's state is carried on."""
    train(arguments(folder, tmp_path / "whole", "--warm-start", "--opt", "momentum"), mixed_precision=precision)
    original, count = Checkpoints.between_batches, 0

    def between_batches(self):
        nonlocal count
        count += 1
        if count == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self)

    command = arguments(folder, tmp_path / "stopped", "--warm-start", "--opt", "momentum")
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "between_batches", between_batches)
        with pytest.raises(Interrupted):
            train(command, mixed_precision=precision)
    (*_, last) = sorted((tmp_path / "stopped" / "checkpoints").iterdir())
    saved = torch.load(last / "run.pt", weights_only=True)
    assert (saved["scaler"] is not None) == (precision == "fp16")
    assert json.loads((last / "manifest.json").read_text())["settings"]["mixed_precision"] == precision
    train([*command, "--resume"], mixed_precision=precision)
    whole, stopped = results(tmp_path / "whole"), results(tmp_path / "stopped")
    for name, weight in whole[0].items():
        torch.testing.assert_close(stopped[0][name], weight, rtol=1e-2, atol=1e-3)
    assert len(stopped[1]) == len(whole[1]) == 3


@pytest.mark.parametrize("algo", list_rules())
def test_every_rule_has_the_gradient_of_the_cpu(algo):
    torch.manual_seed(0)
    model = timm.create_model("dchn_tiny_cifar10").eval()
    x, y = torch.randn(16, 3, 32, 32), torch.arange(16) % 10
    found = []
    for device in ("cpu", "cuda"):
        model.to(device).zero_grad()
        create_rule(algo)(model, x.to(device), y.to(device)).loss.backward()
        found.append(torch.cat([p.grad.flatten().cpu() for p in model.parameters()]))
    assert float(torch.nn.functional.cosine_similarity(*found, dim=0)) > 0.99


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("algo", list_rules())
def test_every_rules_gradient_in_16_bits_is_near_that_in_32(algo, precision):
    torch.manual_seed(0)
    model = timm.create_model("dchn_tiny_cifar10").cuda().eval()
    x, y = torch.randn(16, 3, 32, 32, device="cuda"), torch.arange(16, device="cuda") % 10
    exact, rough = (rule_gradients(model, x, y, algo, kind) for kind in (None, precision))
    cosines = layer_cosines(rough, exact)
    assert min(cosines) > (0.95 if precision == torch.float16 else 0.8)
