"""CUDA tensors on a machine without a GPU: they have shapes, types and a device, but no values (`FakeTensorMode`)."""

import sys
from collections import Counter, defaultdict
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import timm_ebl

PACKAGE = Path(timm_ebl.__file__).parent
COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
READ = torch.ops.aten._local_scalar_dense.default
NEED_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
INDEX = torch.ops.aten.index.Tensor


class Waits(AssertionError):
    """The host waits for the device where it may not."""


class Watched(TorchDispatchMode):
    """Refuses whatever makes the host wait for a CUDA device.

    That is a value that the host reads (``item``, ``bool``), a shape that depends on values (``nonzero``), and a copy
    between host and device that blocks.

    Attributes:
        allowed: Where the host may wait, as ``"file.py:function"`` of the package. It reads ones there.
        waits: How often it did, by place.
    """

    def __init__(self, allowed=()):
        super().__init__()
        self.allowed, self.waits = {*allowed}, Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [*tensors_in((*args, *kwargs.values()))]
        if any(map(is_on_device, tensors)) and needs_values(operator, args):
            self.wait(operator)
            if operator is READ:
                return one(tensors[0].dtype)
        found = operator(*args, **kwargs)
        # A single number of the host is an argument of a kernel.
        met = {is_on_device(tensor) for tensor in tensors if is_on_device(tensor) or tensor.ndim or operator in COPIES}
        met |= {is_on_device(tensor) for tensor in tensors_in((found,))}
        if len(met) == 2 and not (kwargs.get("non_blocking") and is_on_device(found)):
            self.wait(operator)
        return found

    def wait(self, operator):
        frame = sys._getframe(1)
        while frame and (PACKAGE not in Path(frame.f_code.co_filename).parents or frame.f_code.co_name[0] == "<"):
            frame = frame.f_back
        place = "outside of the package"
        if frame:
            place = f"{Path(frame.f_code.co_filename).relative_to(PACKAGE)}:{frame.f_code.co_name}"
        if place not in self.allowed:
            raise Waits(f"{place} waits for the device by {operator}")
        self.waits[place] += 1

    def tolist(self, tensor):
        """`Tensor.tolist` of a fake tensor."""
        self.wait("tolist")
        return np.full(tensor.shape, one(tensor.dtype)).tolist()


def tensors_in(values):
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)


def needs_values(operator, args):
    """Whether the values decide on the result's shape or are asked for; of an index, those of a mask alone do."""
    if operator is INDEX:
        return any(index is not None and index.dtype == torch.bool for index in args[1])
    return not NEED_VALUES.isdisjoint(operator.tags)


def is_on_device(tensor):
    device = tensor.fake_device if isinstance(tensor, FakeTensor) else tensor.device
    return device.type == "cuda"


def one(dtype):
    """What a fake tensor is read as."""
    return True if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1


@contextmanager
def fake_cuda(*allowed):
    """Everything on fake tensors, autocast for CUDA and autograd's backward pass as well; yields the `Watched`."""
    watched = Watched(allowed)
    with (
        mock.patch.object(torch.cuda.amp.common, "amp_definitely_not_available", return_value=False),
        mock.patch.object(torch.cuda, "is_bf16_supported", return_value=True),
        mock.patch.object(torch.autograd, "grad", gradients),
        mock.patch.object(Tensor, "backward", backward),
        mock.patch.object(FakeTensor, "tolist", lambda tensor: watched.tolist(tensor)),
        FakeTensorMode(),
        watched,
    ):
        yield watched


def on_cuda(module):
    """The module with fake parameters."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(
                    torch.empty(parameter.shape, dtype=parameter.dtype, device="cuda")
                )
    return module


def gradients(outputs, inputs, grad_outputs=None, retain_graph=None, create_graph=False, materialize_grads=False, **_):
    """`torch.autograd.grad` in Python, node by node: PyTorch's own engine asks the driver for the device."""
    outputs, inputs, given = (
        [tensors] if isinstance(tensors, Tensor) else [*(tensors or ())] for tensors in (outputs, inputs, grad_outputs)
    )
    given = [
        torch.ones_like(output) if gradient is None else gradient
        for output, gradient in zip(outputs, given or [None] * len(outputs), strict=True)
    ]
    roots = [edge_of(output) for output in outputs]
    waiting = Counter(child for node in nodes_below(roots) for child, _ in node.next_functions)
    found = defaultdict(dict)

    def add(edge, gradient):
        node, index = edge
        if gradient is None:
            return
        made = node._input_metadata[index]
        if gradient.device != made.device:
            raise RuntimeError(f"{node}: a gradient on {gradient.device} of a tensor on {made.device}")
        gradient = gradient.sum_to_size(tuple(made.shape)).to(made.dtype)
        there = found[node].get(index)
        found[node][index] = gradient if there is None else there + gradient

    for edge, gradient in zip(roots, given, strict=True):
        add(edge, gradient)
    ready = [node for node in dict.fromkeys(node for node, _ in roots) if not waiting[node]]
    while ready:
        node = ready.pop()
        edges = [edge for edge in node.next_functions if edge[0]]
        for edge, gradient in zip(edges, called(node, found[node], create_graph) or [None] * len(edges), strict=True):
            add(edge, gradient)
            waiting[edge[0]] -= 1
            if not waiting[edge[0]]:
                ready.append(edge[0])
    edges = map(edge_of, inputs)
    wanted = [found[node].get(index) for node, index in edges]
    if materialize_grads:
        wanted = [
            torch.zeros_like(x) if gradient is None else gradient for x, gradient in zip(inputs, wanted, strict=True)
        ]
    return tuple(wanted)


def called(node, above, create_graph):
    """Of a node the gradients in the inputs that need one, given those in its outputs by index."""
    if not above or hasattr(node, "variable"):
        return None
    given = [above.get(index) for index in range(len(node._input_metadata))]
    is_custom = isinstance(node, torch.autograd.function.BackwardCFunction)
    with torch.set_grad_enabled(create_graph):
        made = node.apply(*given) if is_custom else node(*given)
    made = made if isinstance(made, tuple) else (made,)
    needed = node.needs_input_grad if is_custom else [edge[0] for edge in node.next_functions]
    return [gradient for gradient, need in zip(made, needed, strict=True) if need]


def backward(loss, **_):
    """`Tensor.backward`."""
    leaves = [node.variable for node in nodes_below([edge_of(loss)]) if hasattr(node, "variable")]
    for leaf, gradient in zip(leaves, gradients(loss, leaves), strict=True):
        if gradient is not None:
            leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient


def nodes_below(edges):
    """The nodes of a graph."""
    seen, stack = {}, [node for node, _ in edges]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen[node] = True
            stack += [child for child, _ in node.next_functions]
    return list(seen)


def edge_of(tensor):
    edge = torch.autograd.graph.get_gradient_edge(tensor)
    return edge.node, edge.output_nr
