"""Kills a run by SIGKILL at random moments: ``python killed.py KILLS UNDISTURBED KILLED ARGUMENTS..``.

First the run is left alone in the folder UNDISTURBED, which tells how long it takes. Then it is killed and taken up
again in the folder KILLED, at moments drawn from its start-up and a share of its work. Every run is a fork of this
process, which has only imported what it needs, so that a run starts in a fraction of a second.
"""

import io
import os
import random
import signal
import sys
import time
from pathlib import Path

from runs import train


def start(*command):
    child = os.fork()
    if child:
        return child
    error = 0
    sys.stdout = io.StringIO()
    try:
        train(*command)
    except BaseException as failure:
        print(f"{type(failure).__name__}: {failure}", file=sys.stderr)
        error = 1
    os._exit(error)


def finish(*command):
    if os.waitpid(start(*command), 0)[1]:
        sys.exit("a run that was left alone has failed")


def main():
    kills, undisturbed, killed, *command = sys.argv[1:]
    kills, moments = int(kills), random.Random(0)
    begin = time.monotonic()
    child = start(*command, "--output-dir", undisturbed)
    while not any(Path(undisturbed, "checkpoints").glob("epoch-*")):
        time.sleep(0.01)
    start_up = time.monotonic() - begin
    if os.waitpid(child, 0)[1]:
        sys.exit("the undisturbed run has failed")
    work = time.monotonic() - begin - start_up

    for _ in range(kills):
        child = start(*command, "--output-dir", killed, "--resume")
        time.sleep(moments.uniform(0, start_up + 1.5 * work / kills))
        if os.waitpid(child, os.WNOHANG)[0]:
            sys.exit("the run has ended before it could be killed")
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    checkpoints = sorted(path.name for path in Path(killed, "checkpoints").iterdir())
    finish(*command, "--output-dir", killed, "--resume")
    print(f"{kills} kills, start-up {start_up:.1f} s, work {work:.1f} s, reached {checkpoints[-1]}")


if __name__ == "__main__":
    main()
