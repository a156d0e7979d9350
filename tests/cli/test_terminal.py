import os
import pty
import signal
import subprocess
from pathlib import Path

from tests.cli.programs import COMMAND

GRAPH = """\
version: 1
name: pipe
sources:
  rows: {type: file, path: in.pipe, format: jsonl}
sinks:
  out: {type: file, path: out.jsonl, inputs: [rows]}
"""


def read_all(terminal: int) -> bytes:
    """Return what is shown until the program on the terminal has ended."""
    shown = b""
    try:
        while part := os.read(terminal, 4096):
            shown += part
    except OSError:  # how Linux says that the other side is closed
        pass
    return shown


def test_a_terminal_shows_one_live_line_with_the_log_above(tmp_path: Path) -> None:
    (tmp_path / "graph.yaml").write_text(GRAPH, encoding="utf-8")
    os.mkfifo(tmp_path / "in.pipe")
    terminal, other = pty.openpty()
    command = [*COMMAND, "run", "graph.yaml"]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(command, cwd=tmp_path, stderr=other, env=environment)
    os.close(other)
    try:
        pipe = os.open(tmp_path / "in.pipe", os.O_WRONLY)
        shown = os.read(terminal, 4096)
        while b"records" not in shown:
            shown += os.read(terminal, 4096)
        process.send_signal(signal.SIGINT)
        shown += read_all(terminal)
        os.close(pipe)
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
    assert process.returncode == 130
    assert b"0 records \xc2\xb7 0/s" in shown
    lines = shown.split(b"\n")
    (logged,) = (line for line in lines if b"SIGINT: finishing what is in flight" in line)
    assert b"records" not in logged.rsplit(b"\x1b[2K", 1)[-1]
