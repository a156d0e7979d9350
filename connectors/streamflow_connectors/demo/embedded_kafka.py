"""A Kafka broker inside this process, for demos and quick tests.

It is the mock cluster that librdkafka tests itself with, called in the library that the package
confluent-kafka brings along: a real socket that speaks the real protocol, without Java. It holds
5 MB or 100,000 messages a partition and forgets the oldest; it does not isolate aborted
transactions; a group has one member at a time; and its admin interface cannot create topics, so
`EmbeddedKafka.create_topic` does.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import TracebackType
from typing import Any

from anyio import CancelScope, to_thread

from streamflow.errors import ConnectorError
from streamflow.nodes.plugins import require

REQUIRES = {"confluent_kafka": "streamflow-online[demo]"}

_PRODUCER = 0  # RD_KAFKA_PRODUCER; the mock cluster needs the handle of any client
_LOG_NOTHING = b"0"
_ERROR_BYTES = 512


class EmbeddedKafka:
    """A broker that lives as long as its ``with`` or ``async with`` block.

    Its methods may be called from any thread. All data is gone when the block is left.

    Args:
        num_brokers: Of how many brokers the cluster is made, numbered from 1.

    Attributes:
        address: Where it listens, as ``host:port``, several separated by commas; empty outside the
            block.
    """

    def __init__(self, num_brokers: int = 1) -> None:
        self.address = ""
        self._num_brokers = num_brokers
        self._library: ctypes.CDLL | None = None
        self._client: ctypes.c_void_p | None = None
        self._cluster: ctypes.c_void_p | None = None

    def __repr__(self) -> str:
        return f"<EmbeddedKafka {self.address or 'closed'}>"

    def __enter__(self) -> EmbeddedKafka:
        """Start listening on a free port.

        Raises:
            MissingExtraError: confluent-kafka is not installed.
            ConnectorError: The broker did not start.
        """
        self._library = _load()
        self._client = _new_client(self._library)
        cluster = self._call(
            "rd_kafka_mock_cluster_new", self._client, self._num_brokers, result=ctypes.c_void_p
        )
        self._cluster = ctypes.c_void_p(cluster)
        # Else the first member of every group waits three seconds for others to join.
        self._call("rd_kafka_mock_group_initial_rebalance_delay_ms", self._cluster, 0)
        address: bytes = self._call(
            "rd_kafka_mock_cluster_bootstraps", self._cluster, result=ctypes.c_char_p
        )
        self.address = address.decode()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop; clients that are still connected lose their connection."""
        self.address = ""
        if self._cluster:
            self._call("rd_kafka_mock_cluster_destroy", self._cluster)
            self._call("rd_kafka_destroy", self._client)
            self._client = self._cluster = None

    async def __aenter__(self) -> EmbeddedKafka:
        """Start listening on a free port, as `__enter__` does."""
        return await to_thread.run_sync(self.__enter__)

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop, as `__exit__` does."""
        with CancelScope(shield=True):  # takes milliseconds: it waits for nobody else
            await to_thread.run_sync(self.__exit__, error_type, error, traceback)

    def create_topic(self, name: str, partitions: int = 1) -> None:
        """Create a topic; one that is first named by a client gets four partitions instead.

        Raises:
            ConnectorError: There is such a topic already.
        """
        error = self._call(
            "rd_kafka_mock_topic_create", self._cluster, name.encode(), partitions, 1
        )
        if error:
            message = (
                f"embedded broker: expected to create the topic {name}, found error {error}; "
                "choose a name that is not taken"
            )
            raise ConnectorError(message)

    def fail_requests(self, api_key: int, *error_codes: int) -> None:
        """Answer the next requests of a kind with errors, one each, by the protocol's numbers."""
        errors = (ctypes.c_int * len(error_codes))(*error_codes)
        self._call(
            "rd_kafka_mock_push_request_errors_array",
            self._cluster,
            ctypes.c_int16(api_key),
            ctypes.c_size_t(len(error_codes)),
            errors,
        )

    def fail_topic(self, name: str, error_code: int) -> None:
        """Answer questions about a topic, if there is none, with an error by its number."""
        self._call("rd_kafka_mock_topic_set_error", self._cluster, name.encode(), error_code)

    def clear_failures(self, api_key: int) -> None:
        """Take back what `fail_requests` has left of a kind of request."""
        self._call("rd_kafka_mock_clear_request_errors", self._cluster, ctypes.c_int16(api_key))

    def set_reachable(self, is_reachable: bool) -> None:
        """Close the ports with all their connections, or open them again; data is kept."""
        name = "rd_kafka_mock_broker_set_up" if is_reachable else "rd_kafka_mock_broker_set_down"
        for number in range(1, self._num_brokers + 1):
            self._call(name, self._cluster, number)

    def move_leader(self, topic: str, partition: int, broker: int) -> None:
        """Let another broker lead a partition; -1: none does."""
        name = "rd_kafka_mock_partition_set_leader"
        self._call(name, self._cluster, topic.encode(), partition, broker)

    def move_coordinator(self, group: str, broker: int) -> None:
        """Let another broker coordinate a group."""
        self._call("rd_kafka_mock_coordinator_set", self._cluster, b"group", group.encode(), broker)

    def _call(self, name: str, *arguments: Any, result: Any = ctypes.c_int) -> Any:
        assert self._library is not None, "the broker is used within its block"
        function: Callable[..., Any] = getattr(self._library, name)
        function.restype = result  # type: ignore[attr-defined]  # of a foreign function it can be set
        return function(*arguments)


def _load() -> ctypes.CDLL:
    """Return confluent-kafka's extension module as the C library that it is linked to."""
    require(REQUIRES, where="embedded broker")
    from confluent_kafka import cimpl

    return ctypes.CDLL(cimpl.__file__)


def _new_client(library: ctypes.CDLL) -> ctypes.c_void_p:
    """Return a new client handle, which the mock cluster lives in.

    Raises:
        ConnectorError: librdkafka refused.
    """
    library.rd_kafka_conf_new.restype = ctypes.c_void_p
    library.rd_kafka_new.restype = ctypes.c_void_p
    configuration = ctypes.c_void_p(library.rd_kafka_conf_new())
    reason = ctypes.create_string_buffer(_ERROR_BYTES)
    library.rd_kafka_conf_set(configuration, b"log_level", _LOG_NOTHING, reason, _ERROR_BYTES)
    client = library.rd_kafka_new(_PRODUCER, configuration, reason, _ERROR_BYTES)
    if not client:
        message = (
            "embedded broker: expected librdkafka to start, "
            f"found {reason.value.decode()}; use a real broker"
        )
        raise ConnectorError(message)
    return ctypes.c_void_p(client)
