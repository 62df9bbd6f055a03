"""An equilibrium as a function that autograd differentiates, by a `Backward`.

`equilibrium` relaxes a network as its forward pass. Its backward pass receives ``f = dC/ds``, the gradient of whatever
loss was put on the layers, and a `Backward` turns it into the gradient of the parameters and of the input. Of the
relaxation, the record of the free state alone is kept for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn, TypeVar

import torch
from torch import Tensor, nn

from ..energy.gradient import NO_SECOND
from ..kernels.autocast import present_autocast
from ..relaxation.checks import NO_MAP, require_input
from .backward import Backward, force_norm
from .rule import require_energy

if TYPE_CHECKING:
    from ..relaxation.model import EnergyModel
    from ..relaxation.record import Relaxation

__all__ = ["equilibrium", "relaxed_layers", "with_parameters"]

Result = TypeVar("Result")


def equilibrium(
    model: EnergyModel, x: Tensor, backward: Backward, layers: tuple[int, ...] = (-1,)
) -> tuple[Tensor, ...]:
    """Layers of the free state as a function of the input and the parameters of a network, with its derivatives.

    Args:
        model: The network, an `nn.Module`.
        x: Input ``(B, ..)``.
        backward: How to differentiate.
        layers: Which layers of ``(s_1, .., o)``, by index. The output layer is the one that minimises the energy given
            the others.

    Returns:
        The layers. Without gradients (`torch.no_grad`, `torch.jit.trace`, or nothing that asks for one) nothing is kept
        for a backward pass.

    Raises:
        TypeError: The model has no energy, the input is no tensor of real numbers, or the way to differentiate none.
    """
    require_energy(model)
    require_input(x)
    if not isinstance(backward, Backward):
        raise TypeError(f"backward is a timm_ebl.Backward, as create_backward makes it, not {backward!r}.")
    parameters = tuple(model.parameters())
    wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *parameters))
    if wanted and not torch.jit.is_tracing():
        return _Equilibrium.apply(_Call(model, backward, layers, present_autocast(x.device.type)), x, *parameters)
    return relaxed_layers(model, x, layers)


def relaxed_layers(model: EnergyModel, x: Tensor, layers: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Layers of the free state as `equilibrium` gives them, without derivatives."""
    if layers == (-1,):
        return (model.answer(x),)
    free = model.relax(x)
    return tuple(_layer(free, index) for index in layers)


class _Holder(nn.Module):
    """A module around another one that calls what it is given: `torch.func.functional_call` calls modules alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, call: Callable[[], Result]) -> Result:
        return call()


def with_parameters(
    model: nn.Module,
    parameters: Sequence[Tensor],
    call: Callable[[], Result],
    buffers: Mapping[str, Tensor] | None = None,
) -> Result:
    """The result of a call, with these parameters in place of the model's own, in their order, and these buffers.

    Raises:
        RuntimeError: They are not those of the model as it is now.
    """
    own, present = (dict(of(prefix="model")) for of in (model.named_parameters, model.named_buffers))
    others = {name: buffer for name, buffer in (buffers or {}).items() if present.get(name, buffer) is not buffer}
    if not others and all(now is then for now, then in zip(own.values(), parameters, strict=True)):
        return call()
    if [p.shape for p in own.values()] != [p.shape for p in parameters]:
        raise RuntimeError("The model was changed between its forward and its backward pass: it has other parameters.")
    return torch.func.functional_call(_Holder(model), others | dict(zip(own, parameters, strict=True)), (call,))


@dataclass
class _Call:
    """A call of `equilibrium` under the `autocast` of its forward pass, until its backward pass has used `free`."""

    model: nn.Module
    method: Backward
    layers: tuple[int, ...]
    autocast: AbstractContextManager
    parameters: tuple[Tensor, ...] = ()
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    free: Relaxation | None = None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        self.free = self.model.relax(x.detach())
        # Copies: changing a result in place does not change the state from which the backward pass starts.
        return tuple(_layer(self.free, index).clone() for index in self.layers)

    def backward(
        self, gradients: Sequence[Tensor | None], x: Tensor, parameters: Sequence[Tensor], needed: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        """The gradient in the input and in each parameter, where needed, given that in the layers."""
        with torch.enable_grad(), self.autocast:
            # The record goes as soon as it is used; a second pass through a retained graph relaxes anew.
            free, self.free = self.free or self.model.relax(x.detach()), None
            leaves = [free.input.requires_grad_(needed[0]), *parameters]
            forces, scale = _as_forces(self.layers, gradients, len(free.state))
            scalar = self.method.pullback(self.model, free, forces)
            del free
        wanted = [leaf for leaf, need in zip(leaves, needed, strict=True) if need]
        found = iter(torch.autograd.grad(scalar, wanted, materialize_grads=True))
        return tuple(next(found) * scale if need else None for need in needed)  # two leaves may share a gradient


class _Equilibrium(torch.autograd.Function):
    """``apply(call, x, *parameters)`` returns the layers; their gradient is left to the call's `Backward`."""

    @staticmethod
    def forward(call: _Call, x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        call.parameters, call.buffers = parameters, dict(call.model.named_buffers(prefix="model"))
        return with_parameters(call.model, parameters, lambda: call.forward(x))

    @staticmethod
    def setup_context(ctx, inputs: tuple[object, ...], output: tuple[Tensor, ...]) -> None:
        ctx.call, *tensors = inputs
        ctx.parameters = tensors[1:]
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if all(gradient is None for gradient in gradients):
            return tuple(None for _ in ctx.needs_input_grad)
        x, *_ = ctx.saved_tensors  # they are as they were, or this fails
        needed = ctx.needs_input_grad[1:]
        return None, *_Gradient.apply(ctx.call, needed, len(gradients), *gradients, x, *ctx.parameters)

    @staticmethod
    def vmap(*_: object) -> NoReturn:
        raise RuntimeError(NO_MAP)

    @staticmethod
    def jvp(*_: object) -> NoReturn:
        raise RuntimeError("A relaxation has no forward-mode derivative: take the gradient by a backward pass.")


class _Gradient(torch.autograd.Function):
    """``apply(call, needed, count, *gradients, x, *parameters)``: the backward pass, itself not differentiable."""

    @staticmethod
    def forward(call: _Call, needed: Sequence[bool], count: int, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        gradients, (x, *parameters) = tensors[:count], tensors[count:]
        leaves = [
            p.detach().requires_grad_() if need and not p.requires_grad else p
            for p, need in zip(parameters, needed[1:], strict=True)
        ]
        if any(now is not then for now, then in zip(leaves, call.parameters, strict=True)):
            call.free = None  # it is known to belong to the parameters that it was made with alone
        return with_parameters(call.model, leaves, lambda: call.backward(gradients, x, leaves, needed), call.buffers)

    @staticmethod
    def setup_context(ctx, inputs: tuple[object, ...], output: tuple[Tensor | None, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx, *_: Tensor | None) -> NoReturn:
        raise RuntimeError(NO_SECOND)

    vmap, jvp = _Equilibrium.vmap, _Equilibrium.jvp


def _as_forces(
    layers: tuple[int, ...], gradients: Sequence[Tensor | None], count: int
) -> tuple[list[Tensor | None], Tensor]:
    """Gradients by layer, the largest of any sample scaled to norm 1, and that norm: 16 bits hold whatever scale."""
    forces: list[Tensor | None] = [None] * count
    for index, gradient in zip(layers, gradients, strict=True):
        if gradient is not None:
            wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
            forces[index] = wide if forces[index] is None else forces[index] + wide
    norm = force_norm(forces)
    scale = norm.amax() if norm.numel() else norm.new_ones(())
    divisor = scale.where(scale != 0, 1)
    return [None if f is None else f / divisor for f in forces], scale


def _layer(free: Relaxation, index: int) -> Tensor:
    return free.output if index in (-1, len(free.state) - 1) else free.state[index]
