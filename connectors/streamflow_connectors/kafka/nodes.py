"""Kafka topics as sources and sinks.

Here are the declarations; what they open lies in `reader` and `writer`, which import
the driver. The driver, aiokafka, runs on asyncio only.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from streamflow.codecs.formats import CsvFormat, Format, FormatField, JsonFormat
from streamflow.contracts import Codec, Context, Reader, Writer
from streamflow.errors import Problem, suggestion
from streamflow.nodes.declarations import Sink, Source, Surroundings
from streamflow.nodes.plugins import missing_packages
from streamflow_connectors.kafka.options import REQUIRES, Connection
from streamflow_connectors.kafka.start import Start
from streamflow_connectors.network.routes import FromField

ID_PARTS = ("group", "topic", "node", "partitions", "instance")
"""What a transactional id may be made of."""

DEFAULT_ID = "streamflow.{group}.{partitions}.{topic}.{node}"


class KafkaSource(Connection, Source):
    """Reads topics from where its group stood, or from the start or the end.

    In a group without ``partitions``, partitions are shared out among the group's members, and what
    one had not finished when it lost a partition is read again by the next. With ``partitions``, or
    without a group, exactly these partitions (or those that the topics have at the start) are read;
    without a group nothing is committed.

    From a checkpoint it goes on at the checkpoint's positions; in a group at the committed one of a
    partition if that is larger, since another member has learned what lies between.

    Keys are text where their bytes are UTF-8, else bytes; a Kafka sink writes either as the same
    bytes. Records without a value (tombstones) are skipped and counted.
    """

    type: Literal["kafka"] = "kafka"
    requires: ClassVar[dict[str, str]] = REQUIRES
    incidental: ClassVar[frozenset[str]] = frozenset(
        {
            *("stop_at_end", "if_lost", "max_poll_records", "refresh"),
            *("session_timeout", "rebalance_timeout", "group_instance_id"),
        }
    )

    topics: tuple[str, ...] = Field((), description="Topics to read.")
    pattern: str | None = Field(
        None,
        min_length=1,
        description="Instead of topics: a regular expression, as Python has them, for whole names "
        "of topics. Those that come up later are read, too, from their beginning.",
    )
    refresh: float = Field(
        10.0, gt=0, description="Seconds after which new topics are looked for, with a pattern."
    )
    partitions: tuple[int, ...] | None = Field(
        None, min_length=1, description="Partitions to read of each topic, whatever others read."
    )
    group: str | None = Field(
        None, min_length=1, description="Consumer group that positions are committed for."
    )
    start: Start = Field(
        "earliest",
        description="Where to begin while no position has been committed: earliest, latest, or "
        "the first record of a time, such as 2026-01-31T08:00:00Z or seconds since 1970.",
    )
    stop_at_end: bool = Field(
        False, description="End where the topics end when the run starts, instead of waiting."
    )
    format: FormatField = Field(
        default_factory=JsonFormat, description="How values become bytes and back."
    )
    formats: dict[str, FormatField] = Field(
        default_factory=dict,
        description="Formats of single topics, by name, in place of format.",
    )
    isolation: Literal["read_committed", "read_uncommitted"] = Field(
        "read_committed", description="Whether to leave out records of aborted transactions."
    )
    if_lost: Literal["error", "earliest", "latest"] = Field(
        "error",
        description="What to do about a position, committed or of a checkpoint, that the topic no "
        "longer holds: fail, or go on at its start or end.",
    )
    max_poll_records: int = Field(
        1000, gt=0, description="How many records to take at once at the most."
    )
    session_timeout: float = Field(
        10.0, gt=0, description="Seconds until the group gives up a member that is not heard of."
    )
    rebalance_timeout: float = Field(
        30.0,
        gt=0,
        description="Seconds that the members of a group have to finish what they hold before "
        "their partitions are shared out again.",
    )
    group_instance_id: str | None = Field(
        None,
        min_length=1,
        description="Name of this member, another one for each: it keeps its partitions while it "
        "restarts within the session timeout.",
    )

    @field_validator("pattern")
    @classmethod
    def _check_pattern(cls, pattern: str | None, info: ValidationInfo) -> str | None:
        topics = info.data.get("topics")
        if topics is not None and bool(topics) == (pattern is not None):
            message = (
                f"expected either topics or a pattern, found {'both' if topics else 'none'}; "
                f"list the topics, or write a pattern that their names match"
            )
            raise ValueError(message)
        try:
            _compiled(pattern or "")
        except re.error as error:
            message = f"expected a regular expression, found {pattern}: {error}"
            raise ValueError(message) from None
        return pattern

    @field_validator("formats")
    @classmethod
    def _check_formats(cls, formats: dict[str, Format], info: ValidationInfo) -> dict[str, Format]:
        topics, pattern = info.data.get("topics"), info.data.get("pattern")
        for name in formats if topics or pattern else ():
            if pattern is not None and not _compiled(pattern).fullmatch(name):
                message = f"expected names that match {pattern}, found {name}; remove it"
                raise ValueError(message)
            if topics and name not in topics:
                cure = suggestion(name, list(topics))
                message = f"expected names of the topics, found {name}; {cure}"
                raise ValueError(message)
        return formats

    @field_validator("group_instance_id")
    @classmethod
    def _check_group_instance_id(cls, name: str | None, info: ValidationInfo) -> str | None:
        is_member = info.data.get("group") is not None and info.data.get("partitions") is None
        if name is not None and not is_member:
            message = "expected a group that shares out partitions with it, found none; remove one"
            raise ValueError(message)
        return name

    @property
    def only_scalars(self) -> bool:
        """Whether no field is an array: cells of csv are single values."""
        return all(
            isinstance(declared, CsvFormat) for declared in (self.format, *self.formats.values())
        )

    def watching(self) -> KafkaSource:
        """Return it without a group, so that no member of that loses a partition to it."""
        return self.model_copy(update={"group": None, "group_instance_id": None})

    @property
    def topic_pattern(self) -> re.Pattern[str] | None:
        """The pattern, whose `re.Pattern.match` takes whole names only."""
        return None if self.pattern is None else _compiled(self.pattern)

    @property
    def keeps_positions(self) -> bool:
        """Whether a later run goes on where this one has finished."""
        return self.group is not None

    @property
    def rereads(self) -> bool:
        """Whether it can go on at the positions of a checkpoint: as long as the topic has them."""
        return True

    @property
    def is_shared(self) -> bool:
        """Whether the members of its group share out the partitions."""
        return self.group is not None and self.partitions is None

    def decoder(self, folder: Path, position: Mapping[str, str | int]) -> Codec:
        """Return what decodes again the value that stood at ``position``."""
        return self.codec_of(str(position.get("topic", "")))

    def codec_of(self, topic: str) -> Codec:
        """Return what decodes the values of a topic."""
        return self.formats.get(topic, self.format).codec()

    def open(self, context: Context) -> AbstractAsyncContextManager[Reader]:
        """Connect, and give a reader until the context is left.

        Raises:
            ConnectorError: No broker answers in time, a topic does not exist, or the event loop is
                not asyncio's.
        """
        from streamflow_connectors.kafka.reader import open_reader  # imports the driver

        return open_reader(self, context)


class KafkaSink(Connection, Sink):
    """Writes to topics, in order for each key.

    A record is written once as long as the run lives; with ``delivery: exactly_once`` also if it is
    killed: outputs and the positions they come from are committed in one transaction, and what is
    published already is left out. Readers see that as ``read_committed``.

    Partitions are chosen by the key as Java's clients do; records without a key go to the
    partitions in turn. Keys other than text and bytes are written as text. Timestamps and headers
    are kept. A record is rejected where a field that names its topic or key is missing or of
    another type, or where there is no such topic.
    """

    type: Literal["kafka"] = "kafka"
    requires: ClassVar[dict[str, str]] = REQUIRES

    topic: Annotated[str, Field(min_length=1)] | FromField = Field(
        description="Topic to write to; {field: name} for the one that a field of each record "
        "names."
    )
    key: FromField | None = Field(
        None,
        description="{field: name} for the field whose text, bytes or integer becomes the key, "
        "in place of the key of the record.",
    )
    format: FormatField = Field(
        default_factory=JsonFormat, description="How values become bytes and back."
    )
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = Field(
        "none", description="How to compress batches; all but gzip need another package."
    )
    max_request_size: int = Field(
        1_000_000, gt=0, description="Bytes a record may have; larger ones are rejected."
    )
    delivery: Literal["at_least_once", "exactly_once"] = Field(
        "at_least_once",
        description="Whether outputs may come twice after a crash. exactly_once takes a single "
        "source, of the same cluster, with partitions and a group.",
    )
    transactional_id: str | None = Field(
        None,
        min_length=1,
        description="Name that fences off an earlier instance, with exactly_once: the same in "
        "every run, another one in each instance. May hold {group}, {topic}, {node}, {partitions} "
        "and {instance}, the name of the host; by default made of all but the last.",
    )

    @field_validator("transactional_id")
    @classmethod
    def _check_transactional_id(cls, name: str | None, info: ValidationInfo) -> str | None:
        if name is not None and info.data.get("delivery") == "at_least_once":
            message = "expected it with delivery: exactly_once, found at_least_once; remove one"
            raise ValueError(message)
        try:
            (name or "").format_map(dict.fromkeys(ID_PARTS, ""))
        except (KeyError, ValueError, IndexError, AttributeError, TypeError) as error:
            message = (
                f"expected only {', '.join(map('{{{}}}'.format, ID_PARTS))} in braces, "
                f"found {error}; write other braces twice"
            )
            raise ValueError(message) from None
        return name

    def compression_requires(self) -> dict[str, str]:
        """Return what the compression needs beyond aiokafka, as `requires` does."""
        if self.compression in ("none", "gzip"):
            return {}
        return {"cramjam": f"aiokafka[{self.compression}]"}

    def deep_problems(self, folder: Path) -> Iterator[Problem]:
        """Yield the package that the compression lacks."""
        for message in missing_packages(self.compression_requires()):
            yield Problem(("compression",), message)

    @property
    def stores_positions(self) -> bool:
        """Whether it stores the positions of the source itself, in one with what it writes."""
        return self.delivery == "exactly_once"

    def delivery_problems(self, graph: Surroundings) -> Iterator[Problem]:
        """Yield what keeps the graph from being written exactly once, if that is asked for."""
        if self.delivery == "exactly_once":
            for message in (
                *self._source_problems(graph.sources),
                *self._sink_problems(graph.sinks, graph.is_ordered, graph.is_checkpointed),
            ):
                yield Problem(("delivery",), f"expected {message}")

    def _source_problems(self, sources: Mapping[str, Source]) -> Iterator[str]:
        names = ", ".join(sources) or "none"
        if len(sources) != 1:
            yield f"exactly one source, of type kafka, found {names}; use at_least_once"
            return
        [source] = sources.values()
        if not isinstance(source, KafkaSource):
            yield f"a source of type kafka, found {names} of another type; use at_least_once"
            return
        if source.pattern is not None:
            yield (
                f"a source that names its topics, found the pattern {source.pattern} in {names}; "
                f"list topics instead"
            )
        if source.group is None:
            yield f"a group that stores the positions, found none in {names}; give it a group"
        if source.partitions is None:
            yield (
                f"a source that names its partitions, found that {names} lets its group share them "
                f"out; add partitions: [0] to it, and run an instance for each share"
            )
        if not _hosts(self) & _hosts(source):
            yield (
                f"source and sink on the same cluster, found {source.bootstrap_servers} and "
                f"{self.bootstrap_servers}; give both the same bootstrap_servers"
            )

    def _sink_problems(
        self, sinks: Mapping[str, Sink], is_ordered: bool, is_checkpointed: bool
    ) -> Iterator[str]:
        if not self.inputs:
            yield "a sink with inputs, found the one of the dead letters; use at_least_once"
            return
        if not is_ordered:
            yield (
                "outputs in the order of the source, found several ways from it that meet, or an "
                "operator that does not keep the order; use one way without, or at_least_once"
            )
        others = [name for name, sink in sinks.items() if sink is not self]
        storing = [name for name in others if sinks[name].inputs and sinks[name].stores_positions]
        if storing:
            yield f"one sink that stores the positions, found {storing[0]} too; use at_least_once"
        elif others and not is_checkpointed:
            yield (
                f"a checkpoint, without which a crash loses what {others[0]} has not written, "
                "found none; add checkpoint to the graph, or use at_least_once"
            )

    def transactional_id_for(self, source: KafkaSource, node: str) -> str:
        """Return the name of this instance that fences off an earlier one."""
        numbers = "-".join(map(str, sorted(source.partitions or ())))
        parts = {
            "group": source.group,
            "topic": self.topic if isinstance(self.topic, str) else self.topic.field,
            "node": node,
            "partitions": ".".join([*sorted(source.topics), numbers]),
            "instance": socket.gethostname(),
        }
        return (self.transactional_id or DEFAULT_ID).format_map(parts)

    def adding(self) -> KafkaSink:
        """Return the sink as one that writes whatever comes, also what it may have written."""
        return self.model_copy(update={"delivery": "at_least_once"})

    def open(self, context: Context) -> AbstractAsyncContextManager[Writer]:
        """Connect, and give a writer until the context is left.

        Raises:
            ConnectorError: No broker answers in time, the topic neither exists nor may be created,
                or the event loop is not asyncio's.
            MissingExtraError: The compression needs a package that is not installed.
            GraphError: The graph cannot be written exactly once, which is asked for.
        """
        if self.delivery == "exactly_once":
            from streamflow_connectors.kafka.transactions import open_exactly_once  # the driver

            return open_exactly_once(self, context)
        from streamflow_connectors.kafka.writer import open_writer  # likewise

        return open_writer(self, context)


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?:{pattern})\Z")


def _hosts(connection: Connection) -> set[str]:
    return {host.strip() for host in connection.bootstrap_servers.split(",")}
