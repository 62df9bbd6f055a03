"""What the package adds to the paper's procedure, by the reference's slow steps: potentials, held routes, responses."""

from functools import partial

import torch

from timm_ebl.rules import reference
from timm_ebl.rules.reference import Layer

GROUPS = {
    "asynchronous": ((0, 2, 4), (1, 3)),
    "synchronous": ((0, 1, 2, 3, 4),),
    "forward": ((0,), (1,), (2,), (3,), (4,)),
    "backward": ((4,), (3,), (2,), (1,), (0,)),
}
"""The layers of a network of five that each order updates together."""


def layers_of(model):
    """The layers of a network for the reference, in float64."""
    return [Layer(m.weight.detach().double(), m.bias.detach().double()) for m in (*model.layers, model.head)]


def learning(layers):
    """The same layers with parameters that ask for a gradient, and these parameters."""
    found = [Layer(layer.weight.clone().requires_grad_(), layer.bias.clone().requires_grad_()) for layer in layers]
    return found, [parameter for layer in found for parameter in (layer.weight, layer.bias)]


def output(beta=0.0, y=None, clamp=None, damped=False):
    """The update of an output layer under a perturbation, as `reference.relax` takes it."""
    if clamp is not None:
        return lambda drive, old: clamp
    if damped:
        return lambda drive, old: drive - beta * (old - y)
    return lambda drive, old: drive if y is None else (drive + beta * y) / (1 + beta)


def drive(layer, lower, held):
    """The drive into a layer, pooled as it is at a held lower layer: its linearisation there."""
    value, change = torch.func.jvp(partial(reference.drive, layer), (held,), (lower - held,))
    return value + change


def sweep(layers, x, state, groups, omega=1.0, **perturbation):
    """One sweep under a perturbation."""
    return reference.relax(layers, x, state, 1, groups, output(**perturbation), omega)


def energy(layers, x, state, held=None):
    """``E(theta, x, s)``, ``(B,)``, with the pooling routes of a held state, by default the state's own."""
    held = state if held is None else held
    each = zip(layers, (x, *state[:-1]), state, (x, *held[:-1]), strict=True)
    return sum((s * (s / 2 - drive(layer, lower, at))).flatten(1).sum(1) for layer, lower, s, at in each)


def field(layers, x, state, k, held=None):
    """``drive + feedback`` on a layer with the pooling routes of a held state, by default the state's own."""
    held = state if held is None else held
    lower, at = (x, x) if k == 0 else (state[k - 1], held[k - 1])
    bottom_up = drive(layers[k], lower, at)
    return bottom_up + (reference.feedback(layers[k + 1], held[k], state[k + 1]) if k < len(state) - 1 else 0)


def minimum(layers, x, state, k, held=None, **perturbation):
    """The block minimum of the perturbed energy over one layer."""
    value = field(layers, x, state, k, held)
    return output(**perturbation)(value, state[k]) if k == len(state) - 1 else value.clamp(0, 1)


def free_sweep(layers, x, state, groups, omega=1.0):
    """A free sweep and its potentials: the states, but as far beyond their bounds as the fields are.

    The third is the state whose pooling routes the last updates used.
    """
    state, potentials = list(state), [None] * len(state)
    for group in groups:
        routing = tuple(state)
        for k, value in {k: field(layers, x, routing, k) for k in group}.items():
            relaxed = state[k] + omega * (value - state[k]) if k < len(state) - 1 else value
            state[k] = relaxed.clamp(0, 1) if k < len(state) - 1 else value
            potentials[k] = state[k] + (relaxed - state[k]) / omega
    return tuple(state), tuple(potentials), routing


def respond(layers, x, free, potentials, held, groups, omegas, perturbations):
    """States near a free one that counts as at rest, one for each perturbation, the routes of another state held.

    Of two, the mean change of their fields is taken anew in every fourth sweep only. The first of several sweeps leaves
    out the first layer.
    """
    states = [[*free[:-1], each.get("clamp", free[-1])] for each in perturbations]
    means = [0.0] * len(free)
    for number, omega in enumerate(omegas, 1):
        for group in groups:
            changes = {}
            for k in group:
                if k == 0 and number == 1 < len(omegas):
                    continue
                at_rest = field(layers, x, free, k, held)
                changes[k] = [field(layers, x, state, k, held) - at_rest for state in states]
                if len(states) == 2:
                    mean = sum(changes[k]) / 2
                    means[k] = mean if number % 4 == 0 else means[k]
                    changes[k] = [change - mean + means[k] for change in changes[k]]
            for k, each in changes.items():
                for state, change, perturbation in zip(states, each, perturbations, strict=True):
                    value = potentials[k] + change
                    hidden = k < len(free) - 1
                    relaxed = (state[k] + omega * (value - state[k])).clamp(0, 1) if hidden else value
                    state[k] = relaxed if hidden else output(**perturbation)(value, state[k])
    return [tuple(state) for state in states]


def feedforward_state(layers, x):
    """Each layer from the one below, without feedback."""
    state = []
    for layer in layers:
        value = reference.drive(layer, state[-1] if state else x)
        state.append(value if layer is layers[-1] else value.clamp(0, 1))
    return tuple(state)
