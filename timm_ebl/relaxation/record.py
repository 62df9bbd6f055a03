"""The record of a relaxation: where it ended, and how."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from ..energy.functional import State
from ..energy.interaction import Drive, cat_known, of_samples
from ..kernels.prepared import Prepared

__all__ = ["Relaxation", "Stamp", "stamp"]

Stamp = tuple[tuple[Tensor, int], ...]


@dataclass(frozen=True)
class Relaxation:
    """Where a relaxation ended, and how.

    Attributes:
        input: The input ``x`` that was relaxed, ``(B, ..)``.
        state: The layers ``(s_1, .., o)``.
        energy: ``E(theta, x, state)``, ``(B,)``, without the cost of a perturbation; ``None`` after a `Response` and
            after `EnergyModel.settle`, which do not need it (`EnergyModel.energy` tells).
        residual: Relative size of each sample's last update, ``|s - s_previous| / |s|`` over all layers, ``(B,)``;
            ``None`` after `EnergyModel.settle`.
        sweeps: Sweeps used; the most that any sample did, where a tolerance let some end earlier.
        tolerance: The residual asked for; ``None`` if the number of sweeps was fixed.
        output: The answer, ``(B, M)``: the output layer at its minimum given the layers below as they ended, whose last
            updates the output layer of `state` may not have seen. That layer itself after a `Response` and after
            `EnergyModel.settle`.
        drives: The drive into each layer at `state`, for whoever goes on from here, without a value where nothing
            needed it; empty if they are not known. After `EnergyModel.settle` the routes are those of the last updates.
        potentials: The last update of each layer without its bounds, ``state = clip(potentials)``, once for all copies.
            Beyond the bounds they are the field's, whatever the over-relaxation. Empty if a `Response` cannot start
            here.
        copies: How many times the batch holds every sample, block after block.
        stamp: What the drives were computed from: input and parameters, each with its version (`stamp`).
        prepared: What the interactions prepared for the relaxation (`Interaction.prepare`), for the same use.
        versions: How often each layer was written to in place when the relaxation ended (`intact`).

    A copy or a pickle has what was found, without what only serves to go on from here.
    """

    input: Tensor
    state: State
    energy: Tensor | None
    residual: Tensor | None
    sweeps: int
    tolerance: float | None = None
    output: Tensor | None = None
    drives: tuple[Drive, ...] = field(default=(), repr=False)
    potentials: tuple[Tensor, ...] = field(default=(), repr=False)
    copies: int = 1
    stamp: Stamp = field(default=(), repr=False)
    prepared: tuple[Prepared | None, ...] = field(default=(), repr=False)
    versions: tuple[int, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if self.output is None:
            object.__setattr__(self, "output", self.state[-1])
        if not self.versions:
            object.__setattr__(self, "versions", versions(self.state))

    def __reduce__(self) -> tuple[object, ...]:
        found = (self.input, self.state, self.energy, self.residual, self.sweeps, self.tolerance, self.output)
        return partial(Relaxation, copies=self.copies), found

    @property
    def intact(self) -> bool:
        """Whether the layers are as the relaxation left them: written to in place, they have other drives."""
        return self.versions == versions(self.state)

    @property
    def converged(self) -> Tensor:
        """Whether each sample's residual is within the tolerance, ``(B,)``; 1e-3 if none was asked for.

        Raises:
            ValueError: The residual was not measured.
        """
        if self.residual is None:
            raise ValueError(
                "Settling measures no residual, so it is not known whether this state has converged: relax one sweep "
                "from it to know, model.relax(x, start, minimizer=Minimizer(sweeps=1))."
            )
        return self.residual <= (1e-3 if self.tolerance is None else self.tolerance)

    def repeat(self, times: int) -> Relaxation:
        """The same relaxation of a batch that holds every sample ``times`` times, block after block."""
        if times == 1:
            return self
        bare = replace(self, potentials=())
        return replace(Relaxation.of_copies([bare] * times), potentials=self.potentials)

    @classmethod
    def of_copies(cls, relaxations: Sequence[Relaxation]) -> Relaxation:
        """Several relaxations of one batch as one, block after block: 16 bits keep the digits of their difference."""
        first, inputs = relaxations[0], torch.cat([r.input for r in relaxations])
        copies = sum(r.copies for r in relaxations)
        known = [r.drives if r.intact else () for r in relaxations]
        return cls(
            input=inputs,
            state=tuple(torch.cat(layers) for layers in zip(*(r.state for r in relaxations), strict=True)),
            energy=cat_known([r.energy for r in relaxations]),
            residual=cat_known([r.residual for r in relaxations]),
            sweeps=max(r.sweeps for r in relaxations),
            tolerance=first.tolerance,
            output=torch.cat([r.output for r in relaxations]),
            drives=tuple(Drive.cat(drives) for drives in zip(*known, strict=True)),
            copies=copies,
            stamp=stamp([inputs]) + first.stamp[1:],
            prepared=tuple(part and part.of_copies(copies) for part in first.prepared),
        )

    def select(self, samples: Tensor) -> Relaxation:
        """The relaxation of some samples of the batch, by a mask ``(B / copies,)``: copies stay together."""
        rows = samples.repeat(self.copies)
        x = self.input[rows]
        return replace(
            self,
            input=x,
            state=tuple(layer[rows] for layer in self.state),
            energy=None if self.energy is None else self.energy[rows],
            residual=None if self.residual is None else self.residual[rows],
            output=self.output[rows],
            drives=tuple(drive.select(samples) for drive in self.drives) if self.intact else (),
            versions=(),
            potentials=tuple(of_samples(layer, samples) for layer in self.potentials),
            stamp=stamp([x]) + self.stamp[1:],
        )


def stamp(tensors: Iterable[Tensor]) -> Stamp:
    """The tensors, each with a number that grows whenever it is written to in place (but not through ``.data``)."""
    tensors = tuple(tensors)
    return tuple(zip(tensors, versions(tensors), strict=True))


def versions(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    """For each tensor a number that grows whenever it is written to in place."""
    return tuple(0 if tensor.is_inference() else tensor._version for tensor in tensors)
