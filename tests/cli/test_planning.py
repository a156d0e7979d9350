import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

from streamflow.cli.app import app
from tests.cli.programs import streamflow

GRAPH = """\
version: 1
name: plans
sources:
  rows: {type: file, path: none.csv}
models:
  price:
    inputs: [rows]
    network: [{Linear: [3, 8]}, ReLU, {Linear: [8, 1]}]
    features: [a, b, c]
    target: d
    loss: mse_loss
    optimizer: {SGD: {lr: 0.01}}
    stages: 2
sinks:
  out: {type: file, path: out.jsonl, inputs: [price]}
"""

IMAGES = """\
version: 1
name: images
sources:
  rows: {type: file, path: none.jsonl}
models:
  kind:
    inputs: [rows]
    network: [{Conv2d: [1, 2, 3]}, Flatten, {Linear: [8, 2]}]
    features: image
    target: label
    loss: cross_entropy
    executor: inline
  copied:
    inputs: [rows]
    network: [{Linear: [4, 1]}]
    features: image
    learn: false
sinks:
  out: {type: file, path: out.jsonl, inputs: [kind, copied]}
"""


@dataclass
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


Plan = Callable[..., Done]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with two graphs and none of their inputs."""
    (tmp_path / "graph.yaml").write_text(GRAPH, encoding="utf-8")
    (tmp_path / "images.yaml").write_text(IMAGES, encoding="utf-8")
    return tmp_path


@pytest.fixture
def plan(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Plan:
    """Return the command in that folder, without the start of a process for each call."""
    monkeypatch.chdir(folder)

    def run(*arguments: str) -> Done:
        code = app(["plan", *arguments], exit_on_error=False)
        return Done(code, *capsys.readouterr())

    return run


@pytest.mark.slow
def test_a_plan_is_printed_and_nothing_opened(folder: Path) -> None:
    done = streamflow(folder, "plan", "graph.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("price: 2 stages, ")
    assert [line.split()[0] for line in lines[6:]][:2] == ["0", "0"]
    assert {path.name for path in folder.iterdir()} == {"graph.yaml", "images.yaml"}


def test_a_plan_is_json_on_stdout_and_a_picture_in_a_file(folder: Path, plan: Plan) -> None:
    arguments = ("--json", "--svg", "plan.svg", "--set", "models.price.executor=inline")
    done = plan("graph.yaml", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert (report["graph"], report["failure"]) == ("plans", None)
    found = report["plans"]["price"]
    assert found["executor"] == "inline"
    names = [layer["name"] for stage in found["stages"] for layer in stage["layers"]]
    assert names == ["0", "1", "2"]
    picture = ElementTree.parse(folder / "plan.svg").getroot()
    assert len(picture.findall("{http://www.w3.org/2000/svg}rect")) == 3 + 2


def test_a_wanted_rate_is_told_to_be_reached_or_not(plan: Plan) -> None:
    auto = ("--json", "--set", "models.price.stages=auto", "--set")
    done = plan("graph.yaml", *auto, "models.price.rate=0.001")
    found = json.loads(done.stdout)["plans"]["price"]
    assert (len(found["stages"]), found["is_fast_enough"]) == (1, True)


def test_a_shape_that_the_graph_does_not_tell_is_asked_for(plan: Plan) -> None:
    done = plan("images.yaml", "--model", "kind")
    assert (done.returncode, done.stdout) == (2, "")
    assert "kind: expected the shape of image" in done.stderr
    assert "--shape" in done.stderr
    shape = ("--shape", "1,4,4")
    done = plan("images.yaml", "--model", "kind", *shape)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("kind: 1 stage, inline")


def test_the_first_layer_tells_the_shape_of_an_array(plan: Plan) -> None:
    done = plan("images.yaml", "--model", "copied", "--json")
    assert done.returncode == 0
    (stage,) = json.loads(done.stdout)["plans"]["copied"]["stages"]
    assert stage["layers"][0]["cost"]["update"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["graph.yaml", "--model", "prize"], "did you mean price?"),
        (["graph.yaml", "--shape", "3,x"], "--shape: expected sizes like 3,32,32, got 3,x"),
        (["graph.yaml", "--shape", "3,0"], "--shape: expected sizes like 3,32,32, got 3,0"),
        (["graph.yaml", "--shape", "7"], "price: expected a network that takes features of shape"),
        (["images.yaml", "--shape", "1,4,4"], "add --model"),
        (["images.yaml", "--svg", "plan.svg"], "add --model"),
    ],
)
def test_wrong_arguments_end_with_2(plan: Plan, arguments: list[str], message: str) -> None:
    done = plan(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_graph_without_models_has_no_plan(folder: Path, plan: Plan) -> None:
    graph = "version: 1\nname: g\nsources: {rows: {type: file, path: in.csv}}\n"
    graph += "sinks: {out: {type: file, path: out.jsonl, inputs: [rows]}}\n"
    (folder / "graph.yaml").write_text(graph, encoding="utf-8")
    done = plan("graph.yaml", "--json")
    assert done.returncode == 2
    assert "expected a graph with a model" in json.loads(done.stdout)["failure"]


def test_a_graph_that_cannot_run_has_no_plan(plan: Plan) -> None:
    done = plan("graph.yaml", "--set", "models.price.stages=9")
    assert (done.returncode, done.stdout) == (78, "")
    assert "expected at most 3" in done.stderr
    done = plan("none.yaml")
    assert (done.returncode, done.stdout) == (78, "")


def test_a_network_that_cannot_be_measured_fails(folder: Path, plan: Plan) -> None:
    source = "import threading\nfrom torch import nn\n\nclass Locked(nn.Linear):\n"
    source += "    def __init__(self):\n        super().__init__(3, 1)\n"
    source += "        self.lock = threading.Lock()\n"
    (folder / "own.py").write_text(source, encoding="utf-8")
    arguments = ("--set", "models.price.network=own:Locked", "--set", "models.price.stages=1")
    done = plan("graph.yaml", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert "failed: price: stages: expected Locked to be copied" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_picture_that_cannot_be_written_fails(plan: Plan) -> None:
    done = plan("graph.yaml", "--svg", "no/such/folder.svg")
    assert done.returncode == 1
    assert "no/such/folder.svg" in done.stderr
    assert "Traceback" not in done.stderr
