"""Networks on graphs: a bare network of any graph, random graphs with skips, and one drawn by hand."""

import torch
from torch import nn

from timm_ebl import HopfieldNetwork, Minimizer
from timm_ebl.energy.graph import Edge, Graph, Layer
from timm_ebl.models.interactions import AveragePooled, ConvInteraction, DenseInteraction


class GraphNetwork(HopfieldNetwork):
    """A network of a graph."""

    def __init__(self, graph, gain=1.0, seed=0):
        super().__init__()
        self.parts = nn.ModuleList(graph.interactions)
        self.minimizer, self._graph = Minimizer(), graph
        generator = torch.Generator().manual_seed(seed)
        for part in graph.interactions:
            part.initialise(gain, 0.5, generator)

    @property
    def graph(self):
        return self._graph


def residual_graph(dtype=torch.float64, bounds=(0.0, 6.0)):
    """Two blocks of a residual network on images ``(2, 8, 8)``: in-a, a-b of stride 2 and a 1x1 skip in-b."""
    kind = {"pool": 1, "dtype": dtype}
    edges = []
    for block, (below, width) in enumerate([(2, 4), (4, 6)]):
        source = None if block == 0 else 1
        a, b = 2 * block, 2 * block + 1
        edges += [
            Edge(ConvInteraction(below, width, **kind), source, a),
            Edge(ConvInteraction(width, width, stride=2, **kind), a, b),
            Edge(ConvInteraction(below, width, kernel_size=1, stride=2, bias=False, **kind), source, b),
        ]
    edges.append(Edge(DenseInteraction(6 * 2 * 2, 3, dtype=dtype), 3, 4))
    return Graph((*[Layer(bounds)] * 4, Layer(None)), tuple(edges))


def random_graph(seed):
    """A chain of random interactions on images ``(2, 12, 12)`` with random skips, and a read-out."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*values):
        return values[int(torch.randint(len(values), (), generator=generator))]

    bounds = draw((0.0, 1.0), (0.0, 6.0), (0.0, 0.3), (-1.0, 1.0))
    pools = draw(True, False) and bounds[0] >= 0  # below 0, a maximum is no lower bound of what it is linearised to
    shapes, edges = [(2, 12)], []
    for k in range(draw(2, 3, 4, 5)):
        width, (below, side) = draw(2, 3, 4), shapes[-1]
        stride, pool = draw((1, 1), (2, 1), (1, 2)) if side % 2 == 0 else (1, 1)
        kind = ConvInteraction if pools else AveragePooled
        part = kind(below, width, draw(1, 3), pool, stride=stride, dtype=torch.float64)
        edges.append(Edge(part, k - 1 if k else None, k))
        side //= stride * pool
        for j, (lower, wide) in enumerate(shapes[:-1]):
            if wide % side == 0 and draw(True, False):
                skip = ConvInteraction(lower, width, 1, 1, stride=wide // side, bias=False, dtype=torch.float64)
                edges.append(Edge(skip, j - 1 if j else None, k))
        shapes.append((width, side))
    last = len(shapes) - 1
    for j in {last - 1, draw(0, last - 1)}:
        width, side = shapes[j + 1]
        edges.append(Edge(DenseInteraction(width * side**2, 3, dtype=torch.float64), j, last))
    return Graph((*[Layer(bounds)] * last, Layer(None)), tuple(edges))


def slow_energy(graph, x, state):
    """``1/2 sum_k |s_k|^2 - sum_(j,k) <s_k, drive_jk(s_j)>``, edge by edge."""
    total = sum((s**2).flatten(1).sum(1) / 2 for s in state)
    for interaction, lower, upper in graph.edges:
        drive = interaction.drive(x if lower is None else state[lower])
        total = total - (state[upper] * drive).flatten(1).sum(1)
    return total


def random_state(model, x, generator):
    """A state within the bounds of its layers."""
    state = []
    for layer, shape in zip(model.graph.layers, model.state_shapes(x), strict=True):
        low, high = layer.bounds or (-1.0, 1.0)
        state.append(low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64))
    return tuple(state)
