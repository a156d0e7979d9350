"""Every recipe of docs/cookbook.md does what it says, command by command."""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamflow.cli.app import app
from streamflow_connectors.demo.embedded_kafka import EmbeddedKafka

TEXT = (Path(__file__).parents[1] / "docs/cookbook.md").read_text(encoding="utf-8")
RECIPES = {
    section.split("\n", 1)[0]: section
    for section in re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]
    if "```console" in section
}


def files(recipe: str) -> dict[str, str]:
    found = re.findall(r"^`([\w.]+)`[^\n]*:\n\n```\w+\n(.*?)^```$", recipe, re.M | re.S)
    return dict(found)


def commands(recipe: str) -> Iterator[tuple[list[str], str]]:
    for console in re.findall(r"^```console\n(.*?)^```$", recipe, re.M | re.S):
        for command, output in re.findall(r"^\$ (.*)\n((?:[^$].*\n)*)", console, re.M):
            yield shlex.split(command), output


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give recipes an embedded broker, with topics of one partition as they ask for."""
    with EmbeddedKafka() as embedded:
        for topic in ("vibration", "wear"):
            embedded.create_topic(topic)
        monkeypatch.setenv("BROKER", embedded.address)
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("broker")
@pytest.mark.parametrize("title", RECIPES)
def test_recipe(
    title: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    recipe = RECIPES[title]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for name, text in files(recipe).items():
        (tmp_path / name).write_text(text)
    assert list(commands(recipe))
    for [program, *arguments], expected in commands(recipe):
        capfd.readouterr()
        for name in files(recipe):  # each command is a program of its own
            sys.modules.pop(name.removesuffix(".py"), None)
        if program == "streamflow":
            assert not app(arguments, exit_on_error=False), capfd.readouterr().err
        else:
            assert program == "python"
            exec(compile((tmp_path / arguments[0]).read_text(), arguments[0], "exec"), {})
        if expected:
            assert capfd.readouterr().out == expected


def test_there_are_ten_recipes() -> None:
    assert len(RECIPES) >= 10
