"""A layered Hopfield network as a module: energy, relaxation and a differentiable sweep."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields

import torch
from torch import Tensor, nn

from .energy import State, WeightedEnergy, energy_from_drives
from .inputs import require_finite, require_input, require_state
from .interaction import Interaction
from .minimize import Minimizer, Start, answer, minimize, require_minimizer, settle
from .perturbation import FREE, Perturbation
from .relaxation import Relaxation
from .response import Response
from .walk import Walk, stamp_of

__all__ = ["SETTLING_SWEEPS", "EnergyModel", "HopfieldNetwork", "as_layers", "require_energy"]

SETTLING_SWEEPS = 2
"""How many more sweeps a free state is given before it is contrasted: a gradient asks for more than an answer."""


class EnergyModel(ABC):
    """What a learning rule asks of a model; any module derived from it can be trained by any rule.

    A state is a tuple of tensors with the batch first, the output layer ``(B, M)`` last. Where a state is expected, a
    `Relaxation` that ended in it may be given (`as_layers` takes either).

    Attributes:
        minimizer: How it relaxes unless it is told otherwise.
    """

    minimizer: Minimizer = Minimizer()

    @abstractmethod
    def energy(self, x: Tensor, state: State | Relaxation) -> Tensor:
        """``E(theta, x, state)``, ``(B,)``, differentiable in the parameters."""

    @abstractmethod
    def relax(
        self,
        x: Tensor,
        start: State | Relaxation | None = None,
        perturbation: Perturbation = FREE,
        minimizer: Minimizer | None = None,
        hold_routes: bool = False,
    ) -> Relaxation:
        """Minimise the perturbed energy over the state, without autograd.

        With held routes, a choice that the energy makes of the state (the pooling routes) stays as it is at the start,
        a free relaxation of this input, and what that one left undone is not done now: it counts as at rest.
        """

    @abstractmethod
    def sweep(self, x: Tensor, state: State | Relaxation, minimizer: Minimizer | None = None) -> State:
        """One free sweep of the minimiser, differentiable in the parameters and the state."""

    def answer(self, x: Tensor) -> Tensor:
        """The output layer that minimises the energy given the others where the free relaxation ends, ``(B, M)``."""
        return self.relax(x).output

    def settle(self, free: Relaxation, minimizer: Minimizer | None = None, hold_routes: bool = True) -> Relaxation:
        """A free state after `SETTLING_SWEEPS` more sweeps of its minimiser, to be contrasted with others.

        Args:
            free: A free relaxation.
            minimizer: That of the free relaxation; by default as the model was built.
            hold_routes: Whether the relaxations that start from it hold its routes.
        """
        return self.relax(free.input, free, minimizer=(minimizer or self.minimizer).further(SETTLING_SWEEPS))

    def contrast(self, relaxation: Relaxation, weights: Tensor) -> Tensor:
        """``sum_b w_b E(theta, x_b, s_b)`` over the samples of a relaxation, differentiable in the parameters.

        Args:
            relaxation: Where the states ended.
            weights: ``w``, ``(B,)``.
        """
        return (weights * self.energy(relaxation.input, relaxation)).sum()


def as_layers(state: State | Relaxation) -> State:
    """The layers of a state that may be given as a relaxation."""
    return state.state if isinstance(state, Relaxation) else state


def require_energy(model: object) -> None:
    """Refuse a model that cannot tell its energy; what wraps one that can (`torch.compile`) passes.

    Raises:
        TypeError: It is none.
    """
    if not all(hasattr(model, name) for name in ("energy", "relax", "sweep")):
        raise TypeError(
            f"A {type(model).__name__} has no energy to relax: choose one of timm.list_models('dchn*'), or derive the "
            "model from timm_ebl.EnergyModel."
        )


class HopfieldNetwork(nn.Module, EnergyModel):
    """A layered Hopfield network made of interactions (`timm_ebl.interaction`).

    A subclass implements `interactions`.
    """

    @property
    @abstractmethod
    def interactions(self) -> Sequence[Interaction]:
        """The interactions from the input upwards; the last one drives the output layer."""

    def extra_repr(self) -> str:
        """The minimiser, as the arguments that make it."""
        settings = {field.name: getattr(self.minimizer, field.name) for field in fields(Minimizer)}
        settings["start"] = str(self.minimizer.start)
        return ", ".join(f"{name}={value!r}" for name, value in settings.items() if value not in (None, False))

    def check_input(self, x: Tensor, start: State | None = None) -> None:
        """Refuse an input that the network cannot take, or a state that it cannot start from.

        Args:
            x: The input.
            start: The layers of the state, if one is given.

        Raises:
            TypeError: They are no tensors of real numbers.
            ValueError: They hold NaN or infinite values, are on another device, or the state is not one of this input.
        """
        require_input(x)
        device = next((parameter.device for parameter in self.parameters()), x.device)
        if x.device != device:
            raise ValueError(f"The input is on {x.device} and the network on {device}: move one of them.")
        if start is not None:
            require_state(start, self.state_shapes(x), x.device)
        if not (torch.compiler.is_compiling() or x.is_meta):
            require_finite(x, start or ())

    @torch.compiler.disable
    def energy(self, x: Tensor, state: State | Relaxation) -> Tensor:
        """``E(theta, x, s) = 1/2 sum_k |s_k|^2 - sum_k <s_k, drive_k(s_{k-1})>`` (paper, Section 3).

        Args:
            x: Input ``(B, C, H, W)``.
            state: The layers ``(s_1, .., o)``, or a relaxation: of one of this very input under the present parameters,
                the pooling routes are those that it ended with.

        Returns:
            The energy of each sample, ``(B,)``, differentiable in parameters, input and state.
        """
        layers = as_layers(state)
        known = self._knows_drives(x, state)
        routes = [drive.route for drive in state.drives] if known else [None] * len(layers)
        each = zip(self.interactions, (x, *layers[:-1]), routes, strict=True)
        return energy_from_drives(layers, [interaction.drive(lower, route).value for interaction, lower, route in each])

    @torch.compiler.disable
    def contrast(self, relaxation: Relaxation, weights: Tensor) -> Tensor:
        """``sum_b w_b E(theta, x_b, s_b)`` over the samples of a relaxation under the present parameters, a scalar.

        The gradient comes with the value, from the states and the pooling routes alone: nothing is computed forward
        again. Two copies of a sample are taken by mean and difference, so that 16 bits keep the difference.

        Args:
            relaxation: Where the states ended, which count as constants.
            weights: ``w``, ``(B,)``.

        Returns:
            The sum, differentiable in the parameters and in the relaxation's input.

        Raises:
            ValueError: The parameters have changed since the relaxation.
            RuntimeError: A transform of `torch.func` is under way.
        """
        if torch._C._functorch.peek_interpreter_stack() is not None:
            raise RuntimeError(
                "torch.func cannot differentiate a rule: give the loss of torch.func.functional_call a backward pass."
            )
        x = relaxation.input
        if not self._knows_drives(x, relaxation):
            raise ValueError(
                "The relaxation is not one of this network with its present parameters, or its layers were changed in "
                "place: relax anew."
            )
        routes = [drive.route for drive in relaxation.drives]
        prepared = relaxation.prepared or (None,) * len(routes)
        tensors = [tensor for interaction in self.interactions for tensor in interaction.tensors()]
        return WeightedEnergy.apply(weights, self.interactions, prepared, relaxation.state, routes, x, *tensors)

    @torch.compiler.disable
    @torch.no_grad()
    def relax(
        self,
        x: Tensor,
        start: State | Relaxation | Start | None = None,
        perturbation: Perturbation = FREE,
        minimizer: Minimizer | None = None,
        hold_routes: bool = False,
    ) -> Relaxation:
        """Minimise ``E(theta, x, s) + c(o)`` over the state (Equations 1, 2, 4 and 7).

        Args:
            x: Input ``(B, C, H, W)``.
            start: A state, an earlier relaxation (whose drives are used again, if it is of this very input and the
                parameters are the same), or a named start; by default the minimiser's.
            perturbation: What is done to the output layer; free by default.
            minimizer: How to minimise; by default as the model was built.
            hold_routes: Keep the pooling routes of the free relaxation given as `start`, and take it to be at rest
                (`timm_ebl.response`). Not in the paper: it keeps the energy smooth in the strength of the perturbation.

        Returns:
            The record of the relaxation.

        Raises:
            ValueError: The input or the start does not fit the network, or the input is not finite.
        """
        minimizer = minimizer or self.minimizer
        require_minimizer("minimizer", minimizer)
        known, given = self._knows_drives(x, start), not (start is None or isinstance(start, str))
        if not known:
            self.check_input(x, as_layers(start) if given else None)
        if hold_routes and not known:
            raise ValueError(
                "Routes can only be held from a relaxation of this input, as it ended: pass that as start, and its "
                "input as x."
            )
        if not given:
            walk = self._walk_from(x, Start(start or minimizer.start), perturbation)
            return minimize(walk, minimizer)
        if hold_routes:
            return minimize(Response(self.interactions, start, perturbation), minimizer)
        return minimize(self._walk_on(x, start, perturbation, known), minimizer)

    @torch.compiler.disable
    @torch.no_grad()
    def answer(self, x: Tensor, minimizer: Minimizer | None = None) -> Tensor:
        """The output layer that minimises the energy given the others where the free relaxation ends, ``(B, M)``.

        It is that of `relax`, without what the last sweeps do that no longer reaches the output, and without autograd.

        Args:
            x: Input ``(B, C, H, W)``.
            minimizer: How to minimise; by default as the model was built.

        Raises:
            ValueError: The input does not fit the network, or is not finite.
        """
        self.check_input(x)
        minimizer = minimizer or self.minimizer
        require_minimizer("minimizer", minimizer)
        return answer(self._walk_from(x, minimizer.start, FREE), minimizer)

    @torch.compiler.disable
    @torch.no_grad()
    def settle(self, free: Relaxation, minimizer: Minimizer | None = None, hold_routes: bool = True) -> Relaxation:
        """A free state after `SETTLING_SWEEPS` more sweeps of its minimiser, to be contrasted with others.

        Args:
            free: A free relaxation.
            minimizer: That of the free relaxation; by default as the model was built.
            hold_routes: Whether the relaxations that start from it hold its routes.

        Returns:
            With held routes a record with what a perturbed phase starts from: without energy and residual, and with the
            pooling routes of the last updates. Else that of a relaxation.
        """
        if not hold_routes:
            return super().settle(free, minimizer)
        walk = self._walk_on(free.input, free, FREE, self._knows_drives(free.input, free))
        return settle(walk, (minimizer or self.minimizer).further(SETTLING_SWEEPS))

    def sweep(self, x: Tensor, state: State | Relaxation, minimizer: Minimizer | None = None) -> State:
        """One free sweep of a minimiser, differentiable in parameters, input and state; pooling routes are followed.

        Args:
            x: Input ``(B, C, H, W)``.
            state: The layers ``(s_1, .., o)``.
            minimizer: Order of update and over-relaxation, that of its last sweep; by default as the model was built.
        """
        minimizer = minimizer or self.minimizer
        walk = Walk(self.interactions, x, as_layers(state))
        walk.sweep(minimizer.groups(len(walk.state)), minimizer.omega_of(minimizer.sweeps))
        return tuple(walk.state)

    def state_shapes(self, x: Tensor) -> list[torch.Size]:
        """Shape of every layer of the state for an input ``x``, the batch first."""
        shapes, sample = [], x.shape[1:]
        for interaction in self.interactions:
            sample = interaction.shape(sample)
            shapes.append(torch.Size([x.shape[0], *sample]))
        return shapes

    def _knows_drives(self, x: Tensor, state: object) -> bool:
        """Whether a state is a relaxation whose drives are those of this input under the present parameters."""
        if not isinstance(state, Relaxation) or not state.drives or not state.intact:
            return False
        present = stamp_of(self.interactions, x)
        return len(present) == len(state.stamp) and all(
            now is then and version == old for (now, version), (then, old) in zip(present, state.stamp, strict=True)
        )

    def _walk_from(self, x: Tensor, start: Start, perturbation: Perturbation) -> Walk:
        zero = [x.new_zeros(shape) for shape in self.state_shapes(x)]
        zero[-1] = perturbation.start(zero[-1])
        walk = Walk(self.interactions, x, tuple(zero), perturbation)
        if start is Start.FEEDFORWARD:
            for layer in range(len(zero) - 1):
                walk.set(layer, walk.drive(layer).value.clamp(0, 1))
            walk.set(len(zero) - 1, walk.field(len(zero) - 1))
        return walk

    def _walk_on(self, x: Tensor, start: State | Relaxation, perturbation: Perturbation, known: bool) -> Walk:
        """A walk from a state, with what is known of it."""
        *hidden, output = as_layers(start)
        drives, prepared = (start.drives, start.prepared) if known else ((), ())
        return Walk(self.interactions, x, (*hidden, perturbation.start(output)), perturbation, drives, prepared)
