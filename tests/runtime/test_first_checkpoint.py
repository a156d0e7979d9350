"""The checkpoint before the first record: what a crash in the first interval leaves is undone."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import anyio
import pytest

from streamflow.checkpoints import Snapshot, reading
from streamflow.contracts import Context, Processed, Processor, Resume
from streamflow.errors import CheckpointError, NodeError
from streamflow.graph import Graph, Start
from streamflow.nodes import Operator
from streamflow.operators.step import Step
from streamflow.records import Batch
from streamflow.runtime.run import opened_run
from streamflow.runtime.starting import Checkpointing
from streamflow.testing import ListSource
from streamflow_connectors.files import FileSink
from tests.runtime.graphs import graph_of, numbers, sink

pytestmark = pytest.mark.anyio


class PowerCut(Operator):
    """Passes records on up to one at which the power is cut; counts them."""

    incidental: ClassVar[frozenset[str]] = frozenset({"at"})
    type: Literal["power_cut"] = "power_cut"
    at: int | None = None
    other: int = 0

    @contextmanager
    def open(self, context: Context) -> Iterator[Processor]:
        yield PowerCutStep(self.at)


class PowerCutStep(Step):
    def __init__(self, at: int | None) -> None:
        self._at = at
        self._count = 0

    def process(self, batch: Batch) -> Processed:
        if self._at in [row["n"] for row in batch.rows()]:
            message = "power cut"
            raise RuntimeError(message)
        self._count += len(batch)
        return Processed(batch)

    def state(self) -> dict[str, Any]:
        return {"count": self._count}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._count = state["count"]


def appending(folder: Path, suffix: str, at: int | None) -> Graph:
    source = ListSource(values=tuple({"n": n} for n in range(20)), batch_size=3)
    return Graph(
        name="appending",
        checkpoint={"path": str(folder / "cp"), "every": 1000},
        sources={"in": source},
        operators={"cut": PowerCut(inputs=("in",), at=at)},
        sinks={"out": FileSink(inputs=("cut",), path=str(folder / f"out.{suffix}"), mode="append")},
    )


async def run_to_end(graph: Graph, start: Start | None = None) -> None:
    with anyio.fail_after(20):
        async with graph.open(start=start) as run:
            await run.wait()


BEFORE = {"jsonl": b'{"n":-1}\n', "csv": b"n\n-1\n"}


@pytest.mark.parametrize("is_new", [False, True])
@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
async def test_what_was_appended_before_a_crash_in_the_first_interval_is_cut_off(
    tmp_path: Path, suffix: str, is_new: bool
) -> None:
    path = tmp_path / f"out.{suffix}"
    if not is_new:
        path.write_bytes(BEFORE[suffix])
    for at in (7, 13):
        with pytest.raises(NodeError, match="power cut"):
            await run_to_end(appending(tmp_path, suffix, at))
    await run_to_end(appending(tmp_path, suffix, None))
    found = path.read_text(encoding="utf-8").splitlines()
    rows = [f'{{"n":{n}}}' if suffix == "jsonl" else str(n) for n in range(20)]
    before = BEFORE[suffix].decode().splitlines()
    assert found == ((before[:1] if suffix == "csv" else []) if is_new else before) + rows
    assert reading.names(tmp_path / "cp") == ["00000000", "00000001"]


async def test_a_file_that_was_new_and_is_gone_is_made_again(tmp_path: Path) -> None:
    with pytest.raises(NodeError, match="power cut"):
        await run_to_end(appending(tmp_path, "jsonl", 7))
    (tmp_path / "out.jsonl").unlink()
    await run_to_end(appending(tmp_path, "jsonl", None))
    assert len((tmp_path / "out.jsonl").read_bytes().splitlines()) == 20


async def test_a_graph_that_has_learned_nothing_may_change(tmp_path: Path) -> None:
    graph = appending(tmp_path, "jsonl", 0)
    with pytest.raises(NodeError, match="power cut"):
        await run_to_end(graph)
    other = graph.model_copy(update={"operators": {"cut": PowerCut(inputs=("in",), other=1)}})
    await run_to_end(other)
    assert len((tmp_path / "out.jsonl").read_bytes().splitlines()) == 20
    assert reading.names(tmp_path / "cp") == ["00000001", "00000002"]


async def test_no_record_comes_before_the_first_checkpoint_is_safe() -> None:
    source = numbers(10)
    graph = graph_of(source, sink(), checkpoint={"path": "nowhere", "every": 4})
    seen: list[tuple[int, Snapshot]] = []

    def write_first(snapshot: Snapshot) -> None:
        seen.append((source.probe.num_received, snapshot))

    taken: list[Snapshot] = []
    checkpoints = Checkpointing(None, False, taken.append, write_first)
    with anyio.fail_after(20):
        async with opened_run(graph, checkpoints) as run:
            await run.wait()
    assert seen == [(0, Snapshot({"in": 0}, {"in": {}}, {}, {"out0": {"records": 0}}))]
    assert [snapshot.records["in"] for snapshot in taken] == [4, 8, 10]


async def test_a_first_checkpoint_that_fails_is_counted_and_the_run_goes_on() -> None:
    out = sink()
    graph = graph_of(numbers(10), out, checkpoint={"path": "nowhere", "every": 4})

    def write_first(snapshot: Snapshot) -> None:
        message = "expected room, found a full disk"
        raise CheckpointError(message)

    with anyio.fail_after(20):
        async with opened_run(graph, Checkpointing(None, False, print, write_first)) as run:
            await run.wait()
    checkpoints = run.stats().checkpoints
    assert checkpoints is not None
    assert (checkpoints.taken, checkpoints.failed) == (3, 1)
    assert out.probe.values == list(range(10))


class Opened(ListSource):
    """Notes where it is to go on."""

    type: Literal["opened"] = "opened"  # type: ignore[assignment]
    resumes: list[Any] = []  # noqa: RUF012  # pydantic copies it for each instance

    def open(self, context: Context) -> Any:
        self.resumes.append(context.resume)
        return super().open(context)


@pytest.mark.parametrize(
    ("snapshot", "is_rewind", "resume"),
    [
        (Snapshot({"in": 0}, {"in": {}}), False, None),
        (Snapshot({"in": 0}, {"in": {}}), True, Resume({}, None, True)),
        (Snapshot({"in": 0}, {"in": {(): 3}}), False, Resume({(): 3})),
        (Snapshot({"in": 1, "other": 2}, {"in": {}}), False, Resume({})),
    ],
)
async def test_a_source_begins_as_at_first_where_nothing_has_come(
    snapshot: Snapshot, is_rewind: bool, resume: Resume | None
) -> None:
    source = Opened(values=(1, 2, 3, 4, 5))
    graph = graph_of(source, sink(), checkpoint={"path": "nowhere", "every": 4})
    with anyio.fail_after(20):
        async with opened_run(graph, Checkpointing(snapshot, is_rewind, print)) as run:
            await run.wait()
    assert source.resumes == [resume]
