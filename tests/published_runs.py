"""A finished run of a very small network, made without training, for what happens to checkpoints afterwards."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import timm
import torch
from PIL import Image

from timm_ebl.data.dataset import load_dataset
from timm_ebl.hub.package import package
from timm_ebl.tools.plots import plot_curves
from timm_ebl.training.build import build_transform
from timm_ebl.training.config import TrainConfig
from timm_ebl.training.run_folder import RunFolder, versions
from timm_ebl.training.trained import TrainedModel

WIDTHS = [4, 4, 4, 4]


def write_images(root: Path) -> Path:
    """Twelve training and twelve test images of noise in three classes, as image folders."""
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "test"):
        for label in "abc":
            (root / split / label).mkdir(parents=True)
            for row in range(4):
                pixels = torch.randint(256, (32, 32, 3), generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(root / split / label / f"{row}.png")
    return root


def set_sha256(folder: Path) -> None:
    """Note the checksum of the weights that are in a folder now."""
    config = json.loads((folder / "config.json").read_text())
    config["sha256"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "config.json").write_text(json.dumps(config))


def write_run(path: Path, images: Path, seed: int = 0, **changes: object) -> Path:
    """The folder of a run; ``changes`` replace entries of its summary."""
    config = TrainConfig(dataset=str(images), model="dchn_tiny_cifar10", seed=seed, output_dir=str(path), epochs=2)
    train, test = load_dataset(str(images), "train"), load_dataset(str(images), "test")
    torch.manual_seed(seed)
    model = timm.create_model("dchn_tiny_cifar10", widths=WIDTHS, gains=1.2, num_classes=3, in_chans=3, sweeps=4)
    model.eval()
    transform = build_transform(TrainConfig(), train)
    with torch.no_grad():
        error = float((model(transform.eval(test.images)).argmax(1) != test.labels).double().mean() * 100)
    epoch = {"epoch": 1, "train_error": 70.0, "held_out_error": 50.0, "energy": -3.0, "residual": 1e-2, "seconds": 9.0}
    summary = {
        "algo": config.algo,
        "model": "dchn_tiny_cifar10",
        "dataset": str(images),
        "epochs": 2,
        "best_epoch": 1,
        "seed": seed,
        "held_out_error": 50.0,
        "test_error": error,
        "test_images": len(test),
        "seconds": 3661.0,
        "versions": versions(),
    }
    folder = RunFolder.create(path, "")
    folder.write_settings(config.to_dict())
    folder.write_model(model, transform, train.classes)
    folder.write_metrics([epoch, epoch | {"epoch": 2}])
    folder.write_summary(summary | changes)
    plot_curves(path / "curves.png", [epoch], summary)
    return path


def packaged(tmp_path: Path, run: Path, *others: Path, **options: object) -> tuple[str, Path, Path]:
    """A run as a checkpoint: its name, and the folders of its weights and of its records."""
    (tmp_path / "records").mkdir(exist_ok=True)
    name = package(
        TrainedModel.open(run),
        others=[TrainedModel.open(other) for other in others],
        weights=tmp_path / "weights",
        records=tmp_path / "records",
        **options,
    )
    return name, tmp_path / "weights" / name, tmp_path / "records" / name
