"""How near a gradient comes to another one: a rule's to the true one, 16 bits to 32.

    python -m timm_ebl.tools.gradients --models dchn_tiny_cifar10

prints, for every rule and strength of its perturbation, the cosine between the gradient in 16 bits and in 32, for each
interaction from the input upwards.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arguments import Parser, positive_count
from ..data.dataset import load_dataset
from ..data.transforms import BatchTransform
from ..errors import ConfigError, one_sentence
from ..models.factory import open_network
from ..relaxation.minimizer import Minimizer
from ..rules.nudging import random_signs
from ..rules.rule import create_rule, list_rules, rule_options
from ..training.console import begin
from ..training.threads import add_threads_option
from ..training.user_code import add_import_option, import_of

if TYPE_CHECKING:
    from ..models.layered import LayeredNetwork

__all__ = [
    "PRECISIONS",
    "add_network_options",
    "gradients",
    "layer_cosines",
    "load_images",
    "load_network",
    "main",
    "require_sweeps",
    "rule_gradients",
    "true_gradient",
]

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
BETAS = (0.1, 0.25)


def gradients(model: LayeredNetwork, step: Callable[[], None]) -> list[Tensor]:
    """The gradient of each interaction's weight after a step."""
    model.zero_grad(set_to_none=True)
    step()
    found = [interaction.weight.grad.flatten().double() for interaction in model.interactions]
    model.zero_grad(set_to_none=True)
    return found


def true_gradient(
    model: LayeredNetwork, x: Tensor, y: Tensor, free: Minimizer | None = None, sweeps: int = 100
) -> list[Tensor]:
    """Gradient of the cost at an equilibrium: backpropagation through many sweeps, in parts of the batch.

    Through a free phase that is a forward pass (`EnergyModel.rests`) it is plain backpropagation.

    The energy has more than one minimum, and once a network is trained their gradients have little in common. Order,
    over-relaxation and start of the free phase decide which one it leads to; how early it breaks off does not. The
    gradient that a procedure stands for is that at its own.

    Args:
        model: The model.
        x: Input.
        y: Labels.
        free: The free phase whose equilibrium is meant, whatever its sweeps; by default the model's.
        sweeps: Sweeps to go back through.
    """
    converged = replace(free or model.minimizer, sweeps=1000, tolerance=1e-5, compiled=False)
    unrolled = model.unrolled if model.rests else Minimizer(sweeps=sweeps, omega=1.0)
    rule = create_rule("tbp", free=converged, unrolled=unrolled)

    def step() -> None:
        for images, labels in zip(x.split(16), y.split(16), strict=True):
            (rule(model, images, labels).loss * (len(images) / len(x))).backward()

    return gradients(model, step)


def layer_cosines(found: Sequence[Tensor], expected: Sequence[Tensor]) -> list[float]:
    """Cosine of the angle between two gradients, for each interaction."""
    return [float(F.cosine_similarity(a, b, dim=0)) for a, b in zip(found, expected, strict=True)]


def rule_gradients(
    model: LayeredNetwork, x: Tensor, y: Tensor, name: str, precision: torch.dtype | None = None, **options: object
) -> list[Tensor]:
    """The gradient of a rule by name, under autocast where a precision is given."""
    rule = create_rule(name, **options)
    signs = {"signs": random_signs(len(x), torch.Generator().manual_seed(0)).to(x.device)} if rule.draws else {}

    def step() -> None:
        with torch.autocast(x.device.type, precision or torch.bfloat16, enabled=precision is not None):
            loss = rule(model, x, y, **signs).loss
        loss.backward()

    return gradients(model, step)


def add_network_options(parser: Parser, models: Sequence[str], images: int) -> None:
    """The options that `load_network` reads, modules to import, and the number of threads."""
    parser.add_argument(
        "--models",
        nargs="+",
        default=models,
        help="timm names, with a tag those of checkpoints, or local-dir:FOLDER of a trained run (default: some)",
    )
    parser.add_argument("--batch-size", type=positive_count, default=images, help=f"images (default: {images})")
    parser.add_argument("--dataset", help="data set of the images, as for train_ebl.py (default: normal noise)")
    parser.add_argument("--data-root", help="folder with copies of Hub data sets")
    add_import_option(parser)
    add_threads_option(parser)


def load_network(
    name: str, options: argparse.Namespace, device: torch.device, batches: int = 1
) -> tuple[LayeredNetwork, Tensor, Tensor]:
    """A model by name, and some batches of training images of the data set with their labels, or of noise.

    What is read off their gradients chooses defaults, which is nothing for test images.

    Raises:
        ConfigError: The model or a module that its run imported cannot be loaded, or the images do not fit it.
    """
    if name.startswith("local-dir:"):
        import_of(Path(name.removeprefix("local-dir:")))
    torch.manual_seed(0)
    model = open_network(name).to(device).eval()
    try:
        x = torch.randn(options.batch_size * batches, *model.pretrained_cfg["input_size"])
        y = torch.randint(model.num_classes, (len(x),))
        if options.dataset:
            x, y = load_images(model, options, "train", len(x))
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"{name}: {error}") from error
    return model, x.to(device), y.to(device)


def require_sweeps(model: LayeredNetwork, what: str) -> None:
    """Refuse a network whose free phase is a forward pass, for what is measured of sweeps.

    Raises:
        ConfigError: It is one.
    """
    if model.rests:
        raise ConfigError(
            f"{what} is about the sweeps of a free phase, and that of a predictive coding network is one forward pass: "
            "leave this network out."
        )


def load_images(model: LayeredNetwork, options: argparse.Namespace, split: str, most: int) -> tuple[Tensor, Tensor]:
    """The first images of a split of the data set of the options, normalised for a model, and their labels."""
    config = model.pretrained_cfg
    data = load_dataset(options.dataset, split, image_size=config["input_size"][-1], root=options.data_root)
    data = data.relabelled(config.get("label_names") or data.classes)
    images, labels = data.batch(range(min(most, len(data))))
    return BatchTransform(tuple(config["mean"]), tuple(config["std"])).eval(images), labels


@one_sentence()
def main(arguments: Sequence[str] | None = None) -> None:
    """Compare precisions from the command line."""
    parser = Parser(prog="python -m timm_ebl.tools.gradients", description=__doc__)
    add_network_options(parser, ["dchn_tiny_cifar10"], 32)
    parser.add_argument("--rules", nargs="+", choices=list_rules(), default=list_rules(), help="rules (default: all)")
    options = begin(parser, arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    networks = [load_network(name, options, device) for name in options.models]
    for model_name, (model, x, y) in zip(options.models, networks, strict=True):
        print(f"\n{model_name}, {len(x)} images, {device.type}: cosine with the gradient in 32 bits, by interaction")
        for name in options.rules:
            for beta in BETAS if "beta" in rule_options(name) else (None,):
                settings = {} if beta is None else {"beta": beta}
                expected = rule_gradients(model, x, y, name, **settings)
                row = f"{name:<6} {'' if beta is None else f'beta {beta:g}':<10}"
                for title, precision in PRECISIONS.items():
                    cosines = layer_cosines(rule_gradients(model, x, y, name, precision, **settings), expected)
                    row += f"  {title} " + " ".join(f"{cosine:.3f}" for cosine in cosines)
                print(row, flush=True)


if __name__ == "__main__":
    main()
