"""A broker for the tests: one that is there, else a real one, else the embedded one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from streamflow_connectors.demo.embedded_kafka import EmbeddedKafka
from tests.kafka.clients import Cluster
from tests.kafka.server import Server, missing_tools, running_server

NEEDS_REAL = "needs a real Kafka (java and mvn, or STREAMFLOW_TEST_KAFKA=host:port)"


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The broker with what the tests know about it."""
    if address := os.environ.get("STREAMFLOW_TEST_KAFKA"):
        yield Cluster(address)
        return
    is_required = os.environ.get("STREAMFLOW_REQUIRE_KAFKA") == "1"
    with ExitStack() as stack:
        if missing_tools() and not is_required:
            embedded = stack.enter_context(EmbeddedKafka())
            yield Cluster(embedded.address, embedded=embedded)
        else:
            server = stack.enter_context(running_server())
            yield Cluster(server.address, sasl_address=server.sasl_address)


@pytest.fixture
def broker(cluster: Cluster) -> str:
    """Where the broker listens, as host:port."""
    return cluster.address


@pytest.fixture
def real_broker(cluster: Cluster) -> str:
    """Likewise, of a real Kafka; skips without one."""
    if cluster.embedded is not None:
        pytest.skip(NEEDS_REAL)
    return cluster.address


@pytest.fixture
def sasl_broker(cluster: Cluster) -> str:
    """Where the broker wants a login; skips where it was not started by the tests."""
    if not cluster.sasl_address:
        pytest.skip("needs a broker that the tests have started (java and mvn)")
    return cluster.sasl_address


@pytest.fixture
def server() -> Iterator[Server]:
    """A real Kafka of the test's own, to stop and start again."""
    if missing_tools() and os.environ.get("STREAMFLOW_REQUIRE_KAFKA") != "1":
        pytest.skip("needs a broker that the tests can stop (java and mvn)")
    with running_server() as started:
        yield started


@pytest.fixture
def faulty() -> Iterator[EmbeddedKafka]:
    """An embedded broker of the test's own, to inject errors into."""
    with EmbeddedKafka() as embedded:
        yield embedded
