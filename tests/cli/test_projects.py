import csv
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from streamflow.cli.projects import ProjectError, new_project
from streamflow.graph import Graph
from tests.cli.programs import COMMAND, python, streamflow


def made(folder: Path, **options: Any) -> Graph:
    usual: dict[str, Any] = {"name": None, "data": None, "target": None, "task": None}
    new_project(folder, **(usual | options))
    return Graph.from_yaml(folder / "graph.yaml")


def write(path: Path, rows: list[list[Any]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


@pytest.mark.slow
def test_a_new_project_runs_and_its_test_passes(tmp_path: Path) -> None:
    done = streamflow(tmp_path, "new", "load")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("next: streamflow run load/graph.yaml\n")
    text = (tmp_path / "load/graph.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=streamflow.schema.json\n")
    schema = YAML(typ="safe").load((tmp_path / "load/streamflow.schema.json").read_text())
    Draft202012Validator(schema).validate(YAML(typ="safe").load(text))
    tested = python(tmp_path / "load", "-W", "ignore", "-m", "pytest", "-q", "-p", "no:asyncio")
    assert tested.returncode == 0, tested.stdout
    ran = streamflow(tmp_path, "run", "load/graph.yaml", "--json")
    assert ran.returncode == 0
    report = YAML(typ="safe").load(ran.stdout)
    score = report["nodes"]["model"]["report"]["score"]["windowed"]
    assert score["model"]["rmse"] < 0.5 * score["running_mean"]["rmse"]


def test_all_that_is_commented_out_may_be_used(tmp_path: Path) -> None:
    made(tmp_path / "a")
    path = tmp_path / "a/graph.yaml"
    text = path.read_text()
    end = "\ncheckpoint: {path: state, every: 30s}\ndead_letter: {type: file, path: dead.jsonl}\n"
    for line in end.split("\n")[1:-1]:
        assert f"\n# {line}\n" in text
    [kafka] = [line[2:] for line in text.splitlines() if "type: kafka" in line]
    start, stop = text.index("\n  readings:") + 1, text.index("# What happens")
    path.write_text(f"{text[:start]}{kafka}\n{text[stop:]}{end}")
    assert Graph.from_yaml(path).sources["readings"].type == "kafka"  # type: ignore[attr-defined]


def test_your_own_data_decide_the_features(tmp_path: Path) -> None:
    rows: list[list[Any]] = [["at", "kind", "who", "x", "gap", "down"]]
    for i in range(60):
        at, gap = f"2024-03-01T{i % 24:02}:00", "" if i % 9 == 1 else i
        rows.append([at, "ab"[i % 2], f"u{i % 40}", i / 7, gap, i % 2])
    data = write(tmp_path / "mine.csv", rows)
    graph = made(tmp_path / "p", data=data, name="own")
    model = graph.models["model"]
    assert graph.name == "own"
    assert graph.operators["scaled"].fields == ("x",)  # type: ignore[attr-defined]
    assert [str(one.model_dump(mode="json")) for one in model.resolved_features] == [
        "{'field': 'at', 'parts': ['hour', 'weekday']}",
        "{'field': 'kind', 'categories': ['a', 'b'], 'other': True}",
        "{'field': 'who', 'hash': 32}",
        "{'field': 'x'}",
        "{'field': 'gap', 'nan': 'impute'}",
    ]
    assert (model.target, model.resolved_task, model.classes) == ("down", "classification", (0, 1))
    assert graph.deep_problems() == []
    assert (tmp_path / "p/readings.csv").read_bytes() == data.read_bytes()
    kind = made(tmp_path / "q", data=data, target="kind").models["model"]
    assert (kind.resolved_task, kind.classes) == ("classification", ("a", "b"))
    number = made(tmp_path / "r", data=data, target="down", task="regression").models["model"]
    assert number.resolved_task == "regression"
    assert number.standardize_target


def test_columns_of_odd_names_are_quoted(tmp_path: Path) -> None:
    names = ["no", "a: b", "${X}", "- y", "é"]
    data = write(tmp_path / "odd.csv", [names, *([i, i % 3, i, -i, i % 5] for i in range(20))])
    graph = made(tmp_path / "p", data=data)
    assert [one.field for one in graph.models["model"].resolved_features] == names[:-1]
    assert graph.deep_problems() == []


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([["a"], [1]], {}, "expected a header of two or more columns"),
        ([["a", "b"]], {}, "expected a header of two or more columns"),
        ([["a", "a"], [1, 2]], {}, "expected a header of two or more columns"),
        ([], {}, "expected a csv file with a header, found none"),
        ([["a", "bee"], [1, 2]], {"target": "be"}, "to predict, found be; did you mean bee?"),
        ([["a", "b"], [1, "x"]], {}, "expected 2 to 50 different values in b to predict, found 1"),
        ([["a", "b"], [1, "x"]], {"task": "regression"}, "expected numbers in b to predict, fo"),
    ],
)
def test_what_no_project_can_be_made_of(
    tmp_path: Path, rows: Any, options: Any, message: str
) -> None:
    data = write(tmp_path / "data.csv", rows)
    with pytest.raises(ProjectError) as caught:
        made(tmp_path / "p", data=data, **options)
    assert message in str(caught.value)
    assert not (tmp_path / "p").exists()


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "graph.yaml").write_text("mine")
    done = streamflow(tmp_path, "new", ".")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(".: expected a new folder, found one in use; ")
    assert [path.name for path in tmp_path.iterdir()] == ["graph.yaml"]


def test_on_a_terminal_it_asks(tmp_path: Path) -> None:
    write(tmp_path / "mine.csv", [["a", "b", "c"], *([i, i % 7, -i] for i in range(9))])
    controller, terminal = pty.openpty()
    os.write(controller, b"mine.csv\nb\n")
    command = [sys.executable, *COMMAND[1:], "new", "p"]
    done = subprocess.run(
        command, cwd=tmp_path, stdin=terminal, capture_output=True, text=True, check=False
    )
    os.close(terminal)
    os.close(controller)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("csv file with your data, or empty for a sample: column to pred")
    assert Graph.from_yaml(tmp_path / "p/graph.yaml").models["model"].target == "b"
