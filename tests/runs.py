"""Runs of the training script inside the test's process, and the small data that they train on."""

import importlib.util
import json
from pathlib import Path

import timm
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file

from timm_ebl import Minimizer
from timm_ebl.training.rule import free_phase

SCRIPT = Path(__file__).parents[1] / "train_ebl.py"
SMALL = ["--model-kwargs", "widths=[4, 4, 4, 4]", "gains=0.8", "--threads", "1"]

_spec = importlib.util.spec_from_file_location("train_ebl", SCRIPT)
train_ebl = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(train_ebl)


def network_for(config, name="dchn_tiny_mnist"):
    """What the rule of a configuration is built for, where none is trained."""
    network = timm.create_model(name, device="meta")
    network.minimizer = Minimizer(**free_phase(config))
    return network


def write_images(root, train=20, test=5):
    """An image folder of three easy classes: bright left, bright right, dark."""
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", train), ("test", test)):
        for label, name in enumerate(("left", "right", "dark")):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                image = torch.rand(32, 32, generator=generator) * 60
                if name != "dark":
                    image[:, 16 * label : 16 * label + 16] += 190
                Image.fromarray(image.byte().numpy()).save(root / split / name / f"{index}.png")
    return root


def arguments(folder, out, *more):
    """A command line of three epochs of six batches."""
    return [*map(str, ["--dataset", folder, "--epochs", 3, "--batch-size", 9, "--output-dir", out, *more]), *SMALL]


def train(*command):
    """Run the script's `train`; the progress bar is off."""
    config = train_ebl.parse_config(list(map(str, command)))
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=config.grad_accum_steps)
    launched = {"mixed_precision": "no", "grad_accum_steps": accelerator.gradient_accumulation_steps}
    train_ebl.train(train_ebl.replace(config, **launched), accelerator)


def results(out):
    """What a run found, without the times: weights, metrics, summary."""
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((out / "summary.json").read_text())
    for record in (*metrics, summary):
        record.pop("seconds")
    return load_file(out / "model.safetensors"), metrics, summary


def last_weights(out):
    """The weights after the last step, from the last checkpoint."""
    *_, last = sorted((out / "checkpoints").iterdir())
    return torch.load(last / "run.pt", weights_only=True)["model"]


def assert_same_run(first, second):
    """Two runs have the same weights, metrics and summaries, to the last bit."""
    for weights, others in ((results(first)[0], results(second)[0]), (last_weights(first), last_weights(second))):
        assert weights.keys() == others.keys()
        assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert results(first)[1:] == results(second)[1:]
