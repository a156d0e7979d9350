import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from streamflow.cli.tapping import Tap, tapped
from streamflow.errors import GraphError
from streamflow.graph import Graph
from streamflow_connectors.kafka import KafkaSource
from streamflow_connectors.memory import MemorySink
from streamflow_connectors.zeromq import ZeroMqSource
from tests.cli.programs import COMMAND, streamflow

GRAPH = """\
name: line
checkpoint: {path: state, every: 3}
sources:
  rows: {type: file, path: in.csv}
  unread: {type: file, path: none.csv}
operators:
  pick: {type: select, inputs: [rows], fields: [a]}
models:
  m: {inputs: [rows], network: [{Linear: [1, 1]}], features: [a], target: b, compile: false}
sinks:
  picked: {type: file, path: out.jsonl, inputs: [pick]}
  both: {type: file, path: both.jsonl, inputs: [m, unread]}
dead_letter: {type: file, path: dead.jsonl}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "graph.yaml").write_text(GRAPH)
    rows = [f"{number},{2 * number}" for number in range(20)]
    (tmp_path / "in.csv").write_text("\n".join(["a,b", *rows, "no,1"]) + "\n")
    return tmp_path


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("node", ["pick", "picked"])
def test_all_records_are_printed_and_nothing_is_written(folder: Path, node: str) -> None:
    done = streamflow(folder, "tap", "graph.yaml", node)
    assert done.returncode == 0, done.stderr
    assert lines(done.stdout) == [*({"a": number} for number in range(20)), {"a": "no"}]
    assert sorted(path.name for path in folder.iterdir()) == ["graph.yaml", "in.csv"]


def test_the_first_records_with_all_they_carry(folder: Path) -> None:
    done = streamflow(folder, "tap", "graph.yaml", "rows", "-n", "3", "--meta")
    assert done.returncode == 0, done.stderr
    assert lines(done.stdout) == [
        {
            "value": {"a": number, "b": 2 * number},
            "key": None,
            "time_ms": None,
            "source": {"path": "in.csv", "line": number + 1},
        }
        for number in range(3)
    ]


@pytest.mark.slow
def test_a_model_is_tapped_with_overrides(folder: Path) -> None:
    change = "models.m.optimizer.SGD.lr=0.001"
    done = streamflow(folder, "tap", "graph.yaml", "m", "--set", change)
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in lines(done.stdout)] == [*range(20)]
    assert "m: " in done.stderr  # the bad record is logged, not put among the dead letters
    assert sorted(path.name for path in folder.iterdir()) == ["graph.yaml", "in.csv"]


def test_it_ends_when_nobody_reads_it(folder: Path) -> None:
    rows = "".join(f"{number},1\n" for number in range(200_000))
    (folder / "in.csv").write_text(f"a,b\n{rows}")
    command = [sys.executable, *COMMAND[1:], "tap", "graph.yaml", "rows"]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as program:
        assert program.stdout is not None
        assert json.loads(program.stdout.readline()) == {"a": 0, "b": 1}
        program.stdout.close()
        assert program.stderr is not None
        assert b"rror" not in program.stderr.read()
    assert program.returncode == 0


def test_a_node_that_is_not_there(folder: Path) -> None:
    done = streamflow(folder, "tap", "graph.yaml", "pic")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "pic: expected a node of the graph, found none; did you mean pick?\n"
    done = streamflow(folder, "tap", "graph.yaml", "pick", "-n", "0")
    assert done.returncode == 2
    assert done.stderr.startswith("--limit: expected a number of at least 1, found 0")


def graph_of(source: Any) -> Graph:
    return Graph(name="g", sources={"tap": source}, sinks={"out": MemorySink(inputs=("tap",))})


def test_a_group_loses_nothing_to_it() -> None:
    source = KafkaSource(bootstrap_servers="h:1", topics=("t",), group="g", group_instance_id="1")
    part = tapped(graph_of(source), "tap", Tap())
    watching = part.sources["tap"]
    assert isinstance(watching, KafkaSource)
    assert (watching.group, watching.group_instance_id, watching.topics) == (None, None, ("t",))
    assert list(part.sinks) == ["tap-tap"]
    assert all(sink.stores_positions for sink in part.sinks.values())  # so that nobody commits


def test_what_is_taken_from_others_is_not_tapped() -> None:
    with pytest.raises(GraphError, match=r"^sources\.tap: expected a source that can be read besi"):
        tapped(graph_of(ZeroMqSource(socket="pull", bind=("tcp://127.0.0.1:1",))), "tap", Tap())
    tapped(graph_of(ZeroMqSource(socket="sub", connect=("tcp://127.0.0.1:1",))), "tap", Tap())
