"""Functions of tensors that a device records once and then replays: one launch where there were hundreds.

On a CUDA device a recording is a CUDA graph: it holds the launches of one call with the addresses that they read and
write. A replay therefore follows what is written to the parameters in place, as optimisers do, and sees nothing else:
not what the host decides meanwhile, nor a parameter that has moved. A recording is kept for each form of the inputs,
each place of the parameters and each autocast, the last `MOST_KEPT` of them for a network. They share their memory:
what a replay returns is copied before another one can run. Settings of `torch.backends` stay as they were recorded.
"""

from __future__ import annotations

import threading
import warnings
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .autocast import has_autocast
from .native import is_func_transform_active

__all__ = ["RECORDERS", "Recording", "replayed", "without_recordings"]

MOST_KEPT = 8
"""Recordings of a network: those of training and evaluation, each for whole and for last batches, and some more."""

WARM_UPS = 3
"""Calls before a recording, in which libraries choose and compile their kernels: PyTorch's own number."""


class Recording(ABC):
    """A function of tensors with its inputs and its results at fixed places.

    Args:
        function: The function. It returns a tensor, or tuples of tensors and of what is the same in every call.
        inputs: Its inputs, of one device.
        other: A recording to share memory with.
    """

    def __init__(self, function: Callable[..., Any], inputs: Sequence[Tensor], other: Recording | None) -> None:
        self.inputs = [x.clone() for x in inputs]
        self._lock = threading.RLock() if other is None else other._lock  # they write to the same memory
        self.results = self.record(function, other)

    @abstractmethod
    def record(self, function: Callable[..., Any], other: Recording | None) -> Any:
        """Record a call with `inputs`; where its results will be."""

    @abstractmethod
    def replay(self) -> None:
        """Compute `results` from `inputs` again."""

    def __call__(self, inputs: Sequence[Tensor]) -> Any:
        """The results for other inputs, copied."""
        with self._lock:
            for place, x in zip(self.inputs, inputs, strict=True):
                place.copy_(x)
            self.replay()
            return _copied(self.results)


class _CudaGraph(Recording):
    def record(self, function: Callable[..., Any], other: Recording | None) -> Any:
        device, self.graph = self.inputs[0].device, torch.cuda.CUDAGraph()
        present, side = torch.cuda.current_stream(device), _side_stream(device)
        pool = None if other is None else other.graph.pool()
        with torch.cuda.device(device), torch.cuda.stream(present):  # to return to, should the recording fail
            side.wait_stream(present)
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    function(*self.inputs)
            present.wait_stream(side)
            torch.clear_autocast_cache()  # of weights that were cast before: a replay casts them anew
            try:
                # Other threads may pin images of coming batches meanwhile.
                with torch.cuda.graph(self.graph, pool, side, capture_error_mode="thread_local"):
                    return function(*self.inputs)
            finally:
                torch.clear_autocast_cache()

    def replay(self) -> None:
        with torch.cuda.device(self.inputs[0].device):
            self.graph.replay()


RECORDERS: dict[str, type[Recording]] = {"cuda": _CudaGraph}
"""What records on each type of device; elsewhere nothing does."""

_MAKING = threading.RLock()

_KEPT: WeakKeyDictionary[nn.Module, OrderedDict[Hashable, Recording | None] | None] = WeakKeyDictionary()


def replayed(network: nn.Module, what: Hashable, function: Callable[..., Any], inputs: Sequence[Tensor]) -> Any:
    """The results of a function by a replay, from the second call in a form on; else ``None``, and it is to be called.

    Nothing is replayed while others record, trace, compile or transform the call. A function that cannot be recorded
    gives a warning, and nothing of its network is recorded any more.

    Args:
        network: What the function computes with; it reads the parameters and buffers of this network alone.
        what: What else the results depend on, equal for equal functions.
        function: As for `Recording`. It reads no values of tensors and uses no autograd.
        inputs: Its inputs; another type, shape or layout is another form.
    """
    recorder = RECORDERS.get(inputs[0].device.type)
    if recorder is None or not all(type(x) is Tensor for x in inputs) or _is_observed():
        return None
    device = inputs[0].device.type
    autocast = torch.get_autocast_dtype(device) if has_autocast(device) else None
    places = (*((p.data_ptr(), *_form(p)) for part in (network.parameters(), network.buffers()) for p in part),)
    key = what, autocast, places, tuple(map(_form, inputs))
    with torch.inference_mode(False), torch.no_grad():
        with _MAKING:
            recording = _recording(recorder, network, key, function, inputs)
        return recording and recording(inputs)


def _recording(
    recorder: type[Recording], network: nn.Module, key: Hashable, function: Callable[..., Any], inputs: Sequence[Tensor]
) -> Recording | None:
    """The recording of a form from its second call on; ``None`` in the first, and where there can be none."""
    kept = _KEPT.setdefault(network, OrderedDict())
    if kept is None:
        return None
    if key not in kept:  # the first call may be the only one
        kept[key] = None
        if len(kept) > MOST_KEPT:
            kept.popitem(last=False)
        return None
    kept.move_to_end(key)
    if kept[key] is None:
        try:
            kept[key] = recorder(function, inputs, next(filter(None, kept.values()), None))
        except RuntimeError as error:
            _KEPT[network] = None
            reason = str(error).partition("\n")[0]
            warnings.warn(f"What is compiled runs without a recording: {reason}", RuntimeWarning, stacklevel=4)
            return None
    return kept[key]


@contextmanager
def without_recordings() -> Iterator[None]:
    """A context, or a decorator, without recordings: compiled sweeps are launched one by one."""
    recorders = dict(RECORDERS)
    RECORDERS.clear()
    try:
        yield
    finally:
        RECORDERS.update(recorders)


def _is_observed() -> bool:
    captured = torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
    return captured or torch.jit.is_tracing() or torch.compiler.is_compiling() or is_func_transform_active()


def _form(x: Tensor) -> tuple[Hashable, ...]:
    return x.device, x.dtype, x.shape, x.stride(), x.requires_grad


def _copied(results: Any) -> Any:
    if isinstance(results, Tensor):
        return results.clone()
    return tuple(map(_copied, results)) if isinstance(results, (tuple, list)) else results


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
