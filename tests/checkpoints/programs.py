"""Programs that write checkpoints and come to harm, run by the tests in processes of their own."""

import os
import random
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO

import numpy as np

from streamflow.checkpoints import reading
from streamflow.errors import CheckpointError
from tests.checkpoints.states import number_of, snapshot, store_at

LINES = 2000
"""More lines of the store than it runs for three checkpoints."""


def program(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a function of this module in a process of its own, to its end."""
    command = [sys.executable, "-m", __name__, name, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


def say(*words: object) -> None:
    """Tell the test."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def write_at_most(path: str, size_bytes: str) -> None:
    """Write one checkpoint, and one too large for the files that this process may write."""
    with store_at(Path(path)) as store:
        store.write(snapshot(1))
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(size_bytes), int(size_bytes)))
        try:
            store.write(snapshot(2))
        except CheckpointError as error:
            say(error)
        say(sorted(item.name for item in Path(path).iterdir()))


def hold(path: str) -> None:
    """Hold the lock until killed."""
    with store_at(Path(path)):
        say("held")
        sys.stdin.read()


def without_locks(path: str) -> None:
    """Open a store where the system has no locks."""
    sys.modules["fcntl"] = None  # type: ignore[assignment]
    try:
        with store_at(Path(path)):
            pass
    except CheckpointError as error:
        say(error)


def measure_memory(path: str) -> None:
    """Print by how many bytes writing 64 MiB raises the most memory, and what reading leaves."""
    import torch  # only this program needs it

    state = {"a": torch.ones(2**23), "b": np.ones(2**22)}
    with store_at(Path(path)) as store:
        store.write(snapshot(1, m={"a": torch.ones(1), "b": np.ones(1)})).snapshot()
        before = most_bytes()
        written = store.write(snapshot(2, m=state))
        say(most_bytes() - before)
        before = own_bytes()
        held = written.snapshot()
        say(own_bytes() - before)
        assert len(held.states["m"]["a"]) == 2**23


def most_bytes() -> int:
    """Return the most memory that this process has ever used."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def own_bytes() -> int:
    """Return the memory that this process uses now, without files mapped into it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


def die_often(path: str, kills: str, seed: str) -> None:
    """Write checkpoints in children that are killed, each going on where the last one died.

    Every second one is killed at one of its lines, the others while they run. Prints for each child
    the number it began with, the last one that it knew to be safe, and the one that is found.
    """
    folder, draw = Path(path), random.Random(int(seed))
    for index in range(int(kills)):
        began = found_number(folder)
        said = die_at_line(folder, draw) if index % 2 else die_while_running(folder, draw)
        say(began, max(said, default=began), found_number(folder))


def found_number(folder: Path) -> int:
    """Return the number of the newest checkpoint, all of which is read; 0 if there is none."""
    found = reading.newest(folder) if folder.exists() else None
    return number_of(found.snapshot()) if found else 0


def die_at_line(folder: Path, draw: random.Random) -> list[int]:
    """Let a child write until it has run some number of lines of the store."""
    last, lines = draw.randrange(LINES), count()

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        if "streamflow/checkpoints" not in frame.f_code.co_filename:
            return None
        if event == "line" and next(lines) == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    with dying_child(folder, trace) as (_, pipe):
        return [int(line) for line in pipe]


def die_while_running(folder: Path, draw: random.Random) -> list[int]:
    """Let a child write, and kill it some time after some number of checkpoints."""
    with dying_child(folder, None) as (child, pipe):
        said = [int(line) for line in islice(pipe, draw.randrange(3))]
        for _ in range(draw.randrange(300_000)):  # some time, in which the child goes on
            pass
        os.kill(child, signal.SIGKILL)
        return said + [int(line) for line in pipe]


@contextmanager
def dying_child(folder: Path, trace: Any) -> Iterator[tuple[int, TextIO]]:
    """Fork a child that writes checkpoints for ever; give its id and what it says."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        sys.settrace(trace)
        write_for_ever(folder, writer)
    os.close(writer)
    with open(reader, encoding="ascii") as pipe:
        yield child, pipe
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), status


def write_for_ever(folder: Path, writer: int) -> NoReturn:
    """Go on from the newest checkpoint, and say the number of each one that is safe."""
    try:
        with store_at(folder, keep=2) as store:
            latest = store.latest()
            number = number_of(latest.snapshot()) if latest else 0
            while True:
                number += 1
                store.write(snapshot(number))
                os.write(writer, b"%d\n" % number)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
