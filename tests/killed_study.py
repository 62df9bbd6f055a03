"""Kills a study by SIGKILL at five moments: ``python killed_study.py UNDISTURBED KILLED ARGUMENTS..``.

First the study is left alone in the folder UNDISTURBED, which tells how long it takes. Then it is killed and taken up
again in the folder KILLED, and at last left to end. Its runs go on without it, or are killed with it, or one of them is
killed alone. Study and runs are forks of this process, so that they start in a fraction of a second.
"""

import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from forked import finish, start

from timm_ebl.tools.study import __main__ as study
from timm_ebl.tools.study import process

KILLS = ("all", "the study", "all", "the study", "a run")


class Fork:
    """In place of a `subprocess.Popen` that runs the training script."""

    def __init__(self, arguments, **_):
        (self.pid,) = start(*arguments[2:])
        self.returncode = None

    def poll(self):
        if self.returncode is None and os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            self.wait()
        return self.returncode

    def wait(self):
        if self.returncode is None:
            (self.returncode,) = finish([self.pid])
        return self.returncode

    def terminate(self):
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)


def lead():
    """A study that leads a group of processes, in which its runs stay when it has gone."""
    os.setpgrp()
    study.main()


def runs_of(child):
    """The runs of a study that go on."""
    return [run.pid for run in psutil.Process(child).children() if run.status() != psutil.STATUS_ZOMBIE]


def count_ended(folder):
    """How many cells have a result."""
    return len([*Path(folder).glob("runs/*/summary.json")])


def main():
    undisturbed, killed, *arguments = sys.argv[1:]
    torch.set_num_threads(1)
    process.subprocess.Popen = Fork
    begin = time.monotonic()
    statuses = finish(start(*arguments, "--output-dir", undisturbed, main=study.main))
    whole, moments = time.monotonic() - begin, random.Random(0)
    studies, reached = [], []
    for number, what in enumerate(KILLS, 1):
        (child,) = start(*arguments, "--output-dir", killed, main=lead)
        studies.append(child)
        end = time.monotonic() + moments.uniform(0, 2 * whole / len(KILLS))
        while (time.monotonic() < end and count_ended(killed) < number) or (what == "a run" and not runs_of(child)):
            time.sleep(0.01)
        reached.append((what, len(runs_of(child)), count_ended(killed)))
        if what == "all":
            for group in studies:
                with suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGKILL)
        else:
            os.kill(child if what == "the study" else runs_of(child)[0], signal.SIGKILL)
        statuses += finish([child])
    statuses += finish(start(*arguments, "--output-dir", killed, main=study.main))
    print(f"{whole:.1f} s, {statuses=}, kills, runs and ended cells then: {reached}")
    sys.exit(statuses != [0, *[-signal.SIGKILL] * 4, 1, 0])


if __name__ == "__main__":
    main()
