"""Kafka topics as sources and sinks.

Opening one imports the driver, aiokafka, which runs on asyncio only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from streamflow.codecs.formats import CsvFormat
from streamflow.contracts import Codec, Context, Reader, Writer
from streamflow.errors import GraphError, Problem
from streamflow.nodes.declarations import Sink, Source, Surroundings
from streamflow.nodes.plugins import missing_packages
from streamflow_connectors.kafka.options import KafkaSinkOptions, KafkaSourceOptions


class KafkaSource(KafkaSourceOptions, Source):
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
    def keeps_positions(self) -> bool:
        """Whether a later run goes on where this one has finished."""
        return self.group is not None

    @property
    def rereads(self) -> bool:
        """Whether it can go on at the positions of a checkpoint: as long as the topic has them."""
        return True

    def decoder(self, folder: Path, position: Mapping[str, str | int]) -> Codec:
        """Return what decodes again the value that stood at ``position``."""
        return self.codec_of(str(position.get("topic", "")))

    def open(self, context: Context) -> AbstractAsyncContextManager[Reader]:
        """Connect, and give a reader until the context is left.

        Raises:
            ConnectorError: No broker answers in time, a topic does not exist, or the event loop is
                not asyncio's.
        """
        from streamflow_connectors.kafka.reader import open_reader  # imports the driver

        return open_reader(self, context)


class KafkaSink(KafkaSinkOptions, Sink):
    """Writes to topics, in order for each key.

    A record is written once as long as the run lives; with ``delivery: exactly_once`` also if it is
    killed: outputs and the positions they come from are committed in one transaction, and what is
    published already is left out. Readers see that as ``read_committed``.

    Partitions are chosen by the key as Java's clients do; records without a key go to the
    partitions in turn. Keys other than text and bytes are written as text. Timestamps and headers
    are kept. A record is rejected where a field that names its topic or key is missing or of
    another type, or where there is no such topic.
    """

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
        if not {*self.addresses} & {*source.addresses}:
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
            around = Surroundings(context.sources, {context.name: self})
            if problems := list(self.delivery_problems(around)):
                raise GraphError(problems, subject=context.name)
            from streamflow_connectors.kafka.transactions import open_exactly_once  # the driver

            return open_exactly_once(self, context)
        from streamflow_connectors.kafka.writer import open_writer  # likewise

        return open_writer(self, context)
