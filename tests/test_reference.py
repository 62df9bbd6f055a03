"""The reference procedure against autograd of its energy, and against numpy loops."""

import loops
import pytest
import torch
from golden import make

from timm_ebl.rules import reference


@pytest.fixture
def drawn():
    """``(layers, x, y, state)``: a network and a random state, which is no equilibrium of it."""
    layers, x, y = make.small()
    numbers = make.closed_form()
    zeros = reference.zero_state(layers, x)
    return layers, x, y, tuple(make.draw(numbers, *layer.shape).abs() for layer in zeros)


def test_the_energy_is_that_of_numpy_loops(drawn):
    layers, x, _, state = drawn
    found = reference.energy(layers, x, state)
    arrays = [(layer.weight.numpy(), layer.bias.numpy()) for layer in layers]
    expected = loops.energy(arrays, x.numpy(), [layer.numpy() for layer in state])
    torch.testing.assert_close(found, torch.as_tensor(expected), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("side", [16, 17, 19])
@pytest.mark.parametrize("average", [False, True])
def test_a_sweep_follows_the_gradient_of_the_energy(side, average):
    """With the others fixed, a layer's block minimum is ``s - dE/ds``, in images that no pooling divides too."""
    layers, x, _ = make.network((4, 5, 6, 7), 2, side, 3, 3, 1.5, 0.5)
    layers = [layer._replace(average=average) for layer in layers]
    numbers = make.closed_form()
    state = [make.draw(numbers, *layer.shape).abs().requires_grad_() for layer in reference.zero_state(layers, x)]
    slopes = torch.autograd.grad(reference.energy(layers, x, tuple(state)).sum(), state)
    found = reference.relax(layers, x, tuple(state), 1, reference.synchronous(5))
    for k, (layer, slope) in enumerate(zip(state, slopes, strict=True)):
        minimum = layer - slope
        torch.testing.assert_close(found[k], minimum if k == 4 else minimum.clamp(0, 1), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("beta", [-0.25, 0.0, 0.25])
@pytest.mark.parametrize("order", [reference.asynchronous, reference.synchronous])
def test_a_phase_ends_at_a_minimum_of_its_perturbed_energy(beta, order):
    layers, x, y = make.network((4, 5, 6, 7), 2, 16, 3, 3, 1.0, 0.5)
    free = reference.relax(layers, x, reference.zero_state(layers, x), 400, order(5))
    nudged = reference.nudged_state(layers, x, y, free, beta, 400, order)
    clamped = reference.clamped_state(layers, x, y, free, beta, 400, order)
    torch.testing.assert_close(clamped[-1], (1 - beta) * free[-1] + beta * y)
    for ended, weight in ((nudged, beta), (clamped, 0.0)):
        leaves = [layer.clone().requires_grad_() for layer in ended]
        perturbed = reference.energy(layers, x, tuple(leaves)) + weight * reference.cost(leaves[-1], y)
        *slopes, at_output = torch.autograd.grad(perturbed.sum(), leaves)
        for layer, slope in zip(ended, slopes, strict=False):
            torch.testing.assert_close((layer - slope).clamp(0, 1), layer, atol=1e-9, rtol=0)
        if ended is nudged:
            torch.testing.assert_close(at_output, torch.zeros_like(at_output), atol=1e-9, rtol=0)
