"""The graph: what is connected to what, as frozen data.

A graph checks its structure when it is made, and says everything that is wrong with it at once.
`streamflow.dataflow.Graph` is the same data with a way in, from a file, and a way out, a run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, PrivateAttr, SerializeAsAny, field_validator

from streamflow.errors import GraphError, Problem
from streamflow.graph.promises import Promise, delivery_problems, promises
from streamflow.graph.structure import SECTIONS, structure_problems
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

TIME = re.compile(r"\d+(\.\d+)?[smh]")
"""How often, in seconds, minutes or hours."""


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


class GraphDeclaration(Settings):
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
    _locate: Callable[[Sequence[Problem]], list[Problem]] = PrivateAttr(list)

    def model_post_init(self, _context: object) -> None:
        """Check the structure.

        Raises:
            GraphError: With every problem that was found.
        """
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
        return isinstance(other, GraphDeclaration) and self.__dict__ == other.__dict__

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
        return self._locate(problems)
