"""The strength of a perturbation, and what rounding leaves of it."""

from __future__ import annotations

import torch

__all__ = ["require_strength"]

ROUNDINGS = 1024
"""How many times rounding a perturbation is to be at least: three digits of what it does are left."""


def require_strength(beta: float, dtype: torch.dtype, below_1: bool = False) -> None:
    """Refuse a strength of which rounding leaves nothing.

    Args:
        beta: The strength, a positive number.
        dtype: Type of the states; contrasted ones are kept in at least 32 bits.
        below_1: Whether ``1 - beta`` is divided by.

    Raises:
        ValueError: It, its inverse or ``1 - beta`` is too near to 0.
    """
    wide = torch.promote_types(dtype, torch.float32)
    least = ROUNDINGS * torch.finfo(wide).eps
    here = f"In {str(wide).removeprefix('torch.')}"
    if not least <= beta <= 1 / least:
        raise ValueError(f"{here}, rounding leaves a beta of {least:.1e} to {1 / least:.1e} its digits, not {beta!r}.")
    if below_1 and 1 - beta < least:
        raise ValueError(f"{here}, a negative nudge needs beta below 1 - {least:.1e}; got {beta!r}.")
