"""Kills a run by SIGKILL at random moments: ``python killed.py KILLS UNDISTURBED KILLED ARGUMENTS..``.

First the run is left alone in the folder UNDISTURBED, which tells how long it takes. Then it is killed and taken up
again in the folder KILLED, at moments drawn from its start-up and a share of its work, and at last left to end.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from forked import finish, start


def main():
    kills, undisturbed, killed, *command = sys.argv[1:]
    kills, moments = int(kills), random.Random(0)
    begin = time.monotonic()
    children = start(*command, "--output-dir", undisturbed)
    while not any(Path(undisturbed, "checkpoints").glob("epoch-*")):
        time.sleep(0.01)
    start_up = time.monotonic() - begin
    statuses = finish(children)
    work = time.monotonic() - begin - start_up

    for _ in range(kills):
        (child,) = start(*command, "--output-dir", killed, "--resume")
        time.sleep(moments.uniform(0, start_up + 1.5 * work / kills))
        os.kill(child, signal.SIGKILL)
        statuses += finish([child])
    reached = max(path.name for path in Path(killed, "checkpoints").iterdir())
    statuses += finish(start(*command, "--output-dir", killed, "--resume"))
    print(f"{kills} kills, start-up {start_up:.1f} s, work {work:.1f} s, reached {reached}, {statuses=}")
    sys.exit(statuses != [0, *[-signal.SIGKILL] * kills, 0])


if __name__ == "__main__":
    main()
