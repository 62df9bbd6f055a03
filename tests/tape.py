"""A twin of a CUDA graph on any device: operators at fixed addresses, recorded once and computed again alone.

And what tells whether steps that are replayed are those that are not.
"""

from dataclasses import replace
from typing import ClassVar
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from timm_ebl import create_rule
from timm_ebl.kernels.recording import Recording, without_recordings
from timm_ebl.models import layered
from timm_ebl.rules import contrastive

FORBIDDEN = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
"""What an operator does if its result is read by the host, or has a shape that the host has to wait for."""


class Tape(Recording):
    """Computes every operator of one call anew, into the memory that it had; nothing of Python is called again.

    As on a CUDA device, it is an error to read a value or to bring numbers from the host while it records. The checks
    that read values are made on a CPU alone, and left out.
    """

    made: ClassVar[list["Tape"]] = []

    def record(self, function, other):
        def unchecked(y, output):
            return y if y.shape == output.shape else (y[:, None] == torch.arange(output.shape[1])).to(output.dtype)

        Tape.made.append(self)
        with (
            mock.patch.object(layered, "require_finite"),
            mock.patch.object(contrastive, "as_target", unchecked),
        ):
            function(*self.inputs)  # warm up
            with _Recorder() as recorder:
                results = function(*self.inputs)
        self.calls, self.replays = recorder.calls, 0
        return results

    @torch.no_grad()
    def replay(self):
        self.replays += 1
        with torch.autocast("cpu", enabled=False):  # its casts are among the operators
            for operator, args, kwargs, kept in self.calls:
                found = operator(*args, **kwargs)
                for old, new in zip(kept, _tensors(found), strict=True):
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class _Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if FORBIDDEN & {*operator.tags} or operator is torch.ops.aten.lift_fresh.default:
            raise RuntimeError(f"{operator} is not permitted when a stream is capturing")
        found = operator(*args, **(kwargs or {}))
        self.calls.append((operator, args, kwargs or {}, _tensors(found)))
        return found


def _tensors(found):
    if isinstance(found, Tensor):
        return [found]
    return [part for part in found if isinstance(part, Tensor)] if isinstance(found, (tuple, list)) else []


def rule_of(model, name="c-ep", **options):
    """A rule with a compiled perturbed phase."""
    rule = create_rule(name, **options).fitted(model)
    return replace(rule, perturbed=replace(rule.perturbed, compiled=True))


def everything(rule, model, x, y, signs, **given):
    """All that a step returns, and the gradient of its loss."""
    if rule.draws:
        given["signs"] = signs
    out = rule(model, x, y, **given)
    free = out.free
    record = [out.loss.detach(), out.output, free.energy, free.residual, free.output, *free.state, *out.last]
    return [*record, *torch.autograd.grad(out.loss / 3, [*model.parameters()])]


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def assert_steps_alike(rule, model, batches, steps=3, **given):
    """To the last bit, with and without recordings, for some batches, the weights being updated after each."""
    for step in range(steps):
        with without_recordings():
            expected = everything(rule, model, *batches(step), **given)
        assert_same(everything(rule, model, *batches(step), **given), expected)
        gradients = expected[-len([*model.parameters()]) :]
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter.sub_(gradient)
