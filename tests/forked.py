"""Commands, by default the training script, that start in a fraction of a second: forks of what has imported them."""

import io
import os
import socket
import sys

from runs import train_ebl


def start(*command, processes=1, main=train_ebl.main):
    """Start a command on some processes; returns their ids."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    children = []
    for rank in range(processes):
        child = os.fork()
        if not child:
            _run(main, command, address | {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(processes)})
        children.append(child)
    return children


def _run(main, command, environment):
    if environment["WORLD_SIZE"] != "1":
        os.environ |= environment
    os.environ["ACCELERATE_USE_CPU"] = "1"
    sys.argv = ["train_ebl.py", *map(str, command)]
    sys.stdout = io.StringIO()
    status = 0
    try:
        main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException as failure:
        print(f"{type(failure).__name__}: {failure}", file=sys.stderr)
        status = 1
    os._exit(status)


def finish(children):
    """Exit statuses of the processes of a run, once they have ended."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
