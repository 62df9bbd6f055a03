"""What is no input of a network."""

from __future__ import annotations

from torch import Tensor

from ..kernels.native import is_batched

__all__ = ["NO_MAP", "require_input"]

NO_MAP = "A relaxation cannot be mapped by torch.func.vmap: give the network the whole batch."
"""What is said where a batch is made of single images by `torch.func.vmap`."""


def require_input(x: object) -> None:
    """Refuse what is no tensor of real numbers.

    Raises:
        TypeError: It is none.
        RuntimeError: `torch.func.vmap` is under way.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"The input is a tensor of images, not {type(x).__name__}.")
    if is_batched(x):
        raise RuntimeError(NO_MAP)
    if not x.is_floating_point():
        raise TypeError(f"The input is a tensor of real numbers, not of {x.dtype}: scale and normalise the images.")
