from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.zeromq.peers import short_folder


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where sockets lie."""
    with short_folder() as path:
        yield path
