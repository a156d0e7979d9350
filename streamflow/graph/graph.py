"""The graph: what is connected to what, as frozen data.

A graph checks its structure when it is made, and says everything that is wrong with it at once. The
check itself, `structure_problems`, only needs names, inputs and merges, so that the YAML reader can
apply it to a file in which some nodes are still invalid for other reasons.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from difflib import get_close_matches
from graphlib import CycleError, TopologicalSorter
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from pydantic import Field, PrivateAttr, SerializeAsAny, field_validator

from streamflow.errors import GraphError, Problem, suggestion
from streamflow.graph.promises import Promise, delivery_problems, promises
from streamflow.models.model import Model
from streamflow.nodes.declarations import (
    Declaration,
    Node,
    Operator,
    Receiver,
    Sink,
    Source,
    node_of,
)

if TYPE_CHECKING:
    from streamflow.config.document import Document
    from streamflow.runtime.run import Run

SECTIONS = ("sources", "operators", "models", "sinks")

NAME = re.compile(r"\w[\w-]*")
"""What nodes may be called: a name stands in dotted paths and in metrics."""

TIME = re.compile(r"\d+(\.\d+)?[smh]")
"""How often, in seconds, minutes or hours."""

Inputs: TypeAlias = Mapping[str, Mapping[str, tuple[str, ...]]]
"""The inputs of every node by section and name."""

Outputs: TypeAlias = Mapping[str, tuple[str, ...] | None]
"""The outputs of nodes by name."""


class Checkpoints(Declaration):
    """Where and how often a run keeps all that it knows."""

    path: str = Field(
        min_length=1,
        description="Folder of the checkpoints of one instance of the graph; {instance} stands "
        "for the name it is run under.",
    )
    every: int | str = Field(
        "30s",
        description="Records of a source between checkpoints, which makes them part of the "
        "result, or a time: 30s, 5m, 1h.",
    )
    keep: int = Field(3, ge=1, description="Number of checkpoints to keep, the newest.")

    @field_validator("every")
    @classmethod
    def _check_every(cls, every: int | str) -> int | str:
        is_time = isinstance(every, str) and TIME.fullmatch(every) and float(every[:-1]) > 0
        if not (is_time or (isinstance(every, int) and every > 0)):
            message = "expected a number of records, or a time such as 30s, 5m or 1h, found "
            message += f"{every}; write one of the two"
            raise ValueError(message)
        return every

    @property
    def records(self) -> int | None:
        """Records between checkpoints, if they are counted."""
        return self.every if isinstance(self.every, int) else None

    @property
    def seconds(self) -> float | None:
        """Seconds between checkpoints, if they are timed."""
        if isinstance(self.every, int):
            return None
        return float(self.every[:-1]) * {"s": 1, "m": 60, "h": 3600}[self.every[-1]]


class FailureBudget(Declaration):
    """How many records each node may reject, counted since the start of the run."""

    fraction: float = Field(
        0.01, ge=0, le=1, description="Part of its records that a node may reject."
    )
    after: int = Field(100, ge=1, description="Records that a node handles before that counts.")
    in_a_row: int = Field(
        1000, ge=1, description="Records rejected one after the other that are too many."
    )


class Settings(Declaration):
    """What a graph says besides its nodes."""

    version: Literal[1] = Field(1, description="Version of this notation.")
    name: str = Field(min_length=1, description="Name of the graph.")
    shutdown_timeout: float = Field(
        30.0, gt=0, description="Seconds that a stopped run may take to finish what is in flight."
    )
    failure_budget: FailureBudget | Literal["none"] = Field(
        default_factory=FailureBudget,
        description="How many records may be rejected before the run fails; none for any number.",
    )
    checkpoint: Checkpoints | None = Field(
        None,
        description="Keep weights, state and positions, so that a later run goes on exactly there.",
    )


@dataclass(frozen=True, slots=True)
class Start:
    """Where a run with checkpoints begins: at the newest one, anew, or at one that is named.

    Attributes:
        is_reset: Begin anew; earlier checkpoints are put aside.
        checkpoint: Go on from this one, whatever was committed since; newer ones are put aside.
    """

    is_reset: bool = False
    checkpoint: str | None = None


class Graph(Settings):
    """A declared dataflow: sources, operators, models and sinks, connected by ``inputs``.

    Making one checks its structure; nothing is imported, opened or built.

    Raises:
        GraphError: With every problem that was found.
    """

    sources: dict[str, SerializeAsAny[Source]] = Field(description="Where records come from.")
    operators: dict[str, SerializeAsAny[Operator]] = Field(
        default_factory=dict, description="What happens to records on their way."
    )
    models: dict[str, Model] = Field(
        default_factory=dict, description="Networks that predict and learn."
    )
    sinks: dict[str, SerializeAsAny[Sink]] = Field(description="Where records go.")
    dead_letter: SerializeAsAny[Sink] | None = Field(
        None, description="Sink of the records that could not be used; without one they are logged."
    )

    _folder: Path = PrivateAttr(default_factory=Path)
    _document: Document | None = PrivateAttr(None)

    def model_post_init(self, _context: object) -> None:
        """Check the structure."""
        dead_letter_inputs = self.dead_letter.inputs if self.dead_letter else ()
        in_turn = {
            name
            for _, name, node in self.nodes()
            if isinstance(node, Receiver) and node.merge == "round_robin"
        }
        outputs = {name: node.output_names for name, node in self.operators.items()}
        problems = structure_problems(self.inputs(), dead_letter_inputs, in_turn, outputs)
        problems = problems or list(
            delivery_problems(
                self.sources,
                self._receivers(),
                self.dead_letter,
                is_checkpointed=self.checkpoint is not None,
            )
        )
        if problems:
            raise GraphError(problems)

    def __eq__(self, other: object) -> bool:
        """Compare what is declared, wherever it was read from."""
        return isinstance(other, Graph) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]  # it holds dicts

    @classmethod
    def _title(cls) -> str:
        return ""

    @property
    def folder(self) -> Path:
        """Where relative paths start: the folder of the YAML file, else the current one."""
        return self._folder

    def nodes(self) -> Iterator[tuple[str, str, Node]]:
        """Yield section, name and declaration of every node."""
        for section in SECTIONS:
            for name, node in getattr(self, section).items():
                yield section, name, node

    def _receivers(self) -> dict[str, Receiver]:
        return {name: node for _, name, node in self.nodes() if isinstance(node, Receiver)}

    def promises(self) -> list[Promise]:
        """Return how often records are learned and delivered, for each source and sink."""
        is_checkpointed = self.checkpoint is not None
        return promises(self.sources, self._receivers(), is_checkpointed=is_checkpointed)

    def inputs(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """Return the inputs of every node by section and name; none for sources."""
        table: dict[str, dict[str, tuple[str, ...]]] = {section: {} for section in SECTIONS}
        for section, name, node in self.nodes():
            table[section][name] = node.inputs if isinstance(node, Receiver) else ()
        return table

    @classmethod
    def from_yaml(cls, path: str | Path, *, overrides: Mapping[str, str] | None = None) -> Graph:
        """Read a graph from a YAML file.

        Args:
            path: The file. Relative paths within it start at its folder.
            overrides: Values, as YAML text, that replace those of the file, by dotted path:
                ``{"models.m.optimizer.SGD.lr": "0.1"}``.

        Raises:
            GraphError: With every problem of the file, each with its line and column.
        """
        from streamflow.config.reader import read_graph  # the reader is built on this module

        return read_graph(Path(path), overrides=overrides or {})

    def to_yaml(self) -> str:
        """Return the graph as YAML that `from_yaml` reads back as an equal graph."""
        from streamflow.config.writer import write_graph

        return write_graph(self)

    def deep_problems(self) -> list[Problem]:
        """Return what is only found by importing callables and building the networks.

        Each problem has its line and column if the graph was read from a file.
        """
        problems = [
            problem.within(section, name)
            for section, name, node in self.nodes()
            for problem in self._deep_problems(node)
        ]
        return self.locate(problems)

    def _deep_problems(self, node: Node) -> Iterator[Problem]:
        if not isinstance(node, Model):
            return node.deep_problems(self.folder)
        only_scalars = all(map(self._sends_only_scalars, node.inputs))
        return node.deep_problems(self.folder, only_scalars=only_scalars)

    def _sends_only_scalars(self, sender: str) -> bool:
        """Return whether for sure no field of a node's records is an array."""
        name = node_of(sender)
        if name in self.sources:
            return self.sources[name].only_scalars
        if name not in self.operators:
            return False
        operator = self.operators[name]
        return operator.keeps_scalars and all(map(self._sends_only_scalars, operator.inputs))

    def locate(self, problems: Sequence[Problem]) -> list[Problem]:
        """Return problems with their places in the file that the graph was read from, in order."""
        return list(problems) if self._document is None else self._document.locate(problems)

    def open(
        self, *, start: Start | None = None, instance: str = "0"
    ) -> AbstractAsyncContextManager[Run]:
        """Start the graph, inside any asyncio or anyio application.

        With ``checkpoint`` it goes on where its newest checkpoint says, unless ``start`` says
        otherwise, as ``instance``.

        Leaving the block stops the run and waits for what is in flight, at most
        ``shutdown_timeout`` seconds; leaving it with an exception abandons what is in flight.
        No signal handler is installed, and no task or thread is left behind.

        Raises:
            GraphError: The graph cannot run (found before anything is opened).
            StreamflowError: A node could not be opened.
        """
        from streamflow.runtime.run import open_run

        return open_run(self, start=start or Start(), instance=instance)


def structure_problems(
    table: Inputs,
    dead_letter: tuple[str, ...] = (),
    in_turn: Container[str] = (),
    outputs: Outputs | None = None,
) -> list[Problem]:
    """Return what is wrong with how nodes are connected.

    Args:
        table: The inputs of every node by section and name, as `Graph.inputs` returns them.
        dead_letter: The inputs of the dead-letter sink.
        in_turn: Names of the nodes whose inputs are merged by ``round_robin``.
        outputs: Names of the outputs of nodes that have several; ``None`` where they are unknown.
    """
    outputs = {name: names for name, names in (outputs or {}).items() if names != ()}
    return [
        *_empty_sections(table),
        *_unusable_names(table),
        *_wrong_inputs(table, outputs),
        *_dead_letter_inputs(dead_letter),
        *_cycles(table),
        *_shared_sources(table, in_turn),
        *_unread_nodes(table, outputs),
    ]


def _empty_sections(table: Inputs) -> Iterator[Problem]:
    for section in ("sources", "sinks"):
        if not table[section]:
            message = f"expected at least one node, found none; declare one under {section}"
            yield Problem((section,), message)


def _unusable_names(table: Inputs) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    for section, nodes in table.items():
        for name in nodes:
            if not NAME.fullmatch(name):
                message = f"expected a name of letters, digits, _ and -, found {name!r}; rename it"
                yield Problem((section, name), message, is_about_key=True)
            if name in seen:
                message = (
                    f"expected a name of its own, found {name} also under {seen[name]}; rename one"
                )
                yield Problem((section, name), message, is_about_key=True)
            seen.setdefault(name, section)


def _wrong_inputs(table: Inputs, outputs: Outputs) -> Iterator[Problem]:
    senders = [name for section in SECTIONS[:3] for name in table[section]]
    for section, nodes in table.items():
        for name, inputs in nodes.items():
            if section == "sinks" and not inputs:
                message = (
                    "expected inputs, found none; add inputs (names of the nodes to receive from)"
                )
                yield Problem((section, name, "inputs"), message)
            for index, sender in enumerate(inputs):
                where = (section, name, "inputs", index)
                if sender in inputs[:index]:
                    yield Problem(
                        where, f"expected each input once, found {sender} again; remove it"
                    )
                elif node_of(sender) in outputs:
                    if message := _wrong_output(sender, outputs[node_of(sender)]):
                        yield Problem(where, message)
                elif message := _wrong_input(sender, name, senders, table["sinks"]):
                    yield Problem(where, message)


def _wrong_output(sender: str, names: tuple[str, ...] | None) -> str:
    """Return what is wrong with ``sender`` as an output of a node that has several, if anything."""
    known = [f"{node_of(sender)}.{name}" for name in names or ()]
    if names is None or sender in known:
        return ""
    cure = suggestion(sender, known)
    return f"expected one of the outputs of {node_of(sender)}, found {sender}; {cure}"


def _wrong_input(sender: str, name: str, senders: list[str], sinks: Container[str]) -> str:
    """Return what is wrong with ``sender`` as an input of the node ``name``, if anything is."""
    if sender in senders:
        return ""
    if node_of(sender) in senders:
        node = node_of(sender)
        return f"expected {node}, which has one output without a name, found {sender}; write {node}"
    if sender in sinks:
        return f"expected a node that sends, found the sink {sender}; name what it receives from"
    cure = suggestion(sender, [other for other in senders if other != name])
    return f"expected the name of a source, operator or model, found {sender}; {cure}"


def _dead_letter_inputs(inputs: tuple[str, ...]) -> Iterator[Problem]:
    if inputs:
        message = "expected no inputs, found some; remove them: it receives from every node"
        yield Problem(("dead_letter", "inputs"), message)


def _cycles(table: Inputs) -> Iterator[Problem]:
    edges = _senders(table)
    while names := _cycle(edges):
        sender, name = names[-2:]
        section = next(section for section, nodes in table.items() if name in nodes)
        message = (
            f"expected no cycle, found {' -> '.join(names)}; remove {sender} from these inputs"
        )
        yield Problem((section, name, "inputs"), message)
        edges[name] = tuple(other for other in edges[name] if other != sender)


def _senders(table: Inputs) -> dict[str, tuple[str, ...]]:
    """Return the names of the nodes that each node receives from."""
    return {
        name: tuple(map(node_of, inputs))
        for nodes in table.values()
        for name, inputs in nodes.items()
    }


def _cycle(edges: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Return the names along one cycle, each an input of the next; none if there is no cycle."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        names: list[str] = error.args[1]
        return names
    return []


def _shared_sources(table: Inputs, in_turn: Container[str]) -> Iterator[Problem]:
    """Yield merges that could wait for ever: for an input that lost records that the other has.

    The other one's edge is full then, so that the source, which feeds both, cannot go on either.
    """
    edges = _senders(table)
    for section, nodes in table.items():
        for name, inputs in nodes.items():
            if name not in in_turn:
                continue
            for one, other in combinations(dict.fromkeys(inputs), 2):
                ancestries = (_ancestry(node_of(sender), edges) for sender in (one, other))
                shared = set.intersection(*ancestries) & table["sources"].keys()
                if shared:
                    message = (
                        f"expected inputs of different sources to take in turn, found {one} and "
                        f"{other}, both of {min(shared)}; use merge: arrival"
                    )
                    yield Problem((section, name, "merge"), message)


def _ancestry(name: str, edges: Mapping[str, tuple[str, ...]]) -> set[str]:
    """Return a node and all that it receives from, directly or not."""
    found: set[str] = set()
    todo = [name]
    while todo:
        if (sender := todo.pop()) not in found:
            found.add(sender)
            todo += edges.get(sender, ())
    return found


def _unread_nodes(table: Inputs, outputs: Outputs) -> Iterator[Problem]:
    read = {name for nodes in table.values() for inputs in nodes.values() for name in inputs}
    if any(not inputs for section in SECTIONS[1:] for inputs in table[section].values()):
        return  # a problem already, and likely what these nodes are for
    senders = {
        sender: (section, name)
        for section in SECTIONS[:3]
        for name in table[section]
        for sender in _outputs_of(name, outputs)
    }
    misspelt = read - senders.keys() - table["sinks"].keys()
    for sender, location in senders.items():
        if sender not in read and not get_close_matches(sender, misspelt, n=1):
            message = (
                f"expected a node that receives from {sender}, found none; "
                f"add it to the inputs of another node, or remove it"
            )
            yield Problem(location, message, is_about_key=True)


def _outputs_of(name: str, outputs: Outputs) -> list[str]:
    """Return what names the outputs of a node as inputs of others, as far as that is known."""
    names = outputs.get(name, ("",))
    return [f"{name}.{output}" if output else name for output in names or ()]
