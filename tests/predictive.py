"""A predictive coding network small enough for float64, and the textbook's equations of it, written with autograd."""

import torch
import torch.nn.functional as F

from timm_ebl import PCN

LAYERS = 6
LABELS = torch.tensor([0, 1, 2, 0])
TARGET = torch.eye(3, dtype=torch.float64)[LABELS]


def images():
    """Four of them, for the network."""
    return torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def small_network(seed=0, dtype=torch.float64, **kwargs):
    """Five convolutions and a read-out; no unit comes near to a bound of its ReLU in the tests of small strengths."""
    options = {"widths": (4, 5, 6, 5, 4), "pools": (1, 2, 1, 2, 1), "num_classes": 3, "in_chans": 2, "img_size": 8}
    torch.manual_seed(seed)
    return PCN(**options | {"gains": 1.5, "bias_gain": 1.5} | kwargs, dtype=dtype)


def predictions(model, x, state):
    """``f_k(h_{k-1})`` of every layer, by PyTorch's functions."""
    found = []
    for layer, below in zip((*model.layers, model.head), (x, *state[:-1]), strict=True):
        if layer is model.head:
            found.append(F.linear(below.flatten(1), layer.weight, layer.bias))
        else:
            drive = F.conv2d(below, layer.weight, layer.bias, padding=1)
            found.append(F.relu(F.max_pool2d(drive, layer.pool)))
    return found


def energy(model, x, state):
    """``1/2 sum_k |h_k - f_k(h_{k-1})|^2`` of each sample."""
    errors = [h - f for h, f in zip(state, predictions(model, x, state), strict=True)]
    return sum((e**2).flatten(1).sum(1) for e in errors) / 2


def forward_pass(model, x):
    """The plain network."""
    state = []
    for layer in (*model.layers, model.head):
        below = state[-1] if state else x
        if layer is model.head:
            state.append(F.linear(below.flatten(1), layer.weight, layer.bias))
        else:
            state.append(F.relu(F.max_pool2d(F.conv2d(below, layer.weight, layer.bias, padding=1), layer.pool)))
    return tuple(state)


def modified_update(model, x, state, k, nudge):
    """Layer ``k`` after ``ReLU(a_k + J^T e_{k+1})``; the output after its step ``a_L - nudge(h_L)``."""
    below = x if k == 0 else state[k - 1]
    if k == LAYERS - 1:
        return F.linear(below.flatten(1), model.head.weight, model.head.bias) - nudge(state[k])
    layer, here = model.layers[k], state[k].detach().requires_grad_()
    drive = F.max_pool2d(F.conv2d(below, layer.weight, layer.bias, padding=1), layer.pool)
    above = predictions(model, x, (*state[:k], here, *state[k + 1 :]))[k + 1]
    (pulled,) = torch.autograd.grad(above, here, (state[k + 1] - above).detach())
    return F.relu(drive + pulled)
