"""Counting the operations of a call."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["counted_flops"]


def counted_flops(call: Callable[[], object]) -> int:
    """Floating-point operations of the products that a call makes, as `FlopCounterMode` counts them.

    It knows no packed product, so that none are packed.
    """
    with warnings.catch_warnings(), FlopCounterMode(display=False) as counter:
        warnings.simplefilter("ignore")  # that oneDNN has no TF32 here
        with torch.backends.mkldnn.flags(enabled=False):
            call()
    return counter.get_total_flops()
