"""A Hopfield network with dense layers, written from scratch: it shares nothing with the package but the interface."""

import torch
from torch import nn

from timm_ebl import FREE, EnergyModel, Relaxation
from timm_ebl.relaxation.record import as_layers


class DenseHopfield(nn.Module, EnergyModel):
    """``E = 1/2 |h|^2 + 1/2 |o|^2 - <h, V x + a> - <o, W h + b>``, ``h`` in ``[0, 1]``, minimised by turns."""

    def __init__(self, inputs=4, hidden=6, outputs=3, scale=0.25, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape, scale=scale, shift=0.0):
            noise = torch.rand(*shape, generator=generator, dtype=torch.float64) * 2 - 1
            return nn.Parameter(noise * scale + shift)

        self.V, self.a = draw(hidden, inputs, scale=0.1), draw(hidden, scale=0.05, shift=0.5)
        self.W, self.b = draw(outputs, hidden), draw(outputs, scale=0.1)

    def energy(self, x, state):
        h, o = as_layers(state)
        drive = x @ self.V.T + self.a
        return ((h / 2 - drive) * h).sum(1) + ((o / 2 - h @ self.W.T - self.b) * o).sum(1)

    def sweep(self, x, state, minimizer=None, perturbation=FREE):
        h, o = as_layers(state)
        o = perturbation.output(h @ self.W.T + self.b, o)
        h = (x @ self.V.T + self.a + o @ self.W).clamp(0, 1)
        return h, o

    @torch.no_grad()
    def relax(self, x, start=None, perturbation=FREE, minimizer=None):
        if start is None:
            start = x.new_zeros(len(x), len(self.a)), x.new_zeros(len(x), len(self.b))
        state = as_layers(start)
        state = (state[0], perturbation.start(state[1]))
        for _ in range(200):
            before, state = state, self.sweep(x, state, None, perturbation)
        residual = (state[0] - before[0]).norm(dim=1)
        return Relaxation(x, state, self.energy(x, state), residual, 200)
