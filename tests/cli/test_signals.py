import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.programs import COMMAND, values

GRAPH = """\
version: 1
name: pipe
sources:
  rows: {type: file, path: in.pipe, format: jsonl}
operators:
  step: {type: map, function: steps:step, inputs: [rows]}
sinks:
  out: {type: file, path: out.jsonl, inputs: [step]}
"""

PASS_ON = """\
def step(value):
    return value
"""

STUCK = """\
import threading

def step(value):
    open("reached.pipe", "w").close()
    threading.Event().wait()
"""


@contextmanager
def running(folder: Path, steps: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run the graph, and give the process and the open end of the pipe that it reads."""
    (folder / "graph.yaml").write_text(GRAPH, encoding="utf-8")
    (folder / "steps.py").write_text(steps, encoding="utf-8")
    for name in ("in.pipe", "reached.pipe"):
        os.mkfifo(folder / name)
    process = subprocess.Popen(
        [*COMMAND, "run", "graph.yaml"], cwd=folder, stderr=subprocess.PIPE, text=True
    )
    try:
        pipe = os.open(folder / "in.pipe", os.O_WRONLY)  # waits until the source reads
        try:
            yield process, pipe
        finally:
            os.close(pipe)
    finally:
        process.kill()
        process.communicate()


def wait_until_written(path: Path, count: int) -> None:
    while not path.exists() or len(path.read_bytes().splitlines()) < count:
        os.sched_yield()


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["term", "int"]
)
def test_the_first_signal_drains(tmp_path: Path, number: signal.Signals, exit_code: int) -> None:
    rows = [{"n": n} for n in range(300)]
    with running(tmp_path, PASS_ON) as (process, pipe):
        os.write(pipe, b"".join(b'{"n": %d}\n' % row["n"] for row in rows))
        wait_until_written(tmp_path / "out.jsonl", 1)
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    written = values(tmp_path / "out.jsonl")
    assert process.returncode == exit_code
    assert written == rows[: len(written)]
    assert f"{number.name}: finishing what is in flight" in errors
    assert f"pipe: {len(written)} records in " in errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_the_second_signal_aborts_even_a_stuck_computation(tmp_path: Path) -> None:
    with running(tmp_path, STUCK) as (process, pipe):
        os.write(pipe, b'{"n": 1}\n')
        (tmp_path / "reached.pipe").read_bytes()
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        assert "finishing what is in flight" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 143
    assert "Traceback" not in errors
    assert values(tmp_path / "out.jsonl") == []
