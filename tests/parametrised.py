"""Networks whose weights are made of other parameters, and plain ones of the same weights."""

import copy
import warnings

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune


class Sum(nn.Module):
    """A weight that is a sum of two, which share their gradient."""

    def __init__(self, weight):
        super().__init__()
        self.other = nn.Parameter(weight.detach().roll(1, -1) / 3)

    def forward(self, weight):
        return weight + self.other


WAYS = {
    "pruning": lambda layer: prune.random_unstructured(layer, "weight", 0.4),
    "pruning twice": lambda layer: [prune.random_unstructured(layer, "weight", 0.2) for _ in range(2)],
    "weight norm": parametrizations.weight_norm,
    "weight norm by a hook": nn.utils.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "spectral norm by a hook": nn.utils.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "a sum": lambda layer: parametrize.register_parametrization(layer, "weight", Sum(layer.weight)),
}


def parametrised(model, way):
    """A network whose second convolution and read-out are made of other parameters, and a plain one of its weights."""
    torch.manual_seed(0)
    plain = copy.deepcopy(model).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for layer in (model.layers[1], model.head):
            WAYS[way](layer)
    model.eval()
    copy_weights(plain, model)
    return model, plain


def copy_weights(plain, model):
    with torch.no_grad():
        for here, there in zip(plain.interactions, model.interactions, strict=True):
            for mine, theirs in zip(here.parameters(), there.tensors(), strict=True):
                mine.copy_(theirs)


def pulled_back(model, gradients):
    """Gradients of weights and biases as those of the parameters that make them."""
    tensors = [tensor for interaction in model.interactions for tensor in interaction.tensors()]
    return torch.autograd.grad(tensors, list(model.parameters()), gradients)
