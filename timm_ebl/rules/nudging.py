"""Which two states a contrastive rule compares, and signs at random."""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor

__all__ = ["Nudging", "random_signs", "require_signs"]


class Nudging(Enum):
    """Which two equilibria a rule contrasts, as multiples of beta: ``(state_1, state_2)``; 0 is the free one."""

    POSITIVE = (0, 1)
    NEGATIVE = (-1, 0)
    CENTERED = (-1, 1)
    RANDOM = (0, None)  # -1 or 1, drawn for each sample


def random_signs(count: int, generator: torch.Generator) -> Tensor:
    """A sign -1 or 1 for each of some samples, ``(B,)``, drawn from a generator on the CPU."""
    return torch.randint(2, (count,), generator=generator) * 2 - 1


def require_signs(signs: Tensor | None, samples: Tensor) -> None:
    """Refuse, by a ValueError, what is no sign for each sample of a batch."""
    if signs is None or signs.shape != samples.shape or signs.device != samples.device:
        raise ValueError(
            f"A random nudge needs a sign for each of the {len(samples)} samples, on their device: "
            "signs=timm_ebl.random_signs(len(x), generator)."
        )
