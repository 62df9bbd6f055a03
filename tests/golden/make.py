"""The golden numbers: what the paper's procedure makes of fixed weights and images, in float64.

    python tests/golden/make.py

writes ``paper.safetensors`` beside this file, by `timm_ebl.rules.reference` alone. The tests compare both it and the
package with these numbers, and find them again in numpy.

Weights, biases and images come from the closed form ``u_n = (3 x 16807^n mod m) / m`` with ``m = 2^31 - 1``, n = 1, 2,
and so on: a weight or bias is ``(2 u_n - 1) gain / sqrt(fan_in)``, a pixel ``2 u_n - 1``; first the layers from the
lowest, weight and bias, then the images. Pooling takes the first of equal values, which it meets in the sweep from zero
alone: later no window has two maxima. The states lie inside and at both ends of [0, 1], and after 60 sweeps they still
move.

The settings are those of Table 1: 60 free sweeps from zero, 15 of what follows, beta 0.25 (1 for cl).

| entry | what it is |
|---|---|
| input.K.weight, .bias | the network's layers, from K = 0 |
| input.x, input.y | the images, the desired outputs |
| state.T.K | layer K of the free state after T = 1, 5 and 60 sweeps |
| gradient.RULE.K.weight, .bias | what each rule descends, mean over the images: 1 / eta times minus its update |
| rates | learning rates of 100 epochs, (100, 5): a row an epoch, a column a layer |
| trained.K.weight, .bias | the parameters after five steps of c-ep at the rates of the first epoch, weight decay 3e-4 |
| tiny.K | of each image, the sum and the sum of squares of layer K of ``dchn_tiny_mnist`` after 60 sweeps |
| tiny.gradient | the norm of the gradient of c-ep in each of its parameters |
"""

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from timm_ebl.rules import reference
from timm_ebl.rules.reference import Layer

FILE = Path(__file__).with_name("paper.safetensors")
RATES = (0.0625, 0.0375, 0.025, 0.02, 0.0125)
WEIGHT_DECAY = 3e-4
MODULUS = 2**31 - 1


def learning_rate(first: float, epoch: int, epochs: int = 100, last: float = 2e-6) -> float:
    """The rate of an epoch, counted from 0: half a cosine from the first rate to the last, which is never used."""
    return last + (first - last) * (1 + math.cos(math.pi * epoch / epochs)) / 2


def sgd_step(
    parameter: Tensor, gradient: Tensor, velocity: Tensor, rate: float, weight_decay: float, momentum: float = 0.9
) -> tuple[Tensor, Tensor]:
    """The parameter and its velocity after ``v <- m v + g + d theta``, ``theta <- theta - rate v`` (from ``v = 0``)."""
    velocity = momentum * velocity + gradient + weight_decay * parameter
    return parameter - rate * velocity, velocity


def closed_form() -> Iterator[float]:
    """``u_1, u_2, ..``."""
    value = 3
    while True:
        value = value * 16807 % MODULUS
        yield value / MODULUS


def draw(numbers: Iterator[float], *shape: int) -> Tensor:
    """The next numbers, spread over [-1, 1]."""
    count = torch.Size(shape).numel()
    return torch.tensor(list(islice(numbers, count)), dtype=torch.float64).view(shape) * 2 - 1


def network(
    widths: tuple[int, ...], channels: int, side: int, classes: int, images: int, gain: float, bias_gain: float
) -> tuple[list[Layer], Tensor, Tensor]:
    """``(layers, x, y)`` of 3x3 convolutions and a read-out; image number n is of class n."""
    numbers, shapes, lower = closed_form(), [], channels
    for width in widths:
        shapes.append((width, lower, 3, 3))
        lower = width
    shapes.append((classes, lower * (side >> len(widths)) ** 2))
    layers = []
    for shape in shapes:
        bound = torch.Size(shape[1:]).numel() ** -0.5
        layers.append(Layer(draw(numbers, *shape) * gain * bound, draw(numbers, shape[0]) * bias_gain * bound))
    y = torch.eye(classes, dtype=torch.float64)[:images]
    return layers, draw(numbers, images, channels, side, side), y


def small() -> tuple[list[Layer], Tensor, Tensor]:
    """The network of most numbers, and its batch."""
    return network((4, 5, 6, 7), channels=2, side=16, classes=3, images=3, gain=1.5, bias_gain=0.5)


def tiny() -> tuple[list[Layer], Tensor, Tensor]:
    """A network of the shapes of ``dchn_tiny_mnist``, and its batch."""
    return network((16, 32, 64, 64), channels=1, side=32, classes=10, images=2, gain=1.2, bias_gain=0.5)


def flat(layers: list[Layer]) -> list[Tensor]:
    """Weights and biases in turn."""
    return [parameter for layer in layers for parameter in (layer.weight, layer.bias)]


def named(parameters: list[Tensor], name: str) -> dict[str, Tensor]:
    """Tensors of weights and biases in turn, by name."""
    kinds = ("weight", "bias")
    return {f"{name}.{index // 2}.{kinds[index % 2]}": tensor for index, tensor in enumerate(parameters)}


def free_state(layers: list[Layer], x: Tensor, sweeps: int = 60) -> tuple[Tensor, ...]:
    """The free state from zero."""
    return reference.relax(layers, x, reference.zero_state(layers, x), sweeps)


def trained(layers: list[Layer], x: Tensor, y: Tensor, steps: int = 5) -> list[Tensor]:
    """Weights and biases after some steps of c-ep on one batch, each free phase from zero."""
    parameters = flat(layers)
    velocities = [torch.zeros_like(parameter) for parameter in parameters]
    for _ in range(steps):
        layers = [Layer(*both) for both in zip(parameters[::2], parameters[1::2], strict=True)]
        found = reference.gradients("c-ep", layers, x, y, free_state(layers, x))
        for index, gradient in enumerate(found):
            parameters[index], velocities[index] = sgd_step(
                parameters[index], gradient, velocities[index], RATES[index // 2], WEIGHT_DECAY
            )
    return parameters


def numbers() -> dict[str, Tensor]:
    """All entries of the file."""
    layers, x, y = small()
    found = {"input.x": x, "input.y": y} | named(flat(layers), "input")
    for sweeps in (1, 5, 60):
        found |= {f"state.{sweeps}.{k}": layer for k, layer in enumerate(free_state(layers, x, sweeps))}
    free = free_state(layers, x)
    for rule in reference.RULES:
        found |= named(reference.gradients(rule, layers, x, y, free), f"gradient.{rule}")
    rates = [[learning_rate(rate, epoch) for rate in RATES] for epoch in range(100)]
    found |= {"rates": torch.tensor(rates, dtype=torch.float64)} | named(trained(layers, x, y), "trained")
    layers, x, y = tiny()
    free = free_state(layers, x)
    for k, layer in enumerate(free):
        found[f"tiny.{k}"] = torch.stack([layer.flatten(1).sum(1), (layer**2).flatten(1).sum(1)], dim=1)
    found["tiny.gradient"] = torch.stack([g.norm() for g in reference.gradients("c-ep", layers, x, y, free)])
    return found


if __name__ == "__main__":
    save_file(numbers(), FILE, {"made by": "tests/golden/make.py from timm_ebl/rules/reference.py", "about": __doc__})
