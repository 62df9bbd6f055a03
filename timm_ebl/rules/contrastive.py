"""The seven learning rules of the paper (Section 2): each contrasts the energies of two states.

`ContrastiveRule.contrast` is the one place where the two states are relaxed and contrasted, for a rule and for the
backward pass of a loss alike.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..arguments import as_plain, is_number, require_flag
from ..energy.functional import State, weigh
from ..energy.perturbation import Clamped, Forced, Perturbation
from ..kernels.pair import wide
from ..relaxation.model import SETTLING_SWEEPS, EnergyModel
from ..relaxation.record import Relaxation
from .backward import Backward, force_norm
from .cost import SQUARED_ERROR, Cost, as_cost
from .nudging import Nudging, require_signs
from .replay import replayed_step
from .rule import Rule, RuleOutput, as_target, require_energy, require_strength

if TYPE_CHECKING:
    from ..relaxation.minimizer import Minimizer

__all__ = ["ContrastiveRule", "CoupledLearning", "EquilibriumPropagation"]


@dataclass(frozen=True)
class ContrastiveRule(Rule):
    """Contrast of two equilibria: ``mean(E(theta, x, s_2) - E(theta, x, s_1)) / (beta_2 - beta_1)``.

    Where the free phase has not converged, a perturbed phase also moves the rest of the way to the equilibrium, which
    is not an effect of the perturbation. It cancels in the contrast of two perturbed states, but not of a perturbed one
    with the free one: there the unperturbed state needs a companion, or the linear response.

    Attributes:
        perturbed: Minimiser of the perturbed phases; ``None`` takes the model's own (`EnergyModel.perturbed`).
        beta: Strength of the perturbation, positive; the nudging carries the sign. ``None`` takes the model's own.
        nudging: Which two equilibria.
        linear_response: Relax the perturbed states by `EnergyModel.respond`: the free state's pooling routes are held,
            so that the energy is smooth in the strength of the perturbation, which is to be small, and the free state
            is treated as an equilibrium. Ours, not the paper's. A model that has none (`EnergyModel.responds`) relaxes.
        settle: Give the free state two more free sweeps before the perturbed phases start from it. Ours, not the
            paper's; by default not where there is a companion.
        companion: In a one-sided rule, relax the unperturbed state as long as the perturbed one, from the same free
            state and under a perturbation of strength 0, as the paper's released code does. By default where pooling
            routes are followed: the linear response treats the free state as an equilibrium, which needs no companion.

    Raises:
        TypeError: A minimiser or the nudging is none.
        ValueError: beta is not a positive number, or a flag is neither true nor false.
    """

    perturbed: Minimizer | None = None
    beta: float | None = None
    nudging: Nudging = Nudging.CENTERED
    linear_response: bool = True
    settle: bool | None = None
    companion: bool | None = None

    second_field: ClassVar[str | None] = "perturbed"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta is not None and not (is_number(self.beta) and 0 < self.beta < math.inf):
            raise ValueError(f"beta is a positive number (the rule carries the sign), not {self.beta!r}.")
        object.__setattr__(self, "beta", as_plain(self.beta))
        if not isinstance(self.nudging, Nudging):
            raise TypeError(f"nudging is a timm_ebl.Nudging, such as Nudging.CENTERED, not {self.nudging!r}.")
        require_flag("linear_response", self.linear_response)
        for name in ("settle", "companion"):
            require_flag(name, getattr(self, name), optional=True)

    @abstractmethod
    def perturbation(self, output: Tensor, target: Tensor, beta: Tensor) -> Perturbation:
        """The perturbation of signed strength ``beta``, ``(B, 1)``, given the free output and the target."""

    @property
    def accompanies(self) -> bool:
        """Whether the unperturbed state goes on beside the perturbed one."""
        return self.companion is not False and not self.linear_response and 0 in self.nudging.value

    @property
    def settles(self) -> bool:
        """Whether the free state goes on by itself before the perturbed phases."""
        return not self.accompanies if self.settle is None else self.settle

    @property
    def draws(self) -> bool:
        return self.nudging is Nudging.RANDOM

    def fitted(self, model: EnergyModel) -> ContrastiveRule:
        rule = super().fitted(model)
        return rule if model.responds else replace(rule, linear_response=False)

    def __call__(
        self, model: EnergyModel, x: Tensor, y: Tensor, start: State | None = None, signs: Tensor | None = None
    ) -> RuleOutput:
        require_energy(model)
        rule = self.fitted(model)
        return replayed_step(rule, model, x, y, start, signs) or rule.step(model, x, y, start, signs)

    def step(self, model: EnergyModel, x: Tensor, y: Tensor, start: State | None, signs: Tensor | None) -> RuleOutput:
        """What a call returns, the rule being `fitted`."""
        free = model.relax(x, start, minimizer=self.free)  # Equation 1
        target = wide(as_target(y, free.output))

        def perturb(output: Tensor, signs: Sequence[int | Tensor]) -> Perturbation:
            betas = [target.new_ones(len(target), 1) * (self.beta * sign) for sign in signs]
            return self.perturbation(output, target.repeat(len(signs), 1), torch.cat(betas))

        loss, pair = self.contrast(model, free, perturb, target.new_full((len(target),), 1 / len(target)), signs)
        return RuleOutput(loss, free.output, free, tuple(layer[-len(target) :] for layer in pair.state))

    def contrast(
        self,
        model: EnergyModel,
        free: Relaxation,
        perturb: Callable[[Tensor, Sequence[int | Tensor]], Perturbation],
        weights: Tensor,
        signs: Tensor | None = None,
    ) -> tuple[Tensor, Relaxation]:
        """Relax the two states and contrast their energies.

        Args:
            model: The network.
            free: Its free phase.
            perturb: ``perturb(output, signs)`` makes the perturbation of a batch that holds every sample once for each
                sign (-1, 0, 1 or `signs`), block after block, given the outputs that they start from, ``(nB, M)``.
            weights: ``w``, ``(B,)``.
            signs: For a random nudging that of each sample, ``(B,)``.

        Returns:
            ``sum_b w_b (E(theta, x_b, s_2) - E(theta, x_b, s_1)) / (beta_2 - beta_1)``, differentiable in the
            parameters and in the input of the free phase; and both states as one relaxation, ``s_1`` before ``s_2``.
            A free state without a gradient (`EnergyModel.rests`) is left out.

        Raises:
            ValueError: Rounding leaves nothing of beta, or there are no signs.
        """
        require_strength(self.beta, free.output.dtype)
        first, second = self.nudging.value
        if self.draws:
            require_signs(signs, weights)
            second = signs[:, None]
        rest = self._at_rest(model, free)
        with_rest = self.accompanies and not model.rests
        relaxed = [sign for sign in (first, second) if isinstance(sign, Tensor) or sign or with_rest]
        begin = rest.twice() if len(relaxed) == 2 else rest
        perturbation = perturb(begin.state[-1], relaxed)
        if self.linear_response:
            pair = model.respond(begin, perturbation, self.perturbed)
        else:
            pair = model.relax(begin.input, begin, perturbation, self.perturbed)
        # Equation 3 (cl), Equation 5 (p-ep, n-ep), Equation 6 (c-ep), Equation 8 (p-cpl, n-cpl), Equation 9 (c-cpl)
        weights = weights / ((signs if self.draws else second - first) * self.beta)
        if len(relaxed) == 1 and model.rests:
            return model.contrast(pair, -weights if first else weights), pair
        if len(relaxed) == 1:
            pair = Relaxation.pair(pair, rest) if first else Relaxation.pair(rest, pair)
        return model.contrast(pair, torch.cat([-weights, weights])), pair

    def _at_rest(self, model: EnergyModel, free: Relaxation) -> Relaxation:
        """The free state that the perturbed phases start from."""
        if model.rests or not self.settles:
            return free
        if self.linear_response:
            return model.settle(free, self.free)
        return model.relax(free.input, free, minimizer=(self.free or model.minimizer).further(SETTLING_SWEEPS))


@dataclass(frozen=True)
class EquilibriumPropagation(ContrastiveRule, Backward):
    """Equilibrium propagation: every layer relaxes under ``E + beta C`` (Equation 4; Theorems 2 and 3).

    As a `Backward` it propagates the gradient ``f`` of any loss in the layers. With ``f`` scaled to ``|f| = 1`` for
    each sample, and ``s_b`` the minimum of ``E(theta, x, s) + b <f, s>``:

        gradient = |f| (dE(s_2) - dE(s_1)) / (beta_2 - beta_1)

    in the parameters and the input alike, whatever the loss and its scale. Centred, it differs from the true gradient
    by ``O(beta^2)`` (Theorem 3). A Hopfield network's energy is quadratic between the bounds of its units, given the
    pooling routes: with the linear response and converged phases it is the true gradient, for any beta that moves no
    unit across a bound. A sample without a gradient contributes nothing.

    Attributes:
        damped: Update a nudged output by ``o <- u - beta dC/do``, ``u`` the drive into it, as the paper's released code
            does (``u - beta (o - y)``). By default it goes to the minimum at once, ``o <- (u + beta y) / (1 + beta)``:
            the same fixed point, to which short phases get nearer. A cost of unknown minimum always takes the step.
        cost: What is nudged by, as such or by name (`timm_ebl.rules.cost.list_costs`); the paper's squared error.
    """

    damped: bool = False
    cost: Cost = SQUARED_ERROR

    def __post_init__(self) -> None:
        super().__post_init__()
        require_flag("damped", self.damped)
        object.__setattr__(self, "cost", as_cost(self.cost))

    def check(self) -> None:
        if self.nudging is not Nudging.POSITIVE and (self.beta or 0) >= 1:
            raise ValueError(f"A negative nudge needs beta below 1, or the output has no minimum; got {self.beta!r}.")
        if self.damped and (self.beta or 0) >= 1:
            raise ValueError(f"A damped nudge needs beta below 1, or it does not converge; got {self.beta!r}.")

    def perturbation(self, output: Tensor, target: Tensor, beta: Tensor) -> Perturbation:
        require_strength(self.beta, output.dtype, below_1=self.nudging is not Nudging.POSITIVE)
        return self.cost.nudge(target, beta, self.damped)  # Equation 4

    def pullback(self, model: EnergyModel, free: Relaxation, forces: Sequence[Tensor | None]) -> Tensor:
        norm, rule = force_norm(forces), replace(self, beta=self.beta or model.force).fitted(model)
        step = rule.beta / norm.where(norm != 0, 1)

        def perturb(output: Tensor, signs: Sequence[int]) -> Perturbation:
            steps = [None if f is None else weigh(f, step) for f in forces]
            return Forced([None if f is None else torch.cat([sign * f for sign in signs]) for f in steps])

        return rule.contrast(model, free, perturb, norm)[0]


@dataclass(frozen=True)
class CoupledLearning(ContrastiveRule):
    """Coupled learning: the output is clamped a step of its way to the target (Equation 7).

    With ``beta = 1`` and positive nudging it is contrastive learning (Equation 2; Theorem 1).
    """

    def perturbation(self, output: Tensor, target: Tensor, beta: Tensor) -> Perturbation:
        return Clamped((1 - beta) * output + beta * target)  # Equation 7, and Equation 2 where beta is 1
