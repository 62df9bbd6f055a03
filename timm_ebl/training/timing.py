"""Seconds that calls take, and times in words."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

__all__ = ["by_turns", "duration", "seconds", "steady_seconds", "synchronize"]


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call: of the wall clock, or, on a GPU, between two events of its stream."""
    if device.type == "cuda":
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        call()
        ended.record()
        ended.synchronize()
        return begun.elapsed_time(ended) / 1e3
    synchronize(device)
    begin = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - begin


def steady_seconds(call: Callable[[], object], device: torch.device, least: float = 0.5) -> float:
    """Seconds of a call among its like: a short one is repeated for so many seconds, and the first is left out."""
    first, times = seconds(call, device), []
    while first + sum(times) < least:
        times.append(seconds(call, device))
    return statistics.median(times or [first])


def by_turns(calls: Sequence[Callable[[], None]], device: torch.device, turns: int, times: int = 20) -> list[float]:
    """Seconds of each of several calls, each made many times in a turn, the median over the turns after the first."""

    def several(call: Callable[[], None]) -> None:
        for _ in range(times):
            call()

    found = [[seconds(partial(several, call), device) / times for call in calls] for _ in range(turns + 1)]
    return [statistics.median(column) for column in zip(*found[1:], strict=True)]


def duration(seconds: float) -> str:
    """A time in words: seconds up to 99, minutes, or hours and minutes."""
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{seconds:.0f} s" if seconds < 99.5 else f"{hours} h {minutes} min" if hours else f"{minutes} min"
