"""One way to learn, in a process of its own that measures when it is asked to.

A way has its own number of threads, its own memory and its own faults. It tells over a connection
how many samples a call has once it is ready, then answers each request by a round.
"""

from __future__ import annotations

import os
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import NoReturn

import torch
from torch import nn

from streamflow.bench.clock import measure, settle
from streamflow.bench.contestants import WayJob, open_contestant
from streamflow.bench.memory import peak_bytes
from streamflow.errors import StreamflowError

# At the first call of an optimizer torch imports its compiler, which takes seconds. Processes
# that are forked from one that has imported this module need not.
torch.optim.SGD([nn.Parameter(torch.zeros(1))]).zero_grad()


class WayError(StreamflowError, RuntimeError):
    """A way cannot be measured, or its process has ended; the message says why."""


def serve(connection: Connection, job: WayJob, log: Path) -> None:
    """Answer requests until there are no more.

    A request tells how many samples a call has, and for how many seconds to learn. The first one
    has the way built and settled, and is answered by the number of samples that a call has, which
    it need not know itself; each later one is answered by a `Round`. A `WayError` is the last
    answer.

    Args:
        connection: Brings the requests.
        job: The way to learn.
        log: What is printed goes to this file: the command's own output is for its reader alone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever has asked ends this process, too
    signal.signal(signal.SIGTERM, _leave)
    _print_to(log)
    torch.set_num_threads(job.num_threads)
    try:
        _answer(connection, job)
    except EOFError:
        pass
    except Exception as error:  # a network may fail in any way
        connection.send(WayError(told(error)))


def _answer(connection: Connection, job: WayJob) -> None:
    _warm_up()
    memory = peak_bytes()
    with open_contestant(job) as contestant:
        count, seconds = connection.recv()
        connection.send(settle(contestant, count, most=len(job.waiting), seconds=seconds))
        while True:
            count, seconds = connection.recv()
            connection.send(measure(contestant, count, seconds=seconds, memory=memory))


def told(error: BaseException) -> str:
    """Return an error in a line, with what caused it."""
    cause = error.__cause__
    text = str(error).strip().partition("\n")[0]
    if isinstance(error, StreamflowError):
        return f"{text}: {told(cause)}" if cause and told(cause) not in text else text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    """End in good order, so that a compiler under way ends, too."""
    sys.exit(1)


def _print_to(log: Path) -> None:
    """Let everything that this process prints go to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for printed in (1, 2):
        os.dup2(file, printed)
    os.close(file)


def _warm_up() -> None:
    """Load what torch loads at a first step, which is no network's own memory."""
    network = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters())
    network(torch.zeros(1, 1)).sum().backward()
    optimizer.step()
