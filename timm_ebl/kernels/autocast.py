"""The automatic mixed precision (autocast) that is switched on at present."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

__all__ = ["has_autocast", "present_autocast", "without_autocast"]


def has_autocast(device: str) -> bool:
    """Whether autocast is on for a type of device."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def present_autocast(device: str) -> AbstractContextManager:
    """The present autocast of a type of device, as a context to enter again later."""
    if not torch.amp.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(
        device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device), torch.is_autocast_cache_enabled()
    )


def without_autocast(device: str) -> AbstractContextManager:
    """A context without autocast; it costs nothing where autocast is off already."""
    return torch.autocast(device, enabled=False) if has_autocast(device) else nullcontext()
