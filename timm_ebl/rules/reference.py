"""The paper's procedure, slow and obvious: what the fast one is held against.

It stands by itself: it shares no code with the rest of the package, and PyTorch's functional operations are all that it
uses. Every sweep computes every drive and every feedback anew, and nothing is kept for the next one.

A network is a list of layers ``[(weight, bias), ..]``, convolutions and then the dense read-out; ``x`` is its input
``(B, C, H, W)``, ``y`` the desired output ``(B, M)``, a state ``(s_1, .., o)`` has the batch first in each layer, and
groups are the indices of the layers that a sweep updates together, one group after the other.

The equations are those of *Energy-Based Learning Algorithms: A Comparative Study*, Sections 2 and 3. What its text
leaves open is as in its released code, and said where it is so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# fmt: off
__all__ = [
    "CONTRASTS", "RULES", "asynchronous", "clamped_state", "cost", "drive", "energy", "feedback", "gradients",
    "learning_rate", "nudged_state", "relax", "sgd_step", "sweep", "synchronous", "zero_state",
]
# fmt: on

Layers = Sequence[tuple[Tensor, Tensor]]
State = tuple[Tensor, ...]
Groups = tuple[tuple[int, ...], ...]
Order = Callable[[int], Groups]
Output = Callable[[Tensor, Tensor], Tensor]

# fmt: off
CONTRASTS = {
    "cl": (0, 1),
    "p-ep": (0, 1), "n-ep": (-1, 0), "c-ep": (-1, 1),
    "p-cpl": (0, 1), "n-cpl": (-1, 0), "c-cpl": (-1, 1),
}
# fmt: on
"""The two states that each contrastive rule compares, by the sign of their nudging."""

RULES = (*CONTRASTS, "tbp", "rbp")
"""The rules of Table 1."""


def _pool(weight: Tensor, lower: Tensor) -> tuple[Tensor, Tensor]:
    """``P(w * s)``: the convolution, its maximum in every 2x2 window, and where it is (of equal ones, the first)."""
    return F.max_pool2d(F.conv2d(lower, weight, padding=weight.shape[-1] // 2), 2, return_indices=True)


def drive(layer: tuple[Tensor, Tensor], lower: Tensor) -> Tensor:
    """Bottom-up input to a layer: ``P(w * s) + b``, or ``W s + b`` for the read-out."""
    weight, bias = layer
    if weight.ndim == 2:
        return lower.flatten(1) @ weight.T + bias
    return _pool(weight, lower)[0] + bias[:, None, None]


def feedback(layer: tuple[Tensor, Tensor], lower: Tensor, upper: Tensor) -> Tensor:
    """Top-down input, the gradient of ``<upper, drive(lower)>`` in ``lower``: ``w^T * U(upper)``, or ``W^T upper``.

    ``U`` puts every value where pooling found its maximum.
    """
    weight, _ = layer
    if weight.ndim == 2:
        return (upper @ weight).view_as(lower)
    unpooled = F.max_unpool2d(upper, _pool(weight, lower)[1], 2, output_size=lower.shape[2:])
    return F.conv_transpose2d(unpooled, weight, padding=weight.shape[-1] // 2)


def energy(layers: Layers, x: Tensor, state: State) -> Tensor:
    """``E(theta, x, s) = sum_k 1/2 |s_k|^2 - <s_k, drive_k(s_{k-1})>`` with ``s_0 = x``, ``(B,)`` (Section 3)."""
    pairs = zip(layers, (x, *state[:-1]), state, strict=True)
    return sum((s * (s / 2 - drive(layer, lower))).flatten(1).sum(1) for layer, lower, s in pairs)


def cost(output: Tensor, y: Tensor) -> Tensor:
    """``C(o, y) = 1/2 |o - y|^2``, ``(B,)``."""
    return ((output - y) ** 2).sum(1) / 2


def asynchronous(count: int) -> Groups:
    """Of the first so many layers the 1st, 3rd and so on together, then the others (Section 3)."""
    return tuple(range(0, count, 2)), tuple(range(1, count, 2))


def synchronous(count: int) -> Groups:
    """The first so many layers together."""
    return (tuple(range(count)),)


def zero_state(layers: Layers, x: Tensor) -> State:
    """Every layer at zero, where a free phase starts."""
    state, sides = [], x.shape[2:]
    for weight, _ in layers:
        sides = [side // 2 for side in sides] if weight.ndim > 2 else []
        state.append(x.new_zeros(len(x), len(weight), *sides))
    return tuple(state)


def sweep(layers: Layers, x: Tensor, state: State, groups: Groups, output: Output | None = None) -> State:
    """Every layer of every group once: ``s_k <- clip(drive_k + feedback_{k+1}, 0, 1)``, the layers of a group together.

    A layer in none of the groups stays. ``output`` makes the new output of the drive into it and the old one; without
    it the drive is the new output (Equation 1).
    """

    def update(layer: int) -> Tensor:
        bottom_up = drive(layers[layer], state[layer - 1] if layer else x)
        if layer == len(layers) - 1:
            return output(bottom_up, state[layer]) if output else bottom_up
        return (bottom_up + feedback(layers[layer + 1], state[layer], state[layer + 1])).clamp(0, 1)

    for group in groups:
        new = {layer: update(layer) for layer in group}
        state = tuple(new.get(layer, old) for layer, old in enumerate(state))
    return state


def relax(
    layers: Layers, x: Tensor, state: State, sweeps: int, groups: Groups | None = None, output: Output | None = None
) -> State:
    """The state after so many sweeps, asynchronous ones unless groups are given: the minimum of Equation 1."""
    for _ in range(sweeps):
        state = sweep(layers, x, state, groups or asynchronous(len(layers)), output)
    return state


def nudged_state(
    layers: Layers, x: Tensor, y: Tensor, free: State, beta: float, sweeps: int, order: Order = asynchronous
) -> State:
    """The minimum of ``E + beta C`` from the free state, for ``beta`` of either sign or 0 (Equation 4).

    The output's update is a damped step, as in the released code: ``o <- W s + b - beta (o - y)``.
    """
    groups = order(len(layers))
    return relax(layers, x, free, sweeps, groups, output=lambda drive, old: drive - beta * (old - y))


def clamped_state(
    layers: Layers, x: Tensor, y: Tensor, free: State, beta: float, sweeps: int, order: Order = asynchronous
) -> State:
    """The minimum over the hidden layers with ``o = (1 - beta) o_* + beta y`` (Equation 7; 2 where ``beta = 1``)."""
    start = (*free[:-1], free[-1] - beta * (free[-1] - y))
    return relax(layers, x, start, sweeps, order(len(layers) - 1))


def gradients(
    rule: str, layers: Layers, x: Tensor, y: Tensor, free: State,
    beta: float = 0.25, sweeps: int = 15, order: Order = asynchronous,
) -> list[Tensor]:  # fmt: skip
    """What a rule descends, mean over the batch, for every weight and bias in turn: ``-1 / eta`` times its update.

    A contrastive rule has ``(dE(s_2)/dtheta - dE(s_1)/dtheta) / (beta_2 - beta_1)`` (Equations 3, 5, 6, 8 and 9). Both
    states are relaxed from the free one for as many sweeps, the unperturbed one of a one-sided rule too, as in the
    released code. ``tbp`` is backpropagation of the mean cost through the sweeps that follow the free state.

    ``sweeps`` are those of each perturbed phase, those that ``tbp`` unrolls, or the terms that ``rbp`` sums up.
    ``beta`` is positive, 1 for ``cl`` whatever is given, and of no use to the baselines.
    """
    free = tuple(layer.detach() for layer in free)
    layers = [(weight.detach().requires_grad_(), bias.detach().requires_grad_()) for weight, bias in layers]
    parameters = [parameter for layer in layers for parameter in layer]
    if rule == "rbp":
        return _recurrent(layers, parameters, x, y, free, sweeps)
    if rule == "tbp":
        scalar = cost(relax(layers, x, free, sweeps, order(len(layers)))[-1], y)
    else:
        betas = [sign * (1.0 if rule == "cl" else beta) for sign in CONTRASTS[rule]]
        perturbed = nudged_state if rule.endswith("ep") else clamped_state
        with torch.no_grad():
            first, second = (perturbed(layers, x, y, free, signed, sweeps, order) for signed in betas)
        scalar = (energy(layers, x, second) - energy(layers, x, first)) / (betas[1] - betas[0])
    return list(torch.autograd.grad(scalar.mean(), parameters))


def _recurrent(layers: Layers, parameters: list[Tensor], x: Tensor, y: Tensor, free: State, terms: int) -> list[Tensor]:
    """``sum_t (dF/dtheta)^T v_t`` with ``v_1 = dC/ds``, ``v_{t+1} = (dF/ds)^T v_t`` and ``F`` a synchronous sweep."""
    leaves = [layer.requires_grad_() for layer in free]
    swept = sweep(layers, x, tuple(leaves), synchronous(len(layers)))
    adjoint = torch.autograd.grad(cost(leaves[-1], y).mean(), leaves, materialize_grads=True)
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for _ in range(terms):
        found = torch.autograd.grad(swept, [*parameters, *leaves], adjoint, retain_graph=True, materialize_grads=True)
        total = [a + b for a, b in zip(total, found, strict=False)]
        adjoint = found[len(parameters) :]
    return total


def learning_rate(first: float, epoch: int, epochs: int = 100, last: float = 2e-6) -> float:
    """The rate of an epoch, counted from 0: half a cosine from the first rate to the last, which is never used."""
    return last + (first - last) * (1 + math.cos(math.pi * epoch / epochs)) / 2


def sgd_step(
    parameter: Tensor, gradient: Tensor, velocity: Tensor, rate: float, weight_decay: float, momentum: float = 0.9
) -> tuple[Tensor, Tensor]:
    """The parameter and its velocity after ``v <- m v + g + d theta``, ``theta <- theta - rate v`` (from ``v = 0``)."""
    velocity = momentum * velocity + gradient + weight_decay * parameter
    return parameter - rate * velocity, velocity
