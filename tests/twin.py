"""The slow, obvious twin of the package's fast path: the paper's equations, one statement each.

Nothing is kept from one update to the next, feedback is taken as the gradient that it is by definition, and every
layer is written out. Only the parameters are read from the network under test.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def parameters(model):
    """``[(weight, bias), ..]`` of the convolutions and the read-out, in float64."""
    return [(m.weight.detach().double(), m.bias.detach().double()) for m in (*model.layers, model.head)]


def drive(weight, bias, lower, held=None):
    """``P(w * s) + b`` for a convolution, ``W s + b`` for the read-out; on request pooled as a held lower layer is."""
    if weight.ndim == 2:
        return lower.flatten(1) @ weight.T + bias
    maps = F.conv2d(lower, weight, padding=1)
    _, route = F.max_pool2d(maps if held is None else F.conv2d(held, weight, padding=1), 2, return_indices=True)
    return maps.flatten(2).gather(2, route.flatten(2)).view(route.shape) + bias.view(-1, 1, 1)


def below(x, state):
    """The layer below each layer of the state."""
    return [x, *state[:-1]]


def energy(params, x, state, held=None):
    """``E(theta, x, s)``, ``(B,)``, on request with the pooling routes of a held state."""
    total = torch.zeros(x.shape[0], dtype=x.dtype)
    kept = [None] * len(state) if held is None else below(x, held)
    for (weight, bias), lower, upper, at in zip(params, below(x, state), state, kept, strict=True):
        total = total + (upper**2).flatten(1).sum(1) / 2
        total = total - (upper * drive(weight, bias, lower, at)).flatten(1).sum(1)
    return total


def minimum(params, x, state, layer, beta=0.0, y=None, clamp=None, held=None, differentiable=False):
    """The block minimum of the perturbed energy over one layer, on request with a graph to the other layers."""
    kept = [None] * len(state) if held is None else below(x, held)
    bottom_up = drive(*params[layer], below(x, state)[layer], kept[layer])
    if layer == len(state) - 1:
        if clamp is not None:
            return clamp
        return bottom_up if y is None else (bottom_up + beta * y) / (1 + beta)
    here = state[layer].clone().requires_grad_()
    interaction = (state[layer + 1] * drive(*params[layer + 1], here, kept[layer + 1])).sum()
    (top_down,) = torch.autograd.grad(interaction, here, create_graph=differentiable)
    return (bottom_up + top_down).clamp(0, 1)


def sweep(params, x, state, groups, omega=1.0, **perturbation):
    """One sweep over the groups of layers; hidden layers are over-relaxed, the output layer never."""
    state = list(state)
    for group in groups:
        updates = {layer: minimum(params, x, state, layer, **perturbation) for layer in group}
        for layer, value in updates.items():
            if layer < len(state) - 1:
                value = (state[layer] + omega * (value - state[layer])).clamp(0, 1)
            state[layer] = value
    return tuple(state)


def zero_state(params, x):
    """Every layer at zero."""
    state, lower = [], x
    for weight, bias in params:
        lower = torch.zeros_like(drive(weight, bias, lower))
        state.append(lower)
    return tuple(state)


def feedforward_state(params, x):
    """Each layer from the one below, without feedback."""
    state, lower = [], x
    for weight, bias in params:
        lower = drive(weight, bias, lower)
        if weight.ndim > 2:
            lower = lower.clamp(0, 1)
        state.append(lower)
    return tuple(state)
