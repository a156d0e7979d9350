"""``streamflow dlq``; what only reads is called within the test's own process, to be quick."""

import json
import os
import signal
import subprocess
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from streamflow.cli.app import app
from tests.cli.programs import COMMAND, streamflow, values

GRAPH = """\
version: 1
name: sums
sources:
  rows: {type: file, path: in.csv}
operators:
  step: {type: map, function: "steps:step", inputs: [rows]}
sinks:
  out: {type: file, path: out.jsonl, inputs: [step]}
dead_letter: {type: file, path: dead.jsonl}
failure_budget: {fraction: 0.05}
"""

STRICT = """\
def step(value):
    return value | {"sum": value["a"] + value["b"]}
"""

MENDED = """\
def step(value):
    number = 0 if value["b"] == "oops" else value["b"]
    return value | {"b": number, "sum": value["a"] + number}
"""

BAD = (3, 77, 150)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a graph, its function, and 200 rows of which three are bad."""
    rows = [f"{n},{'oops' if n in BAD else n % 7}\n" for n in range(200)]
    (tmp_path / "in.csv").write_text("a,b\n" + "".join(rows), encoding="utf-8")
    (tmp_path / "graph.yaml").write_text(GRAPH, encoding="utf-8")
    (tmp_path / "steps.py").write_text(STRICT, encoding="utf-8")
    return tmp_path


def mend(folder: Path) -> None:
    (folder / "steps.py").write_text(MENDED, encoding="utf-8")


def dlq(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Return exit code, output and errors of a command that reads."""
    output, errors = StringIO(), StringIO()
    with chdir(folder), redirect_stdout(output), redirect_stderr(errors):
        code = app(["dlq", *arguments], exit_on_error=False)
    assert isinstance(code, int)
    return code, output.getvalue(), errors.getvalue()


def listed(folder: Path, *arguments: str) -> dict[str, Any]:
    code, output, errors = dlq(folder, "list", *arguments, "--json")
    assert (code, errors) == (0, "")
    found: dict[str, Any] = json.loads(output)
    return found


@pytest.mark.slow
def test_three_of_200_records_are_mended_and_come_out(folder: Path) -> None:
    assert streamflow(folder, "run", "graph.yaml").returncode == 0
    before = values(folder / "out.jsonl")
    assert len(before) == 197
    assert listed(folder, "graph.yaml")["letters"] == 3
    mend(folder)
    done = streamflow(folder, "dlq", "replay", "graph.yaml")
    assert done.returncode == 0
    assert "3 dead letters are replayed, 0 were rejected again" in done.stderr
    after = values(folder / "out.jsonl")
    assert after[:197] == before
    assert after[197:] == [{"a": n, "b": 0, "sum": n} for n in BAD]
    assert listed(folder, "graph.yaml") == {
        "letters": 0,
        "replayed": 3,
        "damaged": [],
        "groups": [],
    }


@pytest.mark.parametrize("suffix", ["jsonl", "msgpack", "csv"])
def test_letters_are_listed_by_node_and_cause_and_shown_one_by_one(
    folder: Path, suffix: str
) -> None:
    with (folder / "in.csv").open("ab") as file:
        file.write(b'1,2,3\n\xff\xfe,1\n"\xc3\xa4",1\n')
    name = f"dead.{suffix}"
    options = ("--set", f"dead_letter.path={name}")
    assert streamflow(folder, "run", "graph.yaml", *options).returncode == 0
    found = listed(folder, name)
    assert (found["letters"], found["replayed"], found["damaged"]) == (6, 0, [])
    groups = {(group["node"], group["letters"]) for group in found["groups"]}
    assert groups == {("step", 4), ("rows", 1)} or groups == {("step", 3), ("step", 1), ("rows", 1)}
    assert found["groups"][0]["letters"] >= 3
    shown = []
    for number in range(1, 7):
        code, output, _ = dlq(folder, "show", name, str(number), "--json")
        assert code == 0
        shown.append(json.loads(output))
    originals = {letter["position"]["line"]: letter["original"] for letter in shown}
    assert originals == {
        **{n + 1: f"{n},oops" for n in BAD},
        201: "1,2,3",
        202: b"\xff\xfe,1".hex(),
        203: '"ä",1',
    }
    assert {letter["notation"] for letter in shown} == {"text", "hex"}
    _, text, _ = dlq(folder, "show", name, "1")
    assert "source:       rows\n" in text
    assert f"original:     {shown[0]['original']}\n" in text
    _, table, _ = dlq(folder, "list", name)
    assert "6 dead letters\n" in table
    assert "step" in table


@pytest.mark.slow
def test_what_fails_again_is_listed_with_its_attempts(folder: Path) -> None:
    assert streamflow(folder, "run", "graph.yaml").returncode == 0
    done = streamflow(folder, "dlq", "replay", "graph.yaml", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 0
    assert (report["replayed"], report["rejected"], report["failure"]) == (3, 3, None)
    (group,) = listed(folder, "dead.jsonl")["groups"]
    assert (group["letters"], group["attempts"], group["numbers"]) == (3, 2, [4, 5, 6])
    (group,) = listed(folder, "dead.jsonl", "--all")["groups"]
    assert (group["letters"], group["attempts"]) == (6, 2)
    mend(folder)
    assert streamflow(folder, "dlq", "replay", "graph.yaml").returncode == 0
    done = streamflow(folder, "dlq", "replay", "graph.yaml", "--json")
    assert (done.returncode, json.loads(done.stdout)["replayed"]) == (0, 0)
    assert len(values(folder / "out.jsonl")) == 200


STUCK = """\
import threading

def step(value):
    open("reached.pipe", "w").close()
    threading.Event().wait()
"""


@pytest.mark.slow
def test_a_killed_replay_is_done_again_and_loses_nothing(folder: Path) -> None:
    streamflow(folder, "run", "graph.yaml")
    (folder / "steps.py").write_text(STUCK, encoding="utf-8")
    os.mkfifo(folder / "reached.pipe")
    process = subprocess.Popen(
        [*COMMAND, "dlq", "replay", "graph.yaml"], cwd=folder, stderr=subprocess.PIPE, text=True
    )
    try:
        (folder / "reached.pipe").read_bytes()
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    assert not (folder / "dead.jsonl.replayed").exists()
    assert listed(folder, "graph.yaml")["letters"] == 3
    mend(folder)
    assert streamflow(folder, "dlq", "replay", "graph.yaml").returncode == 0
    assert len(values(folder / "out.jsonl")) == 200


@pytest.mark.slow
def test_a_replay_that_fails_says_why_and_changes_nothing(folder: Path) -> None:
    streamflow(folder, "run", "graph.yaml")
    written = (folder / "dead.jsonl").read_bytes()
    (folder / "in.csv").unlink()
    done = streamflow(folder, "dlq", "replay", "graph.yaml", "--json")
    assert done.returncode == 1
    assert "in.csv: expected the row that names the columns, found none" in done.stderr
    report = json.loads(done.stdout)
    assert report["replayed"] == 0
    assert report["failure"].startswith("in.csv: expected the row")
    assert (folder / "dead.jsonl").read_bytes() == written
    assert not (folder / "dead.jsonl.replayed").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["list", "none.jsonl"], 1, "expected to read"),
        (["list", "none.xyz"], 78, "expected a format, found none"),
        (["list", "in.csv", "--format", "jsn"], 1, "--format jsn: expected a format; did you me"),
        (["list", "none.yaml"], 78, "none.yaml:1:1: expected a graph file, found none"),
        (["list", "other.yaml"], 1, "expected a dead_letter sink that is a file, found none"),
        (["show", "in.csv", "1"], 1, "in.csv: expected a dead letter with original, cause"),
        (["show", "in.csv", "500"], 1, "in.csv: expected a number from 1 to 200, found 500"),
        (["replay", "none.yaml"], 78, "none.yaml:1:1: expected a graph file, found none"),
        (["replay", "graph.yaml"], 1, "dead.jsonl: expected dead letters, found no file"),
        (["replay", "graph.yaml", "--letters", "in.csv"], 1, "in.csv: expected a dead letter wi"),
    ],
)
def test_mistakes_are_explained(
    folder: Path, arguments: list[str], code: int, message: str
) -> None:
    other = GRAPH.replace("dead_letter: {type: file, path: dead.jsonl}\n", "")
    (folder / "other.yaml").write_text(other, encoding="utf-8")
    found, _, errors = dlq(folder, *arguments)
    assert found == code
    assert message in errors


def test_wrong_usage_ends_with_2(folder: Path) -> None:
    done = streamflow(folder, "dlq", "nonsense")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Error" in done.stderr
