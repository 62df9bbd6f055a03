"""How many CPU threads a process uses."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from ..arguments import positive_count
from ..errors import ConfigError

__all__ = ["add_threads_option", "cpu_quota", "set_threads"]


def add_threads_option(parser: argparse.ArgumentParser) -> None:
    """Offer ``--threads``, whose number is for `set_threads`; ``None`` where it is not given."""
    parser.add_argument("--threads", type=positive_count, help="CPU threads (default: PyTorch's)")


def cpu_quota(groups: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Number of cores whose time this process's container may use (``docker run --cpus``), ``None`` for all.

    Args:
        groups: Where Linux shows the container's control group, of version 2 or 1.
    """
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join((groups / name).read_text() for name in names).split()
            return None if quota in ("max", "-1") else int(quota) / int(period)
        except (OSError, ValueError):
            continue
    return None


def set_threads(threads: int | None, processes: int = 1) -> None:
    """Give this process its threads; ``accelerate launch`` leaves each process a single one.

    Args:
        threads: Number of threads; ``None`` for an equal share of the cores, or of the container's quota of them.
        processes: Number of processes on this machine.

    Raises:
        ConfigError: There are fewer cores: that many threads would hold each other up.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if threads is None:
        threads = max(1, int(min(cores, cpu_quota() or cores)) // processes)
    if threads > cores:
        raise ConfigError(f"--threads is at most {cores}, the CPU cores that this process may use, not {threads}.")
    torch.set_num_threads(threads)
