"""Functions as `torch.compile` makes them, each form of their tensors by itself.

PyTorch keeps few versions of a function, and computes without the compiler beyond them: so each form is another
function to it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache
from types import FunctionType
from typing import Any

import torch

__all__ = ["compiled"]

MOST_FORMS = 64


@lru_cache(MOST_FORMS)
def compiled(function: Callable[..., Any], form: Hashable) -> Callable[..., Any]:
    """A function, compiled for what is described by ``form``, in which shapes are numbers."""
    code, names = function.__code__.replace(), function.__globals__
    twin = FunctionType(code, names, function.__name__, function.__defaults__, function.__closure__)
    return torch.compile(twin, dynamic=False)
