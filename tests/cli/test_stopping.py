"""The first signal ends a run within its deadline, the second at once, whatever it is at."""

import os
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.cli.programs import COMMAND, streamflow

PLENTY = 60.0
NUM_ROWS = 2_000
REST = 1000 * "."  # so that one batch is more than a pipe holds

PROGRAM = "import surroundings; from streamflow.cli import main; main()"

SLOW_DISK = """\
import os
import threading

def fsync(descriptor):
    if "manifest.json" in os.readlink(f"/proc/self/fd/{descriptor}"):
        open("reached.pipe", "w").close()
        threading.Event().wait()

os.fsync = fsync
"""

SLOW_COMPILER = """\
import os

with open("c++", "w") as file:
    file.write('''#!/bin/sh
case "$*" in *.cpp*) : > "${0%c++}reached.pipe"; exec sleep 3600;; esac
exec g++ "$@"
''')
os.chmod("c++", 0o755)
os.environ["CXX"] = os.path.abspath("c++")
os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.abspath("compiled")
"""

STUCK = """\
import threading

def step(value):
    open("reached.pipe", "w").close()
    threading.Event().wait()
"""

HEAD = "version: 1\nname: g\nshutdown_timeout: {}\n"

CHECKPOINT = """\
checkpoint: {path: cp, every: 5}
sources: {rows: {type: file, path: in.jsonl}}
sinks: {out: {type: file, path: out.jsonl, inputs: [rows]}}
"""

COMPUTATION = """\
checkpoint: {path: cp, every: 5}
sources: {rows: {type: file, path: in.jsonl}}
operators: {step: {type: map, function: "steps:step", inputs: [rows]}}
sinks: {out: {type: file, path: out.jsonl, inputs: [step]}}
"""

SINK = """\
checkpoint: {path: cp, every: 1000000}
sources: {rows: {type: file, path: in.jsonl}}
sinks: {out: {type: file, path: out.pipe, format: jsonl, inputs: [rows]}}
"""

LEARNING = """\
checkpoint: {path: cp, every: 5}
sources: {rows: {type: file, path: in.pipe, format: jsonl}}
models:
  m: {inputs: [rows], network: [{Linear: [1, 1]}], features: [n], target: n, loss: mse,
      optimizer: {SGD: {lr: 0.001}}, compile: false}
sinks: {out: {type: file, path: out.jsonl, inputs: [m]}}
"""

COMPILING = LEARNING.replace("in.pipe, format: jsonl", "in.jsonl").replace("false", "true")

BROKER = """\
sources:
  rows: {type: kafka, bootstrap_servers: ADDRESS, topics: [t], connect_timeout: 3600}
sinks: {out: {type: file, path: out.jsonl, inputs: [rows]}}
"""


@contextmanager
def running(
    folder: Path, graph: str, num_signals: int, *, surroundings: str = ""
) -> Iterator[subprocess.Popen[str]]:
    """Run a graph, for which the second signal is not to come late."""
    head = HEAD.format(0.2 if num_signals == 1 else 3600)
    (folder / "graph.yaml").write_text(head + graph, encoding="utf-8")
    (folder / "steps.py").write_text(STUCK, encoding="utf-8")
    (folder / "surroundings.py").write_text(surroundings, encoding="utf-8")
    rows = "".join(f'{{"n": {n / 1000}, "rest": "{REST}"}}\n' for n in range(NUM_ROWS))
    (folder / "in.jsonl").write_text(rows, encoding="utf-8")
    for name in ("in.pipe", "out.pipe", "reached.pipe"):
        os.mkfifo(folder / name)
    command = [*COMMAND[:-1], PROGRAM, "run", "graph.yaml"]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def end(process: subprocess.Popen[str], num_signals: int) -> str:
    """Send so many signals; return what the process had to say."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    if num_signals > 1:
        assert process.stderr is not None
        while "finishing what is in flight" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=PLENTY)
    assert process.returncode == 143, errors
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(children, timeout=PLENTY)
    assert alive == []
    return errors


def assert_clean(folder: Path) -> None:
    """Check that nothing is left half done, and that another run may begin."""
    assert not list(folder.glob("cp/.*.*"))
    assert not list(folder.glob("*.new")) + list(folder.glob("*.mended"))
    assert streamflow(folder, "validate", "graph.yaml").returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("num_signals", [1, 2])
def test_a_disk_that_does_not_answer_does_not_hold_up_the_end(
    tmp_path: Path, num_signals: int
) -> None:
    with running(tmp_path, CHECKPOINT, num_signals, surroundings=SLOW_DISK) as process:
        (tmp_path / "reached.pipe").read_bytes()
        errors = end(process, num_signals)
    assert "found a computation or a write that does not return" in errors
    (tmp_path / "surroundings.py").write_text("", encoding="utf-8")
    finished = streamflow(tmp_path, "run", "graph.yaml")  # nobody holds the folder
    assert finished.returncode == 0, finished.stderr
    assert_clean(tmp_path)
    assert len((tmp_path / "out.jsonl").read_bytes().splitlines()) == NUM_ROWS


@pytest.mark.slow
@pytest.mark.parametrize("num_signals", [1, 2])
def test_a_computation_that_does_not_return_does_not_hold_up_the_end(
    tmp_path: Path, num_signals: int
) -> None:
    with running(tmp_path, COMPUTATION, num_signals) as process:
        (tmp_path / "reached.pipe").read_bytes()
        errors = end(process, num_signals)
    assert "found a computation or a write that does not return" in errors
    assert_clean(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("num_signals", [1, 2])
def test_a_pipe_that_nobody_empties_does_not_hold_up_the_end(
    tmp_path: Path, num_signals: int
) -> None:
    with running(tmp_path, SINK, num_signals) as process:
        pipe = os.open(tmp_path / "out.pipe", os.O_RDWR)  # a reader that never reads
        try:
            while select.select([], [pipe], [], 0)[1]:  # it has room
                os.sched_yield()
            errors = end(process, num_signals)
        finally:
            os.close(pipe)
    found = "still at work: out" if num_signals == 1 else "found the run aborted"
    assert found in errors
    assert "does not return" not in errors
    assert_clean(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("num_signals", [1, 2])
def test_a_run_that_learns_ends_with_a_checkpoint_or_at_once(
    tmp_path: Path, num_signals: int
) -> None:
    with running(tmp_path, LEARNING, 2) as process:
        pipe = os.open(tmp_path / "in.pipe", os.O_WRONLY)
        try:
            os.write(pipe, b'{"n": 0.5}\n' * 1000)
            while not (tmp_path / "out.jsonl").exists():
                os.sched_yield()
            errors = end(process, num_signals)
        finally:
            os.close(pipe)
    assert "does not return" not in errors
    assert_clean(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("num_signals", [1, 2])
def test_a_compiler_that_does_not_end_does_not_hold_up_the_end(
    tmp_path: Path, num_signals: int
) -> None:
    with running(tmp_path, COMPILING, num_signals, surroundings=SLOW_COMPILER) as process:
        (tmp_path / "reached.pipe").read_bytes()
        end(process, num_signals)
    assert_clean(tmp_path)


@pytest.mark.kafka
@pytest.mark.parametrize("num_signals", [1, 2])
def test_a_broker_that_does_not_answer_does_not_hold_up_the_end(
    tmp_path: Path, num_signals: int
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with running(tmp_path, BROKER.replace("ADDRESS", address), num_signals) as process:
            connection, _ = silent.accept()
            with connection:
                errors = end(process, num_signals)
    assert "does not return" not in errors
    assert_clean(tmp_path)
