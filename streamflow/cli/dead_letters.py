"""``streamflow dlq``: what was rejected, why, and once more through the graph."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import anyio
from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from streamflow.cli import exit_codes
from streamflow.cli.checking import read_or_explain
from streamflow.cli.parameters import GraphFile, Json, Overrides
from streamflow.cli.running import log_to, run_in_foreground
from streamflow.codecs.formats import named_format
from streamflow.codecs.values import dump_json
from streamflow.dataflow import Graph
from streamflow.errors import ConnectorError, GraphError, StreamflowError
from streamflow.observe.report import report_data, report_tables
from streamflow.runtime.letters import Damaged, Letter, LetterFile
from streamflow.runtime.replay import Replay, num_replayed, open_replay, plan_replay

GRAPH_SUFFIXES = (".yaml", ".yml")
MOST_GROUPS = 50
MOST_NUMBERS = 5
"""Letters of a group that are named."""

Target = Annotated[
    Path, Parameter(help="A file of dead letters, or a graph whose dead letters go to a file.")
]
FormatName = Annotated[
    str | None, Parameter(name="--format", help="Of the file, if its suffix does not say.")
]
app = App(name="dlq", help="List and show dead letters, and replay them.")


@app.command(name="list")
def list_letters(
    target: Target,
    *,
    everything: Annotated[
        bool, Parameter(name="--all", negative=(), help="Also letters that have been replayed.")
    ] = False,
    format_name: FormatName = None,
    as_json: Json = False,
) -> int:
    """Print dead letters by node and cause, the most frequent first.

    Example: streamflow dlq list dead.jsonl
    """

    def list_them() -> int:
        letters = _letter_file(target, format_name)
        replayed = num_replayed(letters.path) if letters.path.exists() else 0
        summary = anyio.run(_summarize, letters, 0 if everything else replayed)
        if as_json:
            _print_json(summary.data(replayed))
        else:
            _print_summary(summary, replayed)
        return 0

    return _explained(list_them)


@app.command
def show(
    target: Target,
    number: Annotated[int, Parameter(help="Number of the letter in the file, from 1.")],
    *,
    format_name: FormatName = None,
    as_json: Json = False,
) -> int:
    """Print all that is known about one dead letter.

    Example: streamflow dlq show dead.jsonl 3
    """

    def show_it() -> int:
        described = _describe(anyio.run(_find, _letter_file(target, format_name), number))
        if as_json:
            _print_json(described)
        else:
            for name, value in described.items():
                text = value if isinstance(value, str) else dump_json(value).decode()
                sys.stdout.write(f"{name + ':':<13} {text}\n")
        return 0

    return _explained(show_it)


@app.command
def replay(
    file: GraphFile,
    *,
    letters: Annotated[
        Path | None, Parameter(help="The file of dead letters; by default that of the graph.")
    ] = None,
    format_name: FormatName = None,
    overrides: Overrides = (),
    instance: Annotated[
        str, Parameter(env_var="STREAMFLOW_INSTANCE", help="As of streamflow run.")
    ] = "0",
    as_json: Json = False,
) -> int:
    """Run a graph over the originals of its dead letters, instead of its sources.

    Sinks add to what is there. What fails again becomes a dead letter again. The letters count as
    replayed once all that came of them is delivered. Stop the graph before.

    Example: streamflow dlq replay graph.yaml
    """
    graph = read_or_explain(file, overrides, deep=True, as_json=as_json)
    if graph is None:
        return exit_codes.BAD_CONFIGURATION

    def replay_them() -> int:
        chosen = _of_graph(graph) if letters is None else _of_path(letters, format_name)
        plan = anyio.run(plan_replay, graph, chosen, instance)
        return _replay(graph, plan, instance, as_json=as_json)

    return _explained(replay_them)


def _replay(graph: Graph, plan: Replay, instance: str, *, as_json: bool) -> int:
    console = Console(stderr=True)
    log_to(console)
    if not len(plan):
        console.print(Text(f"{plan.letters.path}: no dead letters to replay"), soft_wrap=True)
        if as_json:
            _print_json({"replayed": 0, "rejected": 0, "failure": None})
        return 0
    opening = partial(open_replay, graph, plan, instance=instance)
    outcome = anyio.run(run_in_foreground, opening, console, graph.shutdown_timeout)
    code, failure = outcome.exit_code, outcome.failure
    if code == 0:
        try:
            plan.finish()
        except ConnectorError as error:
            code, failure = exit_codes.FAILED, error
    stats = outcome.run.stats() if outcome.run else None
    if failure:
        console.print(Text(f"failed: {failure}", style="bold red"), soft_wrap=True)
    if as_json:
        data = report_data(graph.name, stats, str(failure) if failure else None)
        _print_json({"replayed": len(plan) if code == 0 else 0} | data)
    elif stats:
        console.print(report_tables(graph.name, stats))
        verdict = "are replayed" if code == 0 else "stay as they were"
        text = f"{len(plan):,} dead letters {verdict}, {stats.rejected:,} were rejected again"
        console.print(Text(text), soft_wrap=True)
    return code


@dataclass(slots=True)
class Group:
    """Letters of one node and cause."""

    count: int = 0
    attempts: int = 0
    first: str = ""
    last: str = ""
    numbers: list[int] = field(default_factory=list)

    def add(self, letter: Letter) -> None:
        """Count a letter."""
        self.count += 1
        self.attempts = max(self.attempts, letter.attempts)
        self.first = min(self.first or letter.time, letter.time)
        self.last = max(self.last, letter.time)
        if len(self.numbers) < MOST_NUMBERS:
            self.numbers.append(letter.number)


@dataclass(slots=True)
class Summary:
    """Letters of a file, by node and cause."""

    groups: dict[tuple[str, str], Group] = field(default_factory=dict)
    damaged: list[Damaged] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many letters there are."""
        return sum(group.count for group in self.groups.values())

    def ordered(self) -> list[tuple[tuple[str, str], Group]]:
        """Return the groups, the largest first."""
        return sorted(self.groups.items(), key=lambda item: -item[1].count)

    def data(self, replayed: int) -> dict[str, Any]:
        """Return all of it, ready for JSON."""
        return {
            "letters": self.count,
            "replayed": replayed,
            "damaged": [item.number for item in self.damaged],
            "groups": [
                {"node": node, "cause": cause, "letters": group.count}
                | {"attempts": group.attempts, "first": group.first, "last": group.last}
                | {"numbers": group.numbers}
                for (node, cause), group in self.ordered()
            ],
        }


async def _summarize(letters: LetterFile, after: int) -> Summary:
    """Return what there is after the letter of that number."""
    summary = Summary()
    async with aclosing(letters.batches()) as batches:
        async for batch in batches:
            for letter in batch:
                if letter.number <= after:
                    continue
                if isinstance(letter, Damaged):
                    summary.damaged.append(letter)
                else:
                    key = letter.node, letter.cause
                    summary.groups.setdefault(key, Group()).add(letter)
    return summary


async def _find(letters: LetterFile, number: int) -> Letter:
    """Return a letter by its number.

    Raises:
        ConnectorError: There is none, or something else.
    """
    last = 0
    async with aclosing(letters.batches()) as batches:
        async for batch in batches:
            for letter in batch:
                last = letter.number
                if last == number and isinstance(letter, Letter):
                    return letter
                if last == number and isinstance(letter, Damaged):
                    message = f"{letters.path}: {letter.cause} (letter {number})"
                    raise ConnectorError(message)
    message = f"{letters.path}: expected a number from 1 to {last}, found {number}; see dlq list"
    raise ConnectorError(message)


def _describe(letter: Letter) -> dict[str, Any]:
    """Return all about a letter; bytes as text where they are UTF-8, else as hex."""
    original, notation = letter.original, "value"
    if letter.payload is not None:
        try:
            original, notation = letter.payload.decode(), "text"
        except UnicodeDecodeError:
            original, notation = letter.payload.hex(), "hex"
    return {
        "number": letter.number,
        "node": letter.node,
        "cause": letter.cause,
        "attempts": letter.attempts,
        "time": letter.time,
        "source": letter.source,
        "position": dict(letter.position),
        "key": letter.key,
        "timestamp_ms": letter.timestamp_ms,
        "headers": {name: value.decode(errors="replace") for name, value in letter.headers},
        "notation": notation,
        "original": original,
    }


def _print_summary(summary: Summary, replayed: int) -> None:
    console = Console(file=sys.stdout)
    table = Table("node", "cause")
    table.add_column("letters", justify="right")
    table.add_column("attempts", justify="right")
    table.add_column("last")
    table.add_column("numbers")
    for (node, cause), group in summary.ordered()[:MOST_GROUPS]:
        numbers = ", ".join(map(str, group.numbers))
        more = ", ..." if group.count > len(group.numbers) else ""
        cells = (f"{group.count:,}", str(group.attempts), group.last, numbers + more)
        table.add_row(Text(node), Text(cause), *cells)
    if summary.groups:
        console.print(table)
    left = len(summary.groups) - MOST_GROUPS
    if left > 0:
        sys.stdout.write(f"and {left:,} more groups; see --json\n")
    before = f", {replayed:,} replayed before" if replayed else ""
    sys.stdout.write(f"{summary.count:,} dead letters{before}\n")
    for item in summary.damaged[:MOST_NUMBERS]:
        sys.stderr.write(f"letter {item.number}: {item.cause}\n")


def _print_json(data: object) -> None:
    sys.stdout.write(json.dumps(json.loads(dump_json(data))) + "\n")


def _letter_file(target: Path, format_name: str | None) -> LetterFile:
    """Return the file that a target means.

    Raises:
        GraphError: The graph cannot be read.
        ConnectorError: Its dead letters do not go to a file.
    """
    if target.suffix in GRAPH_SUFFIXES:
        return _of_graph(Graph.from_yaml(target))
    return _of_path(target, format_name)


def _of_path(path: Path, format_name: str | None) -> LetterFile:
    try:
        declared = None if format_name is None else named_format(format_name)
    except ValueError as error:
        message = f"--format {format_name}: {error}"
        raise ConnectorError(message) from error
    letters = LetterFile(path.absolute(), declared)
    _ = letters.source  # whose suffix must say the format
    return letters


def _of_graph(graph: Graph) -> LetterFile:
    sink: Any = graph.dead_letter
    if sink is None or sink.type != "file" or sink.path == "-":
        found = "none" if sink is None else f"type: {sink.type}"
        message = (
            f"{graph.name}: expected a dead_letter sink that is a file, found {found}; copy the "
            f"dead letters into a file, and name that"
        )
        raise ConnectorError(message)
    return LetterFile((graph.folder / sink.path).absolute(), sink.resolved_format)


def _explained(command: Callable[[], int]) -> int:
    """Return a command's exit code; print the project's own errors as lines on stderr."""
    try:
        return command()
    except GraphError as error:
        sys.stderr.write(f"{error}\n")
        return exit_codes.BAD_CONFIGURATION
    except StreamflowError as error:
        sys.stderr.write(f"{error}\n")
        return exit_codes.FAILED
