import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from streamflow import Graph

ROOT = Path(__file__).parent.parent


def blocks(path: str, language: str) -> list[str]:
    text = (ROOT / path).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run(*arguments: str, folder: Path) -> str:
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(400)  # each command imports torch anew
def test_quickstart_works_as_written(tmp_path: Path) -> None:
    make_data, check = blocks("docs/quickstart.md", "python")
    graph, to_kafka = blocks("docs/quickstart.md", "yaml")
    run("-c", make_data, folder=tmp_path)
    (tmp_path / "machine.yaml").write_text(graph)
    first, *others = blocks("docs/quickstart.md", "console")
    run_console(first, tmp_path)
    run("-c", check, folder=tmp_path)
    for console in others:
        run_console(console, tmp_path)
    middle = graph[graph.index("operators:") : graph.index("sinks:")]
    (tmp_path / "kafka.yaml").write_text(f"version: 1\nname: machine\n{middle}{to_kafka}")
    run("-m", "streamflow", "validate", "kafka.yaml", folder=tmp_path)


def run_console(block: str, folder: Path) -> None:
    for command, expected in re.findall(r"^\$ streamflow (.*)\n((?:[^$].*\n)*)", block, re.M):
        assert run("-m", "streamflow", *shlex.split(command), folder=folder) == expected


def test_readme_shows_one_graph_in_two_notations(tmp_path: Path) -> None:
    (yaml,) = blocks("README.md", "yaml")
    assert yaml == (ROOT / "examples/electricity/graph.yaml").read_text(encoding="utf-8")
    path = tmp_path / "graph.yaml"
    path.write_text(yaml)
    names: dict[str, object] = {}
    exec(blocks("README.md", "python")[0], names)
    assert names["graph"] == Graph.from_yaml(path)


@pytest.mark.slow
def test_readme_embeds_a_graph(tmp_path: Path) -> None:
    assert float(run("-c", blocks("README.md", "python")[1], folder=tmp_path)) < 10


def test_readme_begins_with_the_demo_and_the_checks() -> None:
    demo, checks = blocks("README.md", "bash")
    assert demo.endswith("streamflow demo\n")
    assert checks.endswith("tox\n")
