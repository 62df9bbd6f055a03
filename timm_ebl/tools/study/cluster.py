"""Running the cells of a study as jobs of a cluster, by submitit."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ...arguments import is_count
from ...errors import ConfigError
from . import process
from .folder import Status, StudyFolder
from .machine import most_jobs, run_here

if TYPE_CHECKING:
    from .grid import Cell

try:
    import submitit
except ImportError:
    submitit = None

__all__ = ["CellJob", "check_cluster", "submit"]

_DEFAULTS: Mapping[str, Any] = {"minutes": 240, "gpus": 1, "cpus": 4, "at_once": 8}
"""Time limit, GPUs and cores of a job, and how many jobs may run at once."""

_OTHERS = ("partition", "slurm")
"""The partition's name, and a mapping of other options of sbatch, such as an account."""

_MOST_TIMEOUTS = 1000
"""How often a job is queued again at its time limit."""


class CellJob:
    """A job that runs a cell; at the time limit, or when it has to make room, it saves its state and is queued again.

    Args:
        folder: The study's.
        cell: The cell.
    """

    def __init__(self, folder: StudyFolder, cell: Cell) -> None:
        self._folder, self._cell = folder, cell
        self._child: subprocess.Popen | None = None

    def __call__(self) -> str:
        """Run the cell, unless it has a result or another process is at work on it; returns its status."""
        claim = self._folder.claim(self._cell)
        status = self._folder.outcome(self._cell).status
        if claim is None:
            return str(status)
        try:
            if status is not Status.UNFINISHED:
                return str(status)
            self._child = process.start(self._folder, self._cell, claim)
        finally:
            os.close(claim)  # the process has its own
        return str(process.finish(self._folder, self._cell, self._child.wait()))

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Have the run save its state; what submitit is to queue in place of this job.

        submitit calls this in a handler of a signal, in the thread that waits for the run in `subprocess.Popen.wait`
        and holds that method's lock: it cannot be called here.
        """
        if self._child is not None:
            self._child.terminate()
            with suppress(ChildProcessError):
                os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOWAIT)
        return submitit.helpers.DelayedSubmission(CellJob(self._folder, self._cell))


def check_cluster(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the jobs are given, complete.

    Raises:
        ConfigError: submitit is not installed, or the recipe says something that cannot be used.
    """
    if submitit is None:
        raise ConfigError('Jobs of a cluster are submitted by submitit: pip install -e ".[cluster]".')
    for name, value in given.items():
        if name not in (*_DEFAULTS, *_OTHERS):
            known = ", ".join((*_DEFAULTS, *_OTHERS))
            raise ConfigError(f"The recipe's cluster has an unknown option {name!r}: the options are {known}.")
        if name in _DEFAULTS and not is_count(value, least=int(name != "gpus")):
            raise ConfigError(f"The recipe's cluster: {name} is a whole number, not {value!r:.80}.")
        if name == "partition" and not isinstance(value, str):
            raise ConfigError(f"The recipe's cluster: partition is a text, not {value!r:.80}.")
        if name == "slurm" and not isinstance(value, dict):
            raise ConfigError(f"The recipe's cluster: slurm is a mapping of options of sbatch, not {value!r:.80}.")
    return {**_DEFAULTS, **given}


def submit(
    folder: StudyFolder, cells: Sequence[Cell], name: str, given: Mapping[str, Any], say: Callable[[str], None]
) -> list[str]:
    """Submit the cells that have no result yet: to Slurm as an array, else to one process in the background.

    That process runs as many at once as the recipe says and there are cores for, in the time limit of all of them.

    A cell that is submitted twice is run once (`StudyFolder.claim`).

    Args:
        folder: The study's.
        cells: The cells.
        name: Name of the jobs.
        given: What the recipe says of the cluster.
        say: Prints a line.

    Returns:
        The ids of the jobs.

    Raises:
        ConfigError: submitit is not installed, or the recipe says something that cannot be used.
    """
    wanted = check_cluster(given)
    waiting = [cell for cell in cells if folder.outcome(cell).status is Status.UNFINISHED]
    if not waiting:
        return []
    slurm = all(map(shutil.which, ("sbatch", "srun")))
    executor = submitit.AutoExecutor(
        folder.path / "cells" / "jobs", "slurm" if slurm else "local", slurm_max_num_timeout=_MOST_TIMEOUTS
    )
    executor.update_parameters(name=name, cpus_per_task=wanted["cpus"], gpus_per_node=wanted["gpus"])
    if not slurm:
        jobs = min(wanted["at_once"], most_jobs(waiting))
        executor.update_parameters(timeout_min=wanted["minutes"] * len(waiting))
        job = executor.submit(run_here, folder, waiting, jobs, print)
        say(f"there is no Slurm here: process {job.job_id} runs {len(waiting)} cells, {jobs} at once")
        return [job.job_id]
    options = {"timeout_min": wanted["minutes"], "slurm_array_parallelism": wanted["at_once"]}
    options |= {"slurm_additional_parameters": wanted.get("slurm", {})}
    executor.update_parameters(**options, **({"slurm_partition": wanted["partition"]} if "partition" in wanted else {}))
    jobs = executor.submit_array([CellJob(folder, cell) for cell in waiting])
    say(f"submitted {len(jobs)} cells as jobs {jobs[0].job_id} to {jobs[-1].job_id}, {wanted['at_once']} at once")
    return [job.job_id for job in jobs]
