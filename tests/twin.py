"""The reference procedure with what the package adds to the paper: over-relaxation, held pooling routes, responses.

Nothing is kept from one update to the next, and every layer is written out. Only the parameters are read from the
network under test.
"""

from __future__ import annotations

import torch.nn.functional as F

from timm_ebl.rules import reference

zero_state = reference.zero_state

GROUPS = {
    "asynchronous": ((0, 2, 4), (1, 3)),
    "synchronous": ((0, 1, 2, 3, 4),),
    "forward": ((0,), (1,), (2,), (3,), (4,)),
    "backward": ((4,), (3,), (2,), (1,), (0,)),
}
"""The layers of a network of five that each order updates together."""


def parameters(model):
    """``[(weight, bias), ..]`` of the convolutions and the read-out, in float64."""
    return [(m.weight.detach().double(), m.bias.detach().double()) for m in (*model.layers, model.head)]


def drive(layer, lower, held=None):
    """``P(w * s) + b`` for a convolution, ``W s + b`` for the read-out; on request pooled as a held lower layer is."""
    weight, bias = layer
    if held is None or weight.ndim == 2:
        return reference.drive(layer, lower)
    maps, at = (F.conv2d(each, weight, padding=1) for each in (lower, held))
    route = F.max_pool2d(at, 2, return_indices=True)[1]
    return maps.flatten(2).gather(2, route.flatten(2)).view(route.shape) + bias[:, None, None]


def energy(params, x, state, held=None):
    """``E(theta, x, s)``, ``(B,)``, on request with the pooling routes of a held state."""
    if held is None:
        return reference.energy(params, x, state)
    layers = zip(params, (x, *state[:-1]), state, (x, *held[:-1]), strict=True)
    return sum((s * (s / 2 - drive(layer, lower, at))).flatten(1).sum(1) for layer, lower, s, at in layers)


def field(params, x, state, layer, held=None):
    """``drive + feedback`` on a layer, on request with the pooling routes of a held state."""
    routing = state if held is None else held
    below, at = (x, x) if layer == 0 else (state[layer - 1], routing[layer - 1])
    bottom_up = drive(params[layer], below, None if held is None else at)
    if layer == len(state) - 1:
        return bottom_up
    return bottom_up + reference.feedback(params[layer + 1], routing[layer], state[layer + 1])


def update(state, layer, value, omega=1.0, beta=0.0, y=None, clamp=None, damped=False):
    """What a field makes of a layer: hidden layers are over-relaxed and bounded, the output layer is perturbed."""
    if layer == len(state) - 1:
        if clamp is not None:
            return clamp
        if damped:
            return value - beta * (state[layer] - y)
        return value if y is None else (value + beta * y) / (1 + beta)
    return (state[layer] + omega * (value - state[layer])).clamp(0, 1)


def minimum(params, x, state, layer, held=None, **perturbation):
    """The block minimum of the perturbed energy over one layer."""
    return update(state, layer, field(params, x, state, layer, held), **perturbation)


def sweep(params, x, state, groups, omega=1.0, held=None, **perturbation):
    """One sweep over the groups of layers."""
    state = list(state)
    for group in groups:
        fields = {layer: field(params, x, state, layer, held) for layer in group}
        for layer, value in fields.items():
            state[layer] = update(state, layer, value, omega, **perturbation)
    return tuple(state)


def free_sweep(params, x, state, groups, omega=1.0):
    """A free sweep and its potentials: the states, but as far beyond their bounds as the fields are.

    The third is the state whose pooling routes the last updates used.
    """
    state, potentials = list(state), [None] * len(state)
    for group in groups:
        routing = tuple(state)
        fields = {layer: field(params, x, state, layer) for layer in group}
        for layer, value in fields.items():
            relaxed = state[layer] + omega * (value - state[layer])
            state[layer] = update(state, layer, value, omega)
            potentials[layer] = state[layer]
            if layer < len(state) - 1:
                potentials[layer] = state[layer] + (relaxed - state[layer]) / omega
    return tuple(state), tuple(potentials), routing


def responses(params, x, free, potentials, held, groups, omegas, perturbations):
    """States near a free one that counts as at rest, one for each perturbation, the routes of another state held.

    Of two, the mean change of their fields is taken anew in every fourth sweep only. The first of several sweeps leaves
    out the first layer.
    """
    states = [[*free[:-1], each.get("clamp", free[-1])] for each in perturbations]
    means = [0.0] * len(free)
    for number, omega in enumerate(omegas, 1):
        for group in groups:
            changes = {}
            for layer in group:
                if layer == 0 and number == 1 < len(omegas):
                    continue
                at_rest = field(params, x, free, layer, held=held)
                changes[layer] = [field(params, x, state, layer, held=held) - at_rest for state in states]
                if len(states) == 2:
                    mean = sum(changes[layer]) / 2
                    if number % 4 == 0:
                        means[layer] = mean
                    changes[layer] = [change - mean + means[layer] for change in changes[layer]]
            for layer, each in changes.items():
                for state, change, perturbation in zip(states, each, perturbations, strict=True):
                    state[layer] = update(state, layer, potentials[layer] + change, omega, **perturbation)
    return [tuple(state) for state in states]


def feedforward_state(params, x):
    """Each layer from the one below, without feedback."""
    state, lower = [], x
    for layer in params:
        lower = drive(layer, lower)
        if layer is not params[-1]:
            lower = lower.clamp(0, 1)
        state.append(lower)
    return tuple(state)
