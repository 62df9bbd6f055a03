"""A dense network whose energy is not quadratic: hidden units pay ``h^4`` and have no bounds."""

from dense import DenseHopfield

from timm_ebl import FREE
from timm_ebl.relaxation.record import as_layers


class QuarticHopfield(DenseHopfield):
    """``E = 1/2 |h|^2 + 1/4 sum h^4 + 1/2 |o|^2 - <h, V x + a> - <o, W h + b>``, minimised by turns."""

    def energy(self, x, state):
        return super().energy(x, state) + (as_layers(state)[0] ** 4).sum(1) / 4

    def sweep(self, x, state, minimizer=None, perturbation=FREE):
        h, o = as_layers(state)
        o = perturbation.output(h @ self.W.T + self.b, o)
        drive = x @ self.V.T + self.a + o @ self.W
        for _ in range(30):  # Newton's method for h + h^3 = drive
            h = h - (h + h**3 - drive) / (1 + 3 * h**2)
        return h, o
