import json
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.cli.programs import python, streamflow, values

GRAPH = """\
version: 1
name: copy
sources:
  rows: {type: file, path: in.csv}
sinks:
  out: {type: file, path: out.jsonl, inputs: [rows]}
"""

ROWS = [{"a": number, "b": 2 * number} for number in range(5)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a graph and its input."""
    (tmp_path / "graph.yaml").write_text(GRAPH, encoding="utf-8")
    lines = ["a,b", *(f"{row['a']},{row['b']}" for row in ROWS)]
    (tmp_path / "in.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


@pytest.mark.slow
def test_a_graph_of_finite_streams_ends_with_0(folder: Path) -> None:
    done = streamflow(folder, "run", "graph.yaml")
    assert (done.returncode, done.stdout) == (0, "")
    assert "copy: 5 records in " in done.stderr
    assert values(folder / "out.jsonl") == ROWS


@pytest.mark.slow
def test_the_report_is_json_on_stdout(folder: Path) -> None:
    done = streamflow(folder, "run", "graph.yaml", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 0
    assert (report["graph"], report["state"], report["failure"]) == ("copy", "finished", None)
    assert (report["received"], report["delivered"], report["rejected"]) == (5, 5, 0)
    assert report["nodes"]["rows"]["kind"] == "source"
    assert done.stderr == ""


@pytest.mark.slow
def test_set_stands_before_and_after_the_file(folder: Path) -> None:
    before, after = "sinks.out.path=other.jsonl", "name=renamed"
    done = streamflow(folder, "run", "--set", before, "graph.yaml", "--set", after, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["graph"] == "renamed"
    assert values(folder / "other.jsonl") == ROWS
    assert not (folder / "out.jsonl").exists()


@pytest.mark.slow
def test_a_graph_runs_from_any_folder(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    done = streamflow(tmp_path_factory.mktemp("elsewhere"), "run", str(folder / "graph.yaml"))
    assert done.returncode == 0
    assert values(folder / "out.jsonl") == ROWS


@pytest.mark.parametrize("command", ["run", "validate"])
def test_a_missing_graph_is_bad_configuration(tmp_path: Path, command: str) -> None:
    done = streamflow(tmp_path, command, "none.yaml")
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith("none.yaml:1:1: expected a graph file, found none")


@pytest.mark.parametrize("command", ["run", "validate"])
@pytest.mark.parametrize("as_json", [False, True])
def test_every_problem_of_a_graph_is_told_with_its_place(
    folder: Path, command: str, as_json: bool
) -> None:
    wrong = GRAPH.replace("path: in.csv", "pat: in.csv").replace("[rows]", "[row]")
    (folder / "graph.yaml").write_text(wrong, encoding="utf-8")
    done = streamflow(folder, command, "graph.yaml", *(["--json"] if as_json else []))
    lines = done.stderr.splitlines()
    assert done.returncode == 78
    assert [line for line in lines if line.startswith("graph.yaml:4:22: ")]
    assert [line for line in lines if line.startswith("graph.yaml:6:47: ")]
    if as_json:
        assert json.loads(done.stdout) == {"valid": False, "problems": lines}
    else:
        assert done.stdout == ""
    assert not (folder / "out.jsonl").exists()


def test_of_a_thousand_problems_the_first_are_told(folder: Path) -> None:
    typos = "".join(f"typo{number}: 1\n" for number in range(1234))
    (folder / "graph.yaml").write_text(GRAPH + typos, encoding="utf-8")
    done = streamflow(folder, "validate", "graph.yaml", "--json")
    *lines, last = done.stderr.splitlines()
    assert done.returncode == 78
    assert [line.split(":")[1] for line in lines] == [str(7 + number) for number in range(50)]
    assert last == "and 1,184 more"
    assert len(json.loads(done.stdout)["problems"]) == 1234


@pytest.mark.parametrize("override", ["sinks.out.typo=1", "nonsense"])
def test_a_wrong_override_is_bad_configuration(folder: Path, override: str) -> None:
    done = streamflow(folder, "run", "graph.yaml", "--set", override)
    assert done.returncode == 78
    assert done.stderr.startswith(f"--set {override}: expected ")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [["run"], ["nonsense"], ["run", "graph.yaml", "--nonsense"], ["run", "a", "b"]]
)
def test_wrong_usage_ends_with_2(folder: Path, arguments: list[str]) -> None:
    done = streamflow(folder, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Error" in done.stderr


def test_the_version_is_that_of_the_distribution(tmp_path: Path) -> None:
    assert streamflow(tmp_path, "--version").stdout.strip() == version("streamflow-online")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"]])
def test_help_ends_with_0(tmp_path: Path, arguments: list[str]) -> None:
    done = streamflow(tmp_path, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_validate_says_that_a_graph_is_valid_and_opens_nothing(folder: Path) -> None:
    done = streamflow(folder, "validate", "graph.yaml", "--deep")
    assert done.returncode == 0
    promise = "rows -> out: delivered once in every run; every run begins anew"
    assert done.stdout == f"graph.yaml: valid, 2 nodes\n{promise}\n"
    done = streamflow(folder, "validate", "graph.yaml", "--json")
    told = json.loads(done.stdout)
    assert (told["valid"], told["problems"]) == (True, [])
    assert told["delivery"] == [
        {
            "source": "rows",
            "sink": "out",
            "learned": None,
            "delivered": "once in every run",
            "notes": ["every run begins anew"],
        }
    ]
    assert not (folder / "out.jsonl").exists()


@pytest.mark.parametrize("as_json", [False, True])
def test_a_source_that_does_not_open_fails_the_run(folder: Path, as_json: bool) -> None:
    arguments = ["--set", "sources.rows.path=none.csv", *(["--json"] if as_json else [])]
    done = streamflow(folder, "run", "graph.yaml", *arguments)
    assert done.returncode == 1
    assert "failed: rows: expected to read none.csv" in done.stderr
    assert "Traceback" not in done.stderr
    if as_json:
        report = json.loads(done.stdout)
        assert (report["state"], report["failure"][:6]) == ("failed", "rows: ")


def test_a_node_that_fails_while_it_runs_fails_the_run(folder: Path) -> None:
    wrong = ("--set", "sinks.out.path=/dev/full", "--set", "sinks.out.format=jsonl")
    done = streamflow(folder, "run", "graph.yaml", "--json", *wrong)
    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert report["state"] == "failed"
    assert report["failure"].startswith("out: ")
    assert f"failed: {report['failure']}" in done.stderr
    assert "Traceback" not in done.stderr


STEPS = """\
version: 1
name: steps
sources:
  rows: {type: file, path: in.csv}
operators:
  step: {type: map, function: steps:step, inputs: [rows]}
sinks:
  out: {type: file, path: out.jsonl, inputs: [step]}
"""


def test_a_few_rejected_records_are_logged_and_counted(folder: Path) -> None:
    (folder / "steps.py").write_text("def step(value):\n    return 1 / value['a']\n")
    (folder / "graph.yaml").write_text(STEPS, encoding="utf-8")
    done = streamflow(folder, "run", "graph.yaml", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["rejected"] == 1
    assert "step: rejected the record at {'path': 'in.csv', 'line': 1}: ZeroDiv" in done.stderr
    assert values(folder / "out.jsonl") == [1.0, 0.5, pytest.approx(1 / 3), 0.25]


def test_too_many_rejected_records_fail_the_run_after_delivering_the_rest(folder: Path) -> None:
    lines = ["a,b", *(f"{number},0" for number in range(500))]
    (folder / "in.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    letters = "dead_letter: {type: file, path: letters.jsonl}\n"
    (folder / "graph.yaml").write_text(STEPS + letters, encoding="utf-8")
    source = "def step(value):\n    assert value['a'] % 10, 'a ten'\n    return value\n"
    (folder / "steps.py").write_text(source, encoding="utf-8")
    done = streamflow(folder, "run", "graph.yaml", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert "step: expected at most 1% rejected records" in report["failure"]
    assert f"failed: {report['failure']}" in done.stderr
    assert "Traceback" not in done.stderr
    written, rejected = values(folder / "out.jsonl"), values(folder / "letters.jsonl")
    assert [row["a"] for row in written] == [
        number for number in range(report["received"]) if number % 10
    ]
    assert len(written) + len(rejected) == report["received"]
    assert (rejected[0]["node"], rejected[0]["cause"]) == ("step", "AssertionError: a ten")
    assert rejected[1]["position"] == {"path": "in.csv", "line": 11}


VALIDATE = """\
from pathlib import Path
from streamflow.cli.checking import read_or_explain
assert read_or_explain(Path("graph.yaml"), (), deep=False, as_json=False)
"""

LOADED = """
import sys
print({"torch", "numpy", "aiokafka", "confluent_kafka"} & set(sys.modules))
"""


@pytest.mark.parametrize(
    "code", ["import streamflow; streamflow.Graph", VALIDATE], ids=["import", "validate"]
)
def test_neither_torch_nor_a_driver_is_imported(folder: Path, code: str) -> None:
    more = "  more: {type: kafka, bootstrap_servers: 'x:9', topic: t, format: json, inputs: [rows]}"
    (folder / "graph.yaml").write_text(GRAPH + more, encoding="utf-8")
    done = python(folder, "-c", code + LOADED)
    assert (done.stdout, done.stderr) == ("set()\n", "")


@pytest.mark.slow
def test_shells_complete_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    done = streamflow(tmp_path, "--install-completion", "--shell", "bash")
    assert done.returncode == 0, done.stderr
    [script] = (path for path in tmp_path.rglob("*") if path.is_file())
    assert {"validate", "--deep", "tap", "--limit"} <= set(
        re.findall(r"[\w-]+", script.read_text())
    )
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
