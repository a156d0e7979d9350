"""Dead letters through their graph once more."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from streamflow.errors import ConnectorError, RunStoppedError
from streamflow.graph import Checkpoints, FailureBudget, Graph
from streamflow.models.model import Model
from streamflow.nodes import Buffer
from streamflow.operators.functions import Map
from streamflow.records import Record
from streamflow.runtime.letters import LetterFile
from streamflow.runtime.replay import note_path, num_replayed, open_replay, plan_replay
from streamflow.testing import Gate, ListSink
from streamflow_connectors.files import FileSink, FileSource
from streamflow_connectors.kafka import KafkaSink, KafkaSource
from streamflow_connectors.memory import MemorySource

pytestmark = pytest.mark.anyio

BAD = (3, 77, 150)


LETTER = (
    '{"original":"eyJuIjogN30=","cause":"c","node":"step","attempts":4,"time":"t",'
    '"position":{"topic":"t","partition":2,"offset":99},"source":"rows","key":"k"}\n'
)


def double(value: Any) -> Any:
    return {"n": value["n"], "twice": 2 * value["n"]}


def strict(value: Any) -> Any:
    if value["n"] in BAD:
        message = f"a bad {value['n']}"
        raise ValueError(message)
    return double(value)


def graph_of(folder: Path, function: Callable[[Any], Any], **options: Any) -> Graph:
    """Return a graph from a csv file to a list, by way of a function."""
    sink = options.pop("sink", None) or ListSink(inputs=("step",))
    (folder / "in.csv").write_text("n,x\n" + "".join(f"{n},a\n" for n in range(200)))
    graph = Graph(
        **{
            "name": "g",
            "sources": {"rows": FileSource(path="in.csv")},
            "operators": {"step": Map(inputs=("rows",), function=function)},
            "sinks": {"out": sink},
            "dead_letter": FileSink(path="dead.jsonl"),
            "failure_budget": "none",
        }
        | options
    )
    graph._folder = folder
    return graph


async def run(graph: Graph) -> None:
    with anyio.fail_after(60):
        async with graph.open() as opened:
            await opened.wait()


async def replay(graph: Graph, path: Path, **options: Any) -> int:
    """Replay a file to the end; return how many letters there were."""
    plan = await plan_replay(graph, LetterFile(path, **options))
    with anyio.fail_after(60):
        async with open_replay(graph, plan) as opened:
            await opened.wait()
    plan.finish()
    return len(plan)


async def letters_of(path: Path) -> list[Any]:
    return [letter async for batch in LetterFile(path).batches() for letter in batch]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "msgpack", "csv.gz"])
async def test_what_was_mended_comes_out_once_with_its_position(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"dead.{suffix}"
    dead_letter = FileSink(path=path.name)
    await run(graph_of(tmp_path, strict, dead_letter=dead_letter))
    assert len(await letters_of(path)) == 3
    sink = ListSink(inputs=("step",))
    mended = graph_of(tmp_path, double, sink=sink, dead_letter=dead_letter)
    assert await replay(mended, path) == 3
    assert sink.probe.values == [{"n": n, "twice": 2 * n} for n in BAD]
    assert [record.position for record in sink.probe.records] == [
        {"path": "in.csv", "line": n + 1} for n in BAD
    ]
    assert num_replayed(path) == 3
    assert await replay(mended, path) == 0
    assert len(sink.probe.values) == 3


async def test_three_of_200_records_are_mended_and_come_out_predicted(tmp_path: Path) -> None:
    model = Model(
        inputs=("step",),
        network=({"Linear": [1, 1]},),
        features=("n",),
        target="twice",
        optimizer={"SGD": {"lr": 1e-6}},
        compile=False,
    )
    options = {"sink": FileSink(path="out.jsonl", inputs=("m",)), "models": {"m": model}}
    await run(graph_of(tmp_path, strict, **options))
    before = (tmp_path / "out.jsonl").read_text().splitlines()
    assert len(before) == 197
    await replay(graph_of(tmp_path, double, **options), tmp_path / "dead.jsonl")
    after = (tmp_path / "out.jsonl").read_text().splitlines()
    assert after[:197] == before
    predicted = [json.loads(line) for line in after[197:]]
    assert [record["source"]["line"] for record in predicted] == [n + 1 for n in BAD]
    assert [record["target"] for record in predicted] == [2 * n for n in BAD]
    assert all(isinstance(record["prediction"], float) for record in predicted)


async def test_what_fails_again_is_a_letter_again_with_one_attempt_more(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    await run(graph_of(tmp_path, strict))
    failing = graph_of(tmp_path, strict, failure_budget=FailureBudget(fraction=0, after=1))
    for attempts in (2, 3):
        assert await replay(failing, path) == 3
        again = (await letters_of(path))[-3:]
        assert [letter.attempts for letter in again] == 3 * [attempts]
        assert [letter.payload for letter in again] == [b"%d,a" % n for n in BAD]
        assert [letter.offset for letter in again] == [n + 1 for n in BAD]
        assert {letter.source for letter in again} == {"rows"}
    sink = ListSink(inputs=("step",))
    assert await replay(graph_of(tmp_path, double, sink=sink), path) == 3
    assert [value["n"] for value in sink.probe.values] == list(BAD)
    assert len(await letters_of(path)) == 9


async def test_an_interrupted_replay_is_done_again_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    await run(graph_of(tmp_path, strict))
    held = ListSink(inputs=("step",), gate=Gate(is_open=False))
    graph = graph_of(tmp_path, lambda value: value if value["n"] != 77 else 1 / 0, sink=held)
    plan = await plan_replay(graph, LetterFile(path))
    with anyio.fail_after(60):
        async with open_replay(graph, plan) as opened:
            await held.gate.wait_until_held()
            opened.abort()
            with pytest.raises(RunStoppedError):
                await opened.wait()
    assert held.probe.values == []
    assert not note_path(path).exists()
    sink = ListSink(inputs=("step",))
    num_letters = len(await letters_of(path))
    assert num_letters in (3, 4)  # the one that failed again may be there already
    assert await replay(graph_of(tmp_path, double, sink=sink), path) == num_letters
    assert [value["n"] for value in sink.probe.values] == list(BAD)  # and each comes once


async def test_a_replay_adds_to_what_sinks_have_written(tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text("")
    sink = FileSink(path="out.csv", inputs=("step",))
    await run(graph_of(tmp_path, strict, sink=sink))
    before = (tmp_path / "out.csv").read_text()
    await replay(graph_of(tmp_path, double, sink=sink), tmp_path / "dead.jsonl")
    assert (tmp_path / "out.csv").read_text() == before + "".join(f"{n},{2 * n}\n" for n in BAD)


async def test_nothing_is_dropped_while_replaying(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    await run(graph_of(tmp_path, lambda value: 1 / 0))
    gate = Gate(is_open=False)
    slow = ListSink(inputs=("step",), gate=gate, overflow="latest", buffer=Buffer(records=5))
    graph = graph_of(tmp_path, double, sink=slow)
    plan = await plan_replay(graph, LetterFile(path))
    async with open_replay(graph, plan) as opened:
        await anyio.wait_all_tasks_blocked()
        gate.open()
        await opened.wait()
        assert opened.stats().dropped == 0
    assert len(slow.probe.values) == 200


async def test_a_record_that_two_nodes_rejected_goes_through_once(tmp_path: Path) -> None:
    operators = {name: Map(inputs=("rows",), function=strict) for name in ("one", "two")}
    sink = ListSink(inputs=("one", "two"))
    await run(graph_of(tmp_path, strict, operators=operators, sink=sink))
    assert len(await letters_of(tmp_path / "dead.jsonl")) == 6
    operators = {name: Map(inputs=("rows",), function=double) for name in ("one", "two")}
    sink = ListSink(inputs=("one", "two"))
    mended = graph_of(tmp_path, double, operators=operators, sink=sink)
    assert await replay(mended, tmp_path / "dead.jsonl") == 6
    assert sorted(value["n"] for value in sink.probe.values) == sorted(2 * BAD)


async def test_each_source_gets_its_own_letters_decoded_its_way(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"n": 77}\n{"n": 8}\n')
    with gzip.open(tmp_path / "c.csv.gz", "wt") as file:
        file.write("y;n\n1;5\n2;3\n")
    sources = {
        "rows": FileSource(path="in.csv"),
        "more": FileSource(path="b.jsonl"),
        "packed": FileSource(path="c.csv.gz", format={"csv": {"delimiter": ";"}}),
        "memory": MemorySource(records=[Record({"n": 150}, "k", 5, (("h", b"x"),))]),
    }
    operators = {"step": Map(inputs=tuple(sources), function=strict)}
    await run(graph_of(tmp_path, strict, sources=sources, operators=operators))
    assert len(await letters_of(tmp_path / "dead.jsonl")) == 6
    operators = {"step": Map(inputs=tuple(sources), function=double)}
    sink = ListSink(inputs=("step",))
    mended = graph_of(tmp_path, double, sources=sources, operators=operators, sink=sink)
    await replay(mended, tmp_path / "dead.jsonl")
    assert sorted(value["n"] for value in sink.probe.values) == sorted([*BAD, 77, 3, 150])
    (pushed,) = (item for item in sink.probe.records if item.position == {"index": 0})
    assert (pushed.key, pushed.timestamp_ms, pushed.headers) == ("k", 5, (("h", b"x"),))


async def test_letters_of_a_topic_are_decoded_without_a_broker(tmp_path: Path) -> None:
    (tmp_path / "dead.jsonl").write_text(LETTER)
    source = KafkaSource(bootstrap_servers="nobody:1", topics=("t",), group="g")
    sink = ListSink(inputs=("step",))
    graph = graph_of(tmp_path, double, sink=sink, sources={"rows": source})
    await replay(graph, tmp_path / "dead.jsonl")
    (record,) = sink.probe.records
    assert (record.value, record.key) == ({"n": 7, "twice": 14}, "k")
    assert record.position == {"topic": "t", "partition": 2, "offset": 99}


def test_topics_written_once_take_replayed_records_all_the_same() -> None:
    sink = KafkaSink(bootstrap_servers="h:1", topic="t", inputs=("a",), delivery="exactly_once")
    assert isinstance(adding := sink.adding(), KafkaSink)
    assert adding.delivery == "at_least_once"


async def test_without_a_dead_letter_sink_failures_are_added_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    await run(graph_of(tmp_path, strict))
    assert await replay(graph_of(tmp_path, strict, dead_letter=None), path) == 3
    assert [letter.attempts for letter in await letters_of(path)] == [1, 1, 1, 2, 2, 2]


async def test_a_note_holds_for_the_file_it_was_made_for(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    await run(graph_of(tmp_path, strict))
    await replay(graph_of(tmp_path, double), path)
    assert num_replayed(path) == 3
    await run(graph_of(tmp_path, strict))  # writes the file anew
    assert num_replayed(path) == 0
    note_path(path).write_text("[1]")
    with pytest.raises(ConnectorError, match=r"dead.jsonl.replayed: expected a note, found"):
        num_replayed(path)


async def test_letters_that_come_meanwhile_are_for_the_next_replay(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    await run(graph_of(tmp_path, strict))
    sink = ListSink(inputs=("step",))
    graph = graph_of(tmp_path, double, sink=sink)
    plan = await plan_replay(graph, LetterFile(path))
    with path.open("a") as file:
        file.write(LETTER)
    async with open_replay(graph, plan) as opened:
        await opened.wait()
    plan.finish()
    assert [value["n"] for value in sink.probe.values] == list(BAD)
    later = await plan_replay(graph, LetterFile(path))
    assert (later.first, len(later)) == (4, 1)


async def test_a_file_that_others_write_meanwhile_is_not_noted(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    await run(graph_of(tmp_path, strict))
    plan = await plan_replay(graph_of(tmp_path, double), LetterFile(path))
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ConnectorError, match="expected the letters that were replayed, found oth"):
        plan.finish()
    assert not note_path(path).exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "expected dead letters, found no file; check the path"),
        ('{"n": 1}\n', r"expected a dead letter with original, .* \(letter 1\); remove it"),
        (
            LETTER.replace("rows", "others"),
            "expected letters of rows, found letter 1 of others; replay it with the graph",
        ),
    ],
)
async def test_what_cannot_be_replayed_is_found_before_anything_is_opened(
    tmp_path: Path, text: str | None, message: str
) -> None:
    path = tmp_path / "dead.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConnectorError, match=message):
        await plan_replay(graph_of(tmp_path, double), LetterFile(path))


async def test_rows_need_the_header_of_their_file(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    await run(graph_of(tmp_path, strict))
    graph = graph_of(tmp_path, double)
    (tmp_path / "in.csv").unlink()
    with pytest.raises(ConnectorError, match=r"in.csv: expected the row that names the columns"):
        await replay(graph, path)
    assert not note_path(path).exists()


def checkpointed(folder: Path) -> Graph:
    """Return a graph whose function is the same in every run, as an edited one is by name."""
    sink = FileSink(path="out.csv", inputs=("step",))
    return graph_of(folder, strict, sink=sink, checkpoint=Checkpoints(path="states", every=1000))


def mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.runtime.test_replay.BAD", ())


ROWS = "".join(f"{n},{2 * n}\n" for n in BAD)


async def test_with_checkpoints_a_replay_goes_on_from_the_newest_and_takes_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, graph = tmp_path / "dead.jsonl", checkpointed(tmp_path)
    await run(graph)
    before = (tmp_path / "out.csv").read_text()
    mend(monkeypatch)
    assert await replay(graph, path) == 3
    assert (tmp_path / "out.csv").read_text() == before + ROWS
    await run(graph)  # reads on where the rows end, and cuts nothing off
    assert (tmp_path / "out.csv").read_text() == before + ROWS
    assert num_replayed(path) == 3


async def test_an_interrupted_replay_leaves_the_checkpoint_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, graph = tmp_path / "dead.jsonl", checkpointed(tmp_path)
    await run(graph)
    before = (tmp_path / "out.csv").read_text()
    mend(monkeypatch)
    held = ListSink(inputs=("step",), gate=Gate(is_open=False))
    slow = graph.model_copy(update={"sinks": {**graph.sinks, "held": held}})
    plan = await plan_replay(slow, LetterFile(path))
    with anyio.fail_after(60):
        async with open_replay(slow, plan) as opened, anyio.create_task_group() as tasks:
            await held.gate.wait_until_held()
            while opened.stats().nodes["out"].sent < 3:
                await anyio.lowlevel.checkpoint()
            tasks.start_soon(opened.stop)
            while opened.stats().state == "running":
                await anyio.lowlevel.checkpoint()
            held.gate.open()
    assert (tmp_path / "out.csv").read_text() == before + ROWS
    await run(graph)
    assert (tmp_path / "out.csv").read_text() == before
    assert await replay(graph, path) == 3
    assert (tmp_path / "out.csv").read_text() == before + ROWS


async def replay_without_note(graph: Graph, path: Path) -> int:
    """Replay a file in a process that dies before it writes the note; return how many."""
    plan = await plan_replay(graph, LetterFile(path))
    with anyio.fail_after(60):
        async with open_replay(graph, plan) as opened:
            await opened.wait()
    return len(plan)


@pytest.mark.parametrize("num_runs_between", [0, 1, 5])
async def test_letters_whose_note_a_crash_has_kept_away_are_not_learned_twice(
    tmp_path: Path, num_runs_between: int
) -> None:
    path, graph = tmp_path / "dead.jsonl", checkpointed(tmp_path)
    await run(graph)
    assert await replay_without_note(graph, path) == 3
    assert not note_path(path).exists()
    for _ in range(num_runs_between):  # more than are kept
        await run(graph)
    assert await replay_without_note(graph, path) == 3  # those that failed again
    assert num_replayed(path) == 3
    assert await replay(graph, path) == 3
    assert num_replayed(path) == 9


async def test_what_a_checkpoint_notes_of_another_file_does_not_count(tmp_path: Path) -> None:
    path, graph = tmp_path / "dead.jsonl", checkpointed(tmp_path)
    await run(graph)
    assert await replay_without_note(graph, path) == 3
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"attempts":1', '"attempts":9'), encoding="utf-8")
    assert len(await plan_replay(graph, LetterFile(path))) == 6
    assert not note_path(path).exists()
