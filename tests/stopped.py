"""Stops a run of two processes by SIGTERM and takes it up again: ``python stopped.py WHOLE STOPPED ARGUMENTS..``.

The same run is left alone in the folder WHOLE.
"""

import os
import signal
import sys
import time
from pathlib import Path

from forked import finish, start


def main():
    whole, stopped, *command = sys.argv[1:]
    statuses = finish(start(*command, "--output-dir", whole, processes=2))
    children = start(*command, "--output-dir", stopped, processes=2)
    while not any(Path(stopped, "checkpoints").glob("epoch-*")):
        time.sleep(0.01)
    os.kill(children[1], signal.SIGTERM)
    statuses += finish(children)
    statuses += finish(start(*command, "--output-dir", stopped, "--resume", processes=2))
    print(f"{statuses=}")
    sys.exit(statuses != [0, 0, *[128 + signal.SIGTERM] * 2, 0, 0])


if __name__ == "__main__":
    main()
