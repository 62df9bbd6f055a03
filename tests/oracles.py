"""What the tests hold rules and states against."""

import math

import torch

from timm_ebl import Minimizer, create_rule, random_signs
from timm_ebl.kernels.plain import Plain

BETAS = (0.1, 0.05, 0.025)
CONVERGED = Minimizer(sweeps=5000, tolerance=1e-13, omega=1.2)
LABELS = torch.tensor([0, 1, 2, 0, 1])
TARGET = torch.eye(3, dtype=torch.float64)[LABELS]


def gradient(model, loss):
    """The gradient of a scalar in all parameters, as one vector."""
    gradients = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
    return torch.cat([g.flatten() for g in gradients])


def parameter_gradients(model, loss):
    """The gradient that a backward pass leaves in each parameter."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    return [parameter.grad for parameter in model.parameters()]


def flat(gradients):
    """Several gradients as one vector."""
    return torch.cat([g.flatten() for g in gradients])


def error(first, second):
    return float((first - second).norm() / second.norm())


def slope(errors):
    """Slope of log error over log beta, through the first and the last beta."""
    return math.log(errors[0] / errors[-1]) / math.log(BETAS[0] / BETAS[-1])


def true_gradient(model, x, y, sweeps=400):
    return gradient(
        model, create_rule("tbp", free=CONVERGED, unrolled=Minimizer(sweeps=sweeps, omega=1.0))(model, x, y).loss
    )


def finite_difference(model, function, step=1e-5):
    """Gradient of a number that depends on the parameters through its own minimisations."""
    found = []
    for parameter in model.parameters():
        for index in range(parameter.numel()):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter.view(-1)[index] += sign * step
                    values.append(function())
                    parameter.view(-1)[index] -= sign * step
            found.append((values[0] - values[1]) / (2 * step))
    return torch.tensor(found, dtype=torch.float64)


def record_calls(monkeypatch, kind, names, note):
    """A list of what ``note(self, first argument)`` says of every call of some methods of a class, as they are made."""
    calls = []

    def recorded(method):
        def call(self, first, *args):
            calls.append(note(self, first))
            return method(self, first, *args)

        return call

    for name in names:
        monkeypatch.setattr(kind, name, recorded(getattr(kind, name)))
    return calls


def record_products(monkeypatch, model, names=("up", "down"), note=None):
    """What is said of every product of a convolution of a DCHN in float64, by default the number of its layer."""
    kernels = [tuple(layer.weight.shape) for layer in model.layers]
    note = note or (lambda engine, _: kernels.index(tuple(engine.kernel.shape)))
    return record_calls(monkeypatch, Plain, names, note)


def signs_for(rule, x):
    """What a rule takes beside its batch: a sign for each sample where it draws them."""
    return {"signs": random_signs(len(x), torch.Generator().manual_seed(0))} if rule.draws else {}


def distance(first, second):
    """Largest difference between two states."""
    return max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True))


def images_for(model, count=2):
    """Random images of a network's channels and size."""
    return torch.randn(count, model.in_chans, *model.img_size, generator=torch.Generator().manual_seed(0))
