"""How much memory a call needs, and memory kept for the next one."""

from __future__ import annotations

import ctypes
import platform
import weakref
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["LiveMemory", "keep_freed_memory", "peak_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt(3)


def keep_freed_memory() -> bool:
    """Have this process keep the memory that it frees, for its next allocations.

    A relaxation on a CPU makes and drops a few megabytes many times a second. The C library hands such blocks back to
    the system and asks for them again, and the system clears every page anew: up to a third of a training step.

    Returns:
        Whether it took effect: it does under glibc alone, that is on most Linux systems.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(parameter, 2**30) for parameter in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD))


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside it, while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.is_mkldnn:  # a packed weight, which has no storage
                self._count(tensor, id(tensor), tensor.numel() * tensor.element_size())
            elif isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._count(storage, storage._cdata, storage.nbytes())
        return result

    def _count(self, owner: object, key: int, size: int) -> None:
        if key in self.seen:
            return
        self.seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(owner, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.live -= size


def peak_memory(call: Callable[[], object], device: torch.device) -> float:
    """Megabytes of tensors that a call holds at most beside what there was before."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    with LiveMemory() as memory:
        call()
    return memory.peak / 2**20
