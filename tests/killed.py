"""Kills a run by SIGKILL at random moments and takes it up again: ``python killed.py KILLS ARGUMENTS..``.

Every run is a fork of this process, which has only imported what it needs: a run starts in a fraction of a second.
"""

import os
import random
import signal
import sys
import time

from runs import train


def start(command):
    child = os.fork()
    if child:
        return child
    try:
        sys.stdout = sys.stderr = open(os.devnull, "w")
        train(*command)
    except BaseException as error:
        os.write(1, f"{type(error).__name__}: {error}\n".encode())
        os._exit(1)
    os._exit(0)


def main():
    kills, *command = sys.argv[1:]
    moments = random.Random(0)
    begun, done, whole = time.monotonic(), 0, None
    while done < int(kills):
        child = start([*command, "--resume"])
        time.sleep(moments.uniform(0.0, 2.5))
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            sys.exit(f"the run ended before the kill {done + 1}, with status {status}" if status else "ended too soon")
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        done += 1
    _, status = os.waitpid(start([*command, "--resume"]), 0)
    print(f"{done} kills, exit status {status}, {time.monotonic() - begun:.0f} s")
    sys.exit(1 if status else 0)


if __name__ == "__main__":
    main()
