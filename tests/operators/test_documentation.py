"""The examples of docs/operators.md do what stands below them."""

import re
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from ruamel.yaml import YAML

from streamflow import Graph
from streamflow.nodes.plugins import OPERATORS, registered

TEXT = (Path(__file__).parents[2] / "docs/operators.md").read_text(encoding="utf-8")
HEAD, *SECTIONS = re.split(r"^## ", TEXT, flags=re.MULTILINE)
EXAMPLES = {
    section.split("\n", 1)[0].strip("`"): section for section in SECTIONS if "```yaml" in section
}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def files(text: str) -> dict[str, str]:
    found = re.findall(r"^`(\w+\.jsonl)`:\n\n```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return dict(found)


def read(text: str) -> dict[str, Any]:
    data: dict[str, Any] = YAML(typ="safe").load(text)
    return data


async def run(path: Path) -> None:
    async with Graph.from_yaml(path).open() as opened:
        await opened.wait()


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_does_what_it_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = EXAMPLES[name]
    for code in blocks(section, "python"):
        (tmp_path / "functions.py").write_text(code)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "functions", raising=False)
    [frame] = blocks(HEAD, "yaml")
    [part] = blocks(section, "yaml")
    graph = read(frame) | read(part)
    with (tmp_path / "graph.yaml").open("w") as file:
        YAML().dump(graph, file)  # keeps the order
    found = files(section)
    outputs = {sink["path"] for sink in graph["sinks"].values()}
    assert outputs < found.keys()
    for path in found.keys() - outputs:
        (tmp_path / path).write_text(found[path])
    anyio.run(run, tmp_path / "graph.yaml")
    assert {path: (tmp_path / path).read_text() for path in outputs} == {
        path: found[path] for path in outputs
    }


def test_every_operator_is_described() -> None:
    described = re.findall(r"^```{operator} (\w+)$", TEXT, re.MULTILINE)
    ours = [
        name
        for name, point in registered(OPERATORS).items()
        if point.value.startswith("streamflow.operators.")
    ]
    assert sorted(described) == ours
