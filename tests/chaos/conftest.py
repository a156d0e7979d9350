"""A broker that the tests may stop, for those that need one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.kafka.server import Server, missing_tools, running_server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A real Kafka, for it must isolate transactions."""
    if missing_tools() and os.environ.get("STREAMFLOW_REQUIRE_KAFKA") != "1":
        pytest.skip("needs a broker that the tests can stop (java and mvn)")
    with running_server() as started:
        yield started
