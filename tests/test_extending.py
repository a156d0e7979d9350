"""A stranger's package, which the page about extending shows: built, found, described and run."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cli.programs import COMMAND
from tests.test_docs import blocks
from tests.traces import PLENTY

STRANGER = Path(__file__).parent / "stranger"
PAGE = "docs/extending.md"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the package as an installer leaves it: an unpacked wheel."""
    folder = tmp_path_factory.mktemp("stranger")
    shutil.copytree(STRANGER, folder / "package")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=folder / "package", check=True, capture_output=True)
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder / "site")
    return folder / "site"


@pytest.fixture
def run(installed: Path, tmp_path: Path) -> Any:
    """Return what runs a program where the package is installed."""

    def run_program(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(installed)},
            capture_output=True,
            text=True,
            timeout=PLENTY,
            check=False,
        )

    return run_program


@contextmanager
def listening(sent: bytes = b"") -> Iterator[tuple[int, bytearray]]:
    """Send something to whoever connects, and gather what comes; give the port as well."""
    gathered = bytearray()

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(4096):
                gathered.extend(chunk)

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PLENTY)
        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1], gathered
        thread.join()


def test_the_page_shows_the_package() -> None:
    assert blocks(PAGE, "toml") == [(STRANGER / "pyproject.toml").read_text()]
    shown = ("src/streamflow_lines/tcp.py", "src/streamflow_lines/difference.py")
    expected = [(STRANGER / path).read_text() for path in (*shown, "tests/test_lines.py")]
    assert blocks(PAGE, "python") == expected


@pytest.mark.slow
def test_its_types_are_found_and_described(run: Any) -> None:
    rows = [line.split()[:2] for line in run(*COMMAND, "list").stdout.splitlines()]
    assert ["source", "tcp"] in rows
    assert ["sink", "tcp"] in rows
    assert ["operator", "difference"] in rows
    [console] = blocks(PAGE, "console")
    described = run(*COMMAND, *console.split()[2:], "--json")
    [source] = json.loads(described.stdout)
    assert source["summary"].startswith("Reads a record from each line")
    assert [option["name"] for option in source["options"]] == ["port", "host", "format"]
    assert source["options"][0]["description"] == "The port."
    schema = json.loads(run(*COMMAND, "schema").stdout)
    assert schema["$defs"]["operator.difference"]["properties"]["max_keys"]["default"] == 10_000


def test_mistakes_in_its_options_are_told_with_their_place(run: Any, tmp_path: Path) -> None:
    [text] = blocks(PAGE, "yaml")
    (tmp_path / "graph.yaml").write_text(text.replace("tcp, port: 7001", "tcp, prot: 7001"))
    done = run(*COMMAND, "validate", "graph.yaml")
    assert done.returncode == 78
    assert "graph.yaml:3:23: expected an option of tcp, found prot; did you mean port?" in (
        done.stderr
    )


@pytest.mark.slow
def test_a_graph_with_it_is_validated_and_runs(run: Any, tmp_path: Path) -> None:
    [text] = blocks(PAGE, "yaml")
    lines = b'{"energy": 5}\n{"energy": 7.5}\n{"energy": 7}\n'
    with listening(lines) as (source, _), listening() as (sink, gathered):
        graph = text.replace("7001", str(source)).replace("7002", str(sink))
        (tmp_path / "graph.yaml").write_text(graph)
        validated = run(*COMMAND, "validate", "graph.yaml")
        assert validated.returncode == 0, validated.stderr
        assert "meters -> out: delivered at most once" in validated.stdout
        done = run(*COMMAND, "run", "graph.yaml")
        assert done.returncode == 0, done.stderr
    assert [json.loads(line)["energy"] for line in gathered.splitlines()] == [0, 2.5, -0.5]


@pytest.mark.slow
def test_its_own_tests_pass(run: Any) -> None:
    pytest_command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    done = run(*pytest_command, str(STRANGER / "tests"), "--rootdir", str(STRANGER))
    assert done.returncode == 0, done.stdout
    assert "5 passed" in done.stdout
