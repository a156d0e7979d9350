"""What a test leaves behind in its process."""

import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import psutil

PLENTY = 60.0
"""Seconds that no wait takes unless something hangs."""


def what_is_held() -> tuple[Any, ...]:
    """Return the threads, children, files and sockets of this process."""
    process = psutil.Process()
    return (
        set(threading.enumerate()),
        process.children(recursive=True),
        sorted(file.path for file in process.open_files()),
        sorted(str(item.laddr) for item in process.net_connections()),
        process.num_fds(),
    )


def traceless(main: Callable[[], Awaitable[None]]) -> None:
    """Run a coroutine in an event loop of its own, after which all is as before."""
    run_and_join(main)  # what is made once in a process is made now
    before = what_is_held()
    run_and_join(main)
    assert what_is_held() == before


def run_and_join(main: Callable[[], Awaitable[None]]) -> None:
    """Run a coroutine, and wait until its threads, which have been told so, have ended."""
    before = set(threading.enumerate())
    anyio.run(main)
    for thread in set(threading.enumerate()) - before:
        thread.join(PLENTY)
