"""The states of the global generators of random numbers."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

__all__ = ["random_state", "set_random_state"]


def random_state(device: torch.device) -> dict[str, Any]:
    """Those of Python, NumPy, PyTorch and its device, in types that load without unpickling objects."""
    name, keys, *rest = np.random.get_state()
    accelerator = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state()
    numpy = (name, torch.from_numpy(keys.astype(np.int64)), *rest)
    return {"python": random.getstate(), "numpy": numpy, "torch": torch.get_rng_state(), "device": accelerator}


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Put the generators into the states that `random_state` found."""
    name, keys, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type != "cpu" and state["device"] is not None:
        torch.get_device_module(device).set_rng_state(state["device"])
