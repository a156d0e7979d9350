"""What every command says of itself, and how it looks where nobody can see colours."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from collections.abc import Iterator

import pytest
from cyclopts import App

from streamflow.cli.app import app
from tests.cli.programs import COMMAND
from tests.cli.test_terminal import read_all

COLOUR = re.compile(rb"\x1b\[[0-9;]*3[0-7]")


def commands(group: App, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the names of all commands that do something themselves."""
    names = [name for name in group if not name.startswith("-")]
    if path and not names:
        yield path
    for name in names:
        yield from commands(group[name], (*path, name))


@pytest.mark.parametrize("command", list(commands(app)), ids=" ".join)
def test_every_command_has_help_with_an_example(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    app([*command, "--help"], exit_on_error=False)
    shown = capsys.readouterr().out
    assert f"Usage: streamflow {' '.join(command)}" in shown
    assert f"Example: streamflow {' '.join(command)}" in " ".join(shown.replace("│", "").split())


def shown_on_a_terminal(*arguments: str, **environment: str) -> bytes:
    terminal, other = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=other,
        stderr=other,
        env=os.environ | {"TERM": "xterm-256color"} | environment,
    )
    os.close(other)
    try:
        return read_all(terminal)
    finally:
        process.wait()
        os.close(terminal)


@pytest.mark.slow
def test_colours_are_for_terminals_and_for_those_who_want_them() -> None:
    assert COLOUR.search(shown_on_a_terminal("run", "--help"))
    assert not COLOUR.search(shown_on_a_terminal("run", "--help", NO_COLOR="1"))
    for arguments in (["run", "--help"], ["list"], ["describe", "file"]):
        done = subprocess.run([*COMMAND, *arguments], capture_output=True, check=False)
        assert b"\x1b" not in done.stdout + done.stderr
