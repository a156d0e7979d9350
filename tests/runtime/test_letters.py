"""What dead letters hold, for every way a record can be rejected, and what is read back."""

import json
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest

from streamflow.codecs import CsvFormat
from streamflow.errors import ConnectorError, GraphError
from streamflow.graph import FailureBudget, Graph
from streamflow.models.model import Model
from streamflow.operators.functions import Map
from streamflow.records import Record
from streamflow.runtime.letters import Damaged, Letter, LetterFile
from streamflow.testing import ListSink
from streamflow_connectors.files import FileSink, FileSource
from streamflow_connectors.memory import MemorySource

pytestmark = pytest.mark.anyio

FORMATS = ["jsonl", "msgpack", "csv"]

LINES = [
    b'{"a": 1, "b": 1}',
    b'{"a": 1, "b": ',  # cannot be decoded
    b'{"a": 1, "b": "\xc3\xa4"}',  # the operator cannot add it
    b'{"a": null, "b": 5}',  # the model needs a
    b'{"a": 7, "b": 1}',  # what the operator makes of it is no JSON
    b'\xff{"a": 1}',  # no UTF-8
]


def add(value: Any) -> Any:
    if value["a"] == 7:
        return value | {"sum": math.inf}
    return value | {"sum": None if value["a"] is None else value["a"] + value["b"]}


async def run(graph: Graph) -> None:
    with anyio.fail_after(60):
        async with graph.open() as opened:
            await opened.wait()


async def read(path: Path, **options: Any) -> list[Letter | Damaged]:
    found: list[Letter | Damaged] = []
    batches: AsyncGenerator[list[Letter | Damaged]] = LetterFile(path, **options).batches()
    async with aclosing(batches):
        async for batch in batches:
            found += batch
    return found


async def letters_of(path: Path) -> list[Letter]:
    found = await read(path)
    assert all(isinstance(letter, Letter) for letter in found)
    return [letter for letter in found if isinstance(letter, Letter)]


def rejecting_graph(folder: Path, dead_letter: FileSink) -> Graph:
    (folder / "in.jsonl").write_bytes(b"\n".join(LINES) + b"\n")
    return Graph(
        name="ways",
        sources={"rows": FileSource(path=str(folder / "in.jsonl"))},
        operators={"add": Map(inputs=("rows",), function=add)},
        models={
            "m": Model(
                inputs=("add",),
                network=({"Linear": [1, 1]},),
                features=("a",),
                target="b",
                optimizer={"SGD": {"lr": 0.0}},
                compile=False,
            )
        },
        sinks={
            "predictions": ListSink(inputs=("m",)),
            "sums": FileSink(path=str(folder / "sums.jsonl"), inputs=("add",)),
        },
        dead_letter=dead_letter,
    )


@pytest.mark.parametrize("suffix", [*FORMATS, "jsonl.gz"])
async def test_every_way_to_be_rejected_keeps_the_original_bytes_and_says_why(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"dead.{suffix}"
    before = datetime.now(UTC).replace(microsecond=0)
    await run(rejecting_graph(tmp_path, FileSink(path=str(path))))
    found = sorted(await letters_of(path), key=lambda letter: (letter.offset, letter.node))
    ways = [
        (2, "rows", "expected JSON, found "),
        (3, "add", "TypeError: unsupported operand type(s) for +: 'int' and 'str'"),
        (4, "m", "expected "),
        (5, "sums", "expected a value that JSON holds, found a number that is not finite"),
        (6, "rows", "expected JSON, found "),
    ]
    assert [(letter.offset, letter.node) for letter in found] == [way[:2] for way in ways]
    for letter, (line, _, cause) in zip(found, ways, strict=True):
        assert letter.payload == LINES[line - 1]
        assert letter.cause.startswith(cause)
        assert (letter.attempts, letter.source) == (1, "rows")
        assert letter.position == {"path": str(tmp_path / "in.jsonl"), "line": line}
        assert before <= datetime.fromisoformat(letter.time) <= datetime.now(UTC)
    assert sorted(letter.number for letter in found) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    "original", [b"", b"0012", b"\xd3\x5d\x34", b"1e+5", b'a,"b"\r\n', bytes(range(256))]
)
async def test_originals_survive_every_format(tmp_path: Path, suffix: str, original: bytes) -> None:
    """Base64 may look like a number, and b"" like nothing."""
    (tmp_path / "in").write_bytes(original.replace(b"\n", b" ") + b"\n")
    original = original.replace(b"\n", b" ")
    path = tmp_path / f"dead.{suffix}"
    graph = Graph(
        name="g",
        sources={"rows": FileSource(path=str(tmp_path / "in"), format="raw")},
        operators={"step": Map(inputs=("rows",), function=refuse)},
        sinks={"out": ListSink(inputs=("step",))},
        dead_letter=FileSink(path=str(path)),
    )
    await run(graph)
    (letter,) = await letters_of(path)
    assert letter.payload == original


def refuse(value: Any) -> Any:
    message = f"refused {value!r}"
    raise ValueError(message)


VALUE = {"n": 7, "text": "é", "list": [1.5, None]}


@pytest.mark.parametrize("suffix", FORMATS)
async def test_records_without_bytes_leave_their_value_key_time_and_headers(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"dead.{suffix}"
    record = Record(VALUE, "007", 1234567890123, (("h", b"\xff"), ("i", b"")))
    graph = Graph(
        name="g",
        sources={"in": MemorySource(records=[record, Record(VALUE)])},
        operators={"step": Map(inputs=("in",), function=refuse)},
        sinks={"out": ListSink(inputs=("step",))},
        dead_letter=FileSink(path=str(path)),
    )
    await run(graph)
    first, second = await letters_of(path)
    assert (first.original, first.payload) == (VALUE, None)
    assert (first.key, first.timestamp_ms) == ("007", 1234567890123)
    assert first.headers == (("h", b"\xff"), ("i", b""))
    assert (second.key, second.timestamp_ms, second.headers) == (None, None, ())
    assert second.position == {"index": 1}


async def test_a_merged_stream_keeps_the_values_of_records_that_have_no_bytes(
    tmp_path: Path,
) -> None:
    (tmp_path / "in.jsonl").write_bytes(b'{"n": 1}\n')
    graph = Graph(
        name="g",
        sources={
            "a": FileSource(path=str(tmp_path / "in.jsonl")),
            "b": MemorySource(records=[{"n": 2}]),
        },
        operators={"step": Map(inputs=("a", "b"), function=refuse, merge="round_robin")},
        sinks={"out": ListSink(inputs=("step",))},
        dead_letter=(letters := ListSink()),
    )
    await run(graph)
    assert [(letter["source"], letter["original"]) for letter in letters.probe.values] == [
        ("a", b'{"n": 1}'),
        ("b", {"n": 2}),
    ]


async def test_what_is_no_dead_letter_is_told_by_its_number(tmp_path: Path) -> None:
    good = {"original": "YQ==", "cause": "c", "node": "n", "attempts": 1, "time": "t"}
    good |= {"position": {"line": 3}}
    lines = [
        json.dumps(good),
        json.dumps({"a": 1}),
        json.dumps(good | {"position": {"line": "x"}}),
        json.dumps(good | {"position": {}}),
        json.dumps(good | {"headers": [["h", "?"]]}),
        json.dumps(good)[:-9],
    ]
    path = tmp_path / "dead.jsonl"
    path.write_text("\n".join(lines))
    found = await read(path)
    assert [letter.number for letter in found] == [1, 2, 3, 4, 5, 6]
    assert [isinstance(letter, Letter) for letter in found] == [True] + 5 * [False]
    assert isinstance(found[1], Damaged)
    assert found[1].cause.startswith("expected a dead letter with original, cause, node")


async def test_a_format_is_named_where_the_suffix_does_not_tell_it(tmp_path: Path) -> None:
    path = tmp_path / "dead"
    layout = CsvFormat(delimiter=";")
    await run(rejecting_graph(tmp_path, FileSink(path=str(path), format=layout)))
    assert len(await read(path, format=layout)) == 5
    with pytest.raises(GraphError, match="expected a format, found none"):
        await read(path)
    with pytest.raises(ConnectorError, match=r"expected to read .* found nothing at"):
        await read(tmp_path / "none.jsonl")


@pytest.mark.parametrize(("budget", "fails"), [("none", False), (FailureBudget(), True)])
async def test_a_lifted_budget_bears_any_number(budget: Any, fails: bool) -> None:
    records = list(range(3000))
    letters = ListSink()
    graph = Graph(
        name="g",
        sources={"in": MemorySource(records=records)},
        operators={"step": Map(inputs=("in",), function=refuse)},
        sinks={"out": ListSink(inputs=("step",))},
        dead_letter=letters,
        failure_budget=budget,
    )
    if fails:
        with pytest.raises(Exception, match="step: expected at most 1% rejected records"):
            await run(graph)
    else:
        await run(graph)
        assert [letter["original"] for letter in letters.probe.values] == records
