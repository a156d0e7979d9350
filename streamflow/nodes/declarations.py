"""What a node is as data: its declaration.

A declaration (`Source`, `Operator`, `Sink`) is what stands in the YAML: a frozen pydantic model
that validates its options and does nothing else. Opening it gives a `Reader`, a `Processor` or a
`Writer`; see `streamflow.contracts`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from streamflow.contracts import Codec, Context, Processor, Reader, Writer
from streamflow.errors import GraphError, Problem, suggestion
from streamflow.nodes.problems import problems_of
from streamflow.nodes.units import SizeField

Overflow: TypeAlias = Literal["block", "drop_oldest", "drop_newest", "latest", "fail"]
"""What happens when more records come to an edge than it has room for."""


class Declaration(BaseModel):
    """A frozen, typed piece of a graph; unknown options are errors."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        arbitrary_types_allowed=True,
        validate_default=True,
        ser_json_inf_nan="constants",
    )

    def __init__(self, **options: Any) -> None:
        try:
            super().__init__(**options)
        except ValidationError as error:
            problems = problems_of(error, type(self), options)
        except UnicodeEncodeError as error:  # pydantic cannot quote what is no character
            found = f"half of a pair of surrogates, U+{ord(error.object[error.start]):04X}"
            problems = [Problem((), f"expected text, found {found}; remove it")]
        else:
            return
        # Raised out here, since pydantic's error shows every value, secrets too.
        raise GraphError(problems, subject=self._title())

    @classmethod
    def _title(cls) -> str:
        """Return what begins the messages about a declaration that stands alone."""
        return cls.__name__


class Node(Declaration):
    """What all kinds of node share.

    A concrete node declares ``type: Literal["name"] = "name"`` with the name of its entry point.

    Attributes:
        requires: What to install, by the module that shows whether it is there.
        incidental: Options of a source or operator that say nothing about which records come or
            what becomes of them, such as addresses and timeouts: with others a graph is still the
            one that its checkpoints are of. Those of all parent classes count.
    """

    requires: ClassVar[dict[str, str]] = {}
    incidental: ClassVar[frozenset[str]] = frozenset()

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it connects to, each as ``host:port``, so that one can see whether that answers."""
        return ()

    def deep_problems(self, folder: Path) -> Iterator[Problem]:
        """Yield what is only found by importing or building things, located within the node.

        Args:
            folder: Where relative paths start, as in `Context`.
        """
        yield from ()


class Source(Node):
    """Declares where records come from."""

    @property
    def only_scalars(self) -> bool:
        """Whether no field of its records can be an array, as in csv."""
        return False

    @property
    def keeps_positions(self) -> bool:
        """Whether a later run goes on where this one has finished, as in a consumer group."""
        return False

    @property
    def rereads(self) -> bool:
        """Whether it can go on at the positions of a checkpoint, which may lie before its own."""
        return False

    @property
    def is_shared(self) -> bool:
        """Whether parts of it may move from one instance of the graph to another."""
        return False

    def watching(self) -> Source | None:
        """Return the source as one that takes nothing from other readers, to look on.

        Nothing is committed in its name. ``None`` if what it reads is gone for others.
        """
        return self

    def decoder(self, folder: Path, position: Mapping[str, str | int]) -> Codec | None:
        """Return what decodes again the bytes of a record that stood at ``position``.

        Args:
            folder: Where relative paths start.
            position: As output records and dead letters show it.

        Returns:
            ``None`` if records come without bytes, so that dead letters hold their values.

        Raises:
            ConnectorError: What it takes, such as the header of a csv file, is gone.
        """
        return None

    def open(self, context: Context) -> AbstractAsyncContextManager[Reader]:
        """Connect, and give a reader until the context is left."""
        raise NotImplementedError


class Buffer(Declaration):
    """How much may wait in an edge; a record that is larger than it waits alone."""

    records: int = Field(1024, ge=1, description="Records that may wait.")
    bytes: SizeField = Field(
        16 * 2**20, description="Memory that they may take, about: bytes, or text such as 16MiB."
    )


def node_of(sender: str) -> str:
    """Return the name of the node that an input leads to: ``level`` of ``level.high``."""
    return sender.partition(".")[0]


class Receiver(Node):
    """Declares a node that other nodes send to."""

    inputs: tuple[str, ...] = Field(
        min_length=1,
        description="Names of the nodes that this one receives from; of one with several outputs "
        "as node.output.",
    )
    merge: Literal["arrival", "round_robin"] = Field(
        "arrival",
        description="Order of several inputs: as they arrive, or one record of each in turn, "
        "waiting for every input, which is the same in every run.",
    )
    overflow: Overflow | dict[str, Overflow] = Field(
        "block",
        description="What happens to records that an input has no room for; one policy for all "
        "inputs, or one by the name of an input: the sender waits (block), the oldest or the "
        "newest are dropped, all but the newest one are (latest), or the run fails.",
    )
    buffer: Buffer = Field(
        default_factory=Buffer, description="How much may wait in each of the inputs."
    )

    @field_validator("buffer", mode="before")
    @classmethod
    def _check_buffer(cls, buffer: object) -> object:
        if not isinstance(buffer, Mapping | Buffer):
            message = "expected records and bytes; write {records: 1024, bytes: 16MiB}"
            raise ValueError(message)
        return buffer

    @model_validator(mode="after")
    def _check_overflow(self) -> Receiver:
        if problems := list(self._overflow_problems()):
            raise GraphError(problems)
        return self

    def _overflow_problems(self) -> Iterator[Problem]:
        for name in self.overflow if isinstance(self.overflow, dict) else ():
            if name not in self.inputs:
                cure = suggestion(name, list(self.inputs))
                message = f"expected one of the inputs, found {name}; {cure}"
                yield Problem(("overflow", name), message, is_about_key=True)
        for sender in self.inputs if self.merge == "round_robin" else ():
            if (found := self.overflow_of(sender)) != "block":
                message = (
                    f"expected block where inputs are taken in turn, since one that is ahead is "
                    f"full until the others catch up, found {found}; use merge: arrival"
                )
                yield Problem(("overflow",), message)
                return

    def overflow_of(self, sender: str) -> Overflow:
        """Return what happens when the input ``sender`` has no room."""
        if isinstance(self.overflow, dict):
            return self.overflow.get(sender, "block")
        return self.overflow


class Operator(Receiver):
    """Declares a step between sources and sinks.

    Attributes:
        blocking: Whether the processor computes for long or does I/O, so that the runtime calls it
            in a worker thread and not on the event loop.
        keeps_scalars: Whether no field it gives is an array if none it is given is one.
        keeps_order: Whether each record becomes one at the most, at once, so that what comes out is
            in the order of what goes in.
        tells_senders: Whether it has to know which input each record came by, so that the batches
            it is given say so in ``senders``.
    """

    blocking: ClassVar[bool] = False
    keeps_scalars: ClassVar[bool] = False
    keeps_order: ClassVar[bool] = True
    tells_senders: ClassVar[bool] = False

    @property
    def holds(self) -> bool:
        """Whether it keeps records to make something of them later.

        They count as finished: only a checkpoint keeps them over a crash.
        """
        return False

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of its outputs, as in ``inputs: [node.output]``; empty if there is only one."""
        return ()

    def open(self, context: Context) -> AbstractContextManager[Processor]:
        """Give a processor until the context is left; in a worker thread if blocking."""
        raise NotImplementedError


class Sink(Receiver):
    """Declares where records go.

    As the graph's dead-letter sink it stands without ``inputs``.
    """

    inputs: tuple[str, ...] = Field(
        (),
        description="Names of the nodes that this one receives from; of one with several outputs "
        "as node.output.",
    )

    def _overflow_problems(self) -> Iterator[Problem]:
        if not self.inputs and self.overflow not in ("block", {}):
            found = self.overflow if isinstance(self.overflow, str) else "a mapping"
            message = f"expected block, found {found}; remove it: dead letters are never dropped"
            yield Problem(("overflow",), message)
        else:
            yield from super()._overflow_problems()

    @property
    def cuts_back(self) -> bool:
        """Whether what it wrote after a checkpoint is gone when a run goes on from there."""
        return False

    @property
    def stores_positions(self) -> bool:
        """Whether it stores the positions of the source itself, in one with what it writes."""
        return False

    @property
    def confirms(self) -> bool:
        """Whether what `Writer.flush` has waited for is delivered, and not only sent off."""
        return True

    def delivery_problems(self, graph: Surroundings) -> Iterator[Problem]:
        """Yield what keeps the sink from delivering as it promises, located within the node."""
        yield from ()

    def adding(self) -> Sink:
        """Return the sink as one that adds to what it has written in earlier runs."""
        return self

    def open(self, context: Context) -> AbstractAsyncContextManager[Writer]:
        """Connect, and give a writer until the context is left."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The graph around a sink, as far as its promise depends on it.

    Attributes:
        sources: Of the whole graph, by name.
        sinks: Likewise, with the one of the dead letters.
        is_ordered: Whether the sink's records come in the order of the source, once at the most.
        is_checkpointed: Whether the graph takes checkpoints.
    """

    sources: Mapping[str, Source]
    sinks: Mapping[str, Sink]
    is_ordered: bool = True
    is_checkpointed: bool = True
