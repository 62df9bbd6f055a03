"""Kills a run by SIGKILL at random moments: ``python killed.py KILLS UNDISTURBED KILLED ARGUMENTS..``.

First the run is left alone in the folder UNDISTURBED, which tells how long it takes. Then it is killed and taken up
again in the folder KILLED, at moments drawn from its start-up and a share of its work, and at last left to end. No kill
comes later than its share of the epochs, so that each finds the run at work, however long the first took.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from forked import finish, start

from timm_ebl.training.run_folder import list_checkpoints, place_of


def epoch(folder):
    """The epoch of the last checkpoint in a run's folder; 0 where there is none."""
    saved = Path(folder, "checkpoints")
    return max((place_of(name)[0] for name in list_checkpoints(saved)), default=0) if saved.is_dir() else 0


def main():
    kills, undisturbed, killed, *command = sys.argv[1:]
    kills, moments = int(kills), random.Random(0)
    begin = time.monotonic()
    children = start(*command, "--output-dir", undisturbed)
    while not epoch(undisturbed):
        time.sleep(0.01)
    start_up = time.monotonic() - begin
    statuses = finish(children)
    work = time.monotonic() - begin - start_up

    for kill in range(kills):
        (child,) = start(*command, "--output-dir", killed, "--resume")
        moment = time.monotonic() + moments.uniform(0, start_up + 1.5 * work / kills)
        while time.monotonic() < moment and epoch(killed) <= kill * epoch(undisturbed) // (kills + 1):
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
        statuses += finish([child])
    reached = epoch(killed)
    statuses += finish(start(*command, "--output-dir", killed, "--resume"))
    print(f"{kills} kills, start-up {start_up:.1f} s, work {work:.1f} s, reached epoch {reached}, {statuses=}")
    sys.exit(statuses != [0, *[-signal.SIGKILL] * kills, 0])


if __name__ == "__main__":
    main()
