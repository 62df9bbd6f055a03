"""The paper's equations in numpy, tap by tap and window by window: it shares nothing with the package or with PyTorch.

A network is a list ``[(weight, bias), ..]`` of 3x3 convolutions, the dense read-out last.
"""

import numpy as np

TAPS = [(i, j) for i in range(3) for j in range(3)]
WINDOW = [(i, j) for i in range(2) for j in range(2)]


def convolution(weight, lower):
    """``(w * s)[o, h, w] = sum_{i, h', w'} w[o, i, h', w'] s[i, h + h' - 1, w + w' - 1]``, zeros around the image."""
    height, width = lower.shape[2:]
    around = np.pad(lower, ((0, 0), (0, 0), (1, 1), (1, 1)))
    parts = [(weight[:, :, i, j], around[:, :, i : i + height, j : j + width]) for i, j in TAPS]
    return sum(np.einsum("oi,bihw->bohw", tap, shifted) for tap, shifted in parts)


def transposed(weight, upper):
    """What every unit below receives from the units that it reaches, through the same weights."""
    batch, _, height, width = upper.shape
    around = np.zeros((batch, weight.shape[1], height + 2, width + 2))
    for i, j in TAPS:
        around[:, :, i : i + height, j : j + width] += np.einsum("oi,bohw->bihw", weight[:, :, i, j], upper)
    return around[:, :, 1:-1, 1:-1]


def winners(maps):
    """For each place of a window, whether it holds the maximum there; of equal ones the first counts."""
    places = np.stack([maps[:, :, i::2, j::2] for i, j in WINDOW])
    return np.arange(4).reshape(4, 1, 1, 1, 1) == places.argmax(0), places


def unpooled(upper, maps):
    """Every value of the upper layer at the place of the maximum, zeros elsewhere."""
    found = np.zeros_like(maps)
    for (i, j), wins in zip(WINDOW, winners(maps)[0], strict=True):
        found[:, :, i::2, j::2] = np.where(wins, upper, 0)
    return found


def drive(layer, lower):
    weight, bias = layer
    if weight.ndim == 2:
        return lower.reshape(len(lower), -1) @ weight.T + bias
    return winners(convolution(weight, lower))[1].max(0) + bias[:, None, None]


def feedback(layer, lower, upper):
    weight, _ = layer
    if weight.ndim == 2:
        return (upper @ weight).reshape(lower.shape)
    return transposed(weight, unpooled(upper, convolution(weight, lower)))


def sweep(layers, x, state, groups, output=None):
    """One sweep over groups of layers; ``output(drive, old)`` is the new output, by default the drive."""
    state, last = list(state), len(layers) - 1
    for group in groups:
        before = list(state)
        for k in group:
            field = drive(layers[k], before[k - 1] if k else x)
            if k < last:
                state[k] = np.clip(field + feedback(layers[k + 1], before[k], before[k + 1]), 0, 1)
            else:
                state[k] = output(field, before[k]) if output else field
    return state


def relax(layers, x, state, sweeps, groups, output=None):
    for _ in range(sweeps):
        state = sweep(layers, x, state, groups, output)
    return state


def energy(layers, x, state):
    """``E(theta, x, s)`` of each sample."""
    total = np.zeros(len(x))
    for layer, lower, upper in zip(layers, [x, *state[:-1]], state, strict=True):
        axes = tuple(range(1, upper.ndim))
        total += (upper**2).sum(axes) / 2 - (upper * drive(layer, lower)).sum(axes)
    return total


def energy_gradients(layers, x, state):
    """Mean over the batch of ``dE/dtheta``, weight and bias of every layer in turn."""
    found = []
    for (weight, _), lower, upper in zip(layers, [x, *state[:-1]], state, strict=True):
        if weight.ndim == 2:
            found += [-upper.T @ lower.reshape(len(x), -1) / len(x), -upper.mean(0)]
            continue
        routed, (height, width) = unpooled(upper, convolution(weight, lower)), lower.shape[2:]
        around = np.pad(lower, ((0, 0), (0, 0), (1, 1), (1, 1)))
        taps = np.zeros_like(weight)
        for i, j in TAPS:
            taps[:, :, i, j] = np.einsum("bohw,bihw->oi", routed, around[:, :, i : i + height, j : j + width])
        found += [-taps / len(x), -upper.sum((0, 2, 3)) / len(x)]
    return found


def contrast(rule, layers, x, y, free, beta, sweeps):
    """The gradient of a contrastive rule by the table of its two states."""
    signs = {"cl": (0, 1), "p-ep": (0, 1), "n-ep": (-1, 0), "c-ep": (-1, 1)}
    signs |= {"p-cpl": (0, 1), "n-cpl": (-1, 0), "c-cpl": (-1, 1)}
    both = []
    for nudging in (sign * beta for sign in signs[rule]):
        if rule.endswith("ep"):

            def output(field, old, nudging=nudging):
                return field + nudging * (y - old)

            state = relax(layers, x, free, sweeps, ((0, 2, 4), (1, 3)), output)
        else:
            clamped = [*free[:-1], (1 - nudging) * free[-1] + nudging * y]
            state = relax(layers, x, clamped, sweeps, ((0, 2), (1, 3)))
        both.append(energy_gradients(layers, x, state))
    span = (signs[rule][1] - signs[rule][0]) * beta
    return [(second - first) / span for first, second in zip(*both, strict=True)]
