"""What a test leaves behind in its process."""

import gc
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import psutil

PLENTY = 60.0
"""Seconds that no wait takes unless something hangs."""


def what_is_held() -> dict[str, Counter[Any]]:
    """Return the threads, children, files and sockets of this process."""
    gc.collect()  # what earlier tests have dropped
    process = psutil.Process()
    return {
        "threads": Counter(threading.enumerate()),
        "children": Counter(process.children(recursive=True)),
        "files": Counter(file.path for file in process.open_files()),
        "sockets": Counter(str(item.laddr) for item in process.net_connections()),
        "descriptors": Counter({"all": process.num_fds()}),
    }


def traceless(main: Callable[[], Awaitable[None]]) -> None:
    """Run a coroutine in an event loop of its own, which leaves nothing behind."""
    run_and_join(main)  # what is made once in a process is made now
    before = what_is_held()
    run_and_join(main)
    after = what_is_held()
    assert {kind: found for kind in after if (found := after[kind] - before[kind])} == {}


def run_and_join(main: Callable[[], Awaitable[None]]) -> None:
    """Run a coroutine, and wait until its threads, which have been told so, have ended."""
    before = set(threading.enumerate())
    anyio.run(main)
    for thread in set(threading.enumerate()) - before:
        thread.join(PLENTY)
