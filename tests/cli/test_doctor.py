import json
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
import torch

from streamflow import Graph, Model
from streamflow.cli.doctor import examine
from streamflow.cli.extensions import EXTENSIONS, Extension, extensions
from streamflow.cli.learning import TO_BE_COMPILED, learning_of
from streamflow.cli.toolchain import compilation
from streamflow.models.network import build_network
from streamflow.models.options import pipeline_options
from streamflow.nodes import plugins
from streamflow.pipeline import Pipeline
from tests.cli.programs import python, streamflow

GRAPH = """\
name: g
sources:
  in: {{type: kafka, bootstrap_servers: "127.0.0.1:{port}", topics: [t]}}
models:
  m: {{inputs: [in], network: [{{Linear: [1, 1]}}, {layer}], features: [x], target: y}}
sinks:
  out: {{type: file, path: out.jsonl, inputs: [m]}}
"""


@pytest.fixture(autouse=True)
def no_code(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Have nothing on disk that was compiled before."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("code")))


def write(folder: Path, port: int, layer: str = "ReLU") -> None:
    (folder / "graph.yaml").write_text(GRAPH.format(port=port, layer=layer), encoding="utf-8")


@pytest.mark.slow
def test_the_machine_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = streamflow(tmp_path, "doctor", "--json")
    assert done.returncode == 0
    found = {finding["subject"]: finding["found"] for finding in json.loads(done.stdout)}
    assert {"streamflow", "python", "torch", "processor cores", "GPUs", "C++ compiler"} <= {*found}
    assert found["aiokafka's C extension"] == "there"
    assert examine(None, as_json=False) == 0
    assert found["python"].split()[0] in capsys.readouterr().out


MODELS = """\
name: g
sources:
  in: {type: file, path: none.csv}
models:
  plain: {inputs: [in], network: [{Linear: [1, 1]}], features: [x], target: y}
  noisy: {inputs: [in], network: [{Linear: [1, 1]}, RReLU], features: [x], target: y}
  image: {inputs: [in], network: [{Conv2d: [3, 4, 3]}], features: image, target: y}
  batch: {inputs: [in], network: [{BatchNorm1d: 1}], features: [x], target: y}
sinks:
  out: {type: file, path: out.jsonl, inputs: [plain, noisy, image, batch]}
"""


def write_models(folder: Path) -> None:
    (folder / "graph.yaml").write_text(MODELS, encoding="utf-8")


def findings_of(printed: str) -> dict[str, dict[str, Any]]:
    return {finding["subject"]: finding for finding in json.loads(printed)}


@pytest.mark.slow
def test_a_compiler_that_is_missing_has_a_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_models(tmp_path)
    monkeypatch.setenv("CXX", "/nowhere/c++")
    monkeypatch.setenv("PATH", "/nowhere")
    done = streamflow(tmp_path, "doctor", "graph.yaml", "--json")
    findings = findings_of(done.stdout)
    assert (done.returncode, findings["C++ compiler"]["found"]) == (0, "not there")
    assert "apt install g++" in findings["C++ compiler"]["cure"]
    assert findings["plain: learning"]["found"] == "eager: C++ compiler not there"


@pytest.mark.slow
def test_a_compiler_that_fails_is_told_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text(
        """#!/bin/sh
case "$*" in --version|-v|-dumpversion) echo "g++ (GCC) 12.2.0"; exit 0;; esac
echo "cpp_prefix.h:1:10: fatal error: cmath: No such file or directory" >&2
exit 1
"""
    )
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    write_models(tmp_path)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    done = streamflow(tmp_path, "doctor", "graph.yaml", "--json")
    findings = findings_of(done.stdout)
    found = findings["C++ compiler"]["found"]
    assert done.returncode == 0
    assert found.startswith(f"{compiler} fails: ")
    assert found.endswith("fatal error: cmath: No such file or directory")
    assert findings["C++ compiler"]["cure"].startswith("install one that works")
    assert findings["plain: learning"]["found"] == f"eager: C++ compiler {found}"


def test_a_folder_that_takes_no_code_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file" / "cache"))
    [_, place] = compilation()
    assert place.subject == "compiled code"
    assert place.found.startswith("cannot be kept: NotADirectoryError: ")
    assert "set TORCHINDUCTOR_CACHE_DIR" in place.cure


def test_extensions_are_loaded_and_a_broken_one_is_told_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("broken", "lacking"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
        monkeypatch.setitem(EXTENSIONS, package, Extension(f"{package}._code", "", "it is slow"))
    (tmp_path / "broken" / "_code.abi3.so").write_text("no library")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("MSGPACK_PUREPYTHON", "1")
    found = {finding.subject: finding for finding in extensions()}
    broken, lacking = found["broken's C extension"], found["lacking's C extension"]
    assert broken.found.startswith("does not load: ImportError: ")
    assert "_code.abi3.so" in broken.found
    assert broken.cure == "install a broken wheel for this Python: it is slow"
    assert lacking.found == "not there"
    assert found["msgpack's C extension"].found == "turned off by MSGPACK_PUREPYTHON"
    assert found["aiokafka's C extension"].found == "there"


@pytest.mark.slow
def test_it_is_told_how_models_would_learn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    write_models(tmp_path)
    assert examine(Graph.from_yaml(tmp_path / "graph.yaml"), as_json=True) == 0
    findings = findings_of(capsys.readouterr().out)
    assert findings["compiled code"]["cure"] == ""
    assert findings["plain: learning"]["found"] == TO_BE_COMPILED
    why = "the network draws random numbers by aten.rrelu_with_noise_functional.default"
    assert findings["noisy: learning"]["found"] == f"eager: {why}"
    refused = findings["batch: learning"]
    assert refused["found"].startswith("does not learn a random record: module: expected layers")
    assert refused["cure"] == "see the message"
    unknown = findings["image: learning"]["found"]
    assert unknown.startswith("not known before the first record: expected the shape of image")
    assert {path.name for path in tmp_path.iterdir()} == {"graph.yaml"}
    assert not [record for record in caplog.records if record.name.startswith("streamflow")]


def model(**options: Any) -> Model:
    given = {"network": [{"Linear": [2, 2]}], "features": ["a", "b"], "target": "y"} | options
    return Model(inputs=["in"], **given)


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "cross_entropy", "optimizer": "Adam", "class_weights": "balanced"},
        {"loss": "huber_loss", "optimizer": {"SGD": {"momentum": 0.9}}, "clip_norm": 1.0},
        {"network": [{"Linear": [2, 4]}, {"LayerNorm": 4}, {"Linear": [4, 2]}]},
        {"network": [{"LazyLinear": 4}, {"Dropout": 0.5}, {"Linear": [4, 2]}]},
    ],
    ids=["classes", "momentum", "normed", "lazy, dropout"],
)
def test_what_can_be_compiled_has_no_reason_to_be_eager(
    options: dict[str, Any], tmp_path: Path
) -> None:
    assert learning_of(model(**options), tmp_path) == TO_BE_COMPILED


@pytest.mark.parametrize(
    "options",
    [
        {"network": [{"Linear": [2, 2]}, "RReLU"]},
        {"optimizer": "Adadelta"},
        {"accumulate": 2},
        {"network": "networks:looks_at_values"},
        {"network": "networks:with_hook"},
    ],
    ids=["random", "optimizer", "accumulated", "values", "hooks"],
)
@pytest.mark.filterwarnings("ignore:.*full backward hook:UserWarning")
def test_the_reason_is_that_of_the_pipeline_itself(options: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "networks.py").write_text(NETWORKS, encoding="utf-8")
    declared = model(compile=True, **options)
    network = build_network(declared, tmp_path)
    with Pipeline(network, **pipeline_options(declared, tmp_path)) as pipeline:
        for _ in range(3):
            pipeline.process(torch.ones(1, 2), torch.zeros(1, 2))
        learning = pipeline.learning
    assert learning_of(declared, tmp_path) == learning


NETWORKS = """\
import torch
from torch import nn

class Looking(nn.Linear):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)

def looks_at_values():
    return Looking(2, 2)

def with_hook():
    network = nn.Linear(2, 2)
    network.register_forward_hook(lambda *_: None)
    return network
"""


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"compile": False}, "compile is False"),
        ({"drift": "ADWIN", "on_drift": "reset"}, "on_drift acts"),
        ({"learn": False, "task": "regression", "target": None}, "nothing is learned"),
    ],
    ids=["off", "drift", "inference"],
)
def test_what_is_declared_may_keep_a_model_eager(
    options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    assert learning_of(model(**options), tmp_path).startswith(f"eager: {reason}")


WITHOUT_TORCH = """\
import sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            return None
        return super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
from streamflow.cli import main
main()
"""


@pytest.mark.slow
def test_it_works_without_torch_and_says_so(tmp_path: Path) -> None:
    write_models(tmp_path)
    done = python(tmp_path, "-c", WITHOUT_TORCH, "doctor", "graph.yaml", "--json")
    findings = findings_of(done.stdout)
    assert (done.returncode, done.stderr) == (1, "")
    assert findings["torch"]["found"] == "not there"
    assert findings["torch"]["cure"].startswith("install it (pip install torch)")
    assert not {"C++ compiler", "plain: learning"} & findings.keys()
    done = python(tmp_path, "-c", WITHOUT_TORCH, "doctor")
    assert done.returncode == 0
    assert "pip install torch" in done.stdout


@pytest.mark.slow
def test_packages_that_are_missing_are_told_with_the_command_that_installs_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plugins, "_is_installed", lambda module: False)
    assert examine(None, as_json=True) == 0
    found = {item["subject"]: item for item in json.loads(capsys.readouterr().out)}
    finding = found["kafka: the package aiokafka"]
    assert finding["found"] == "not installed"
    assert finding["cure"] == "run: pip install 'streamflow-online[kafka]'"


@pytest.mark.slow
def test_what_a_graph_connects_to_is_tried(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        write(tmp_path, port)
        graph = Graph.from_yaml(tmp_path / "graph.yaml")
        assert examine(graph, as_json=True) == 0
        findings = findings_of(capsys.readouterr().out)
        assert findings[f"in: 127.0.0.1:{port}"]["found"] == "answers"
    assert examine(graph, as_json=True) == 1
    findings = findings_of(capsys.readouterr().out)
    assert findings[f"in: 127.0.0.1:{port}"]["found"].startswith("does not answer: ")


@pytest.mark.slow
def test_a_network_that_cannot_be_built_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        write(tmp_path, server.getsockname()[1], "RELU")
        graph = Graph.from_yaml(tmp_path / "graph.yaml")
        assert examine(graph, as_json=False) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "did you mean ReLU?" in shown
    assert "m: learning" not in shown


def test_a_graph_that_is_wrong_is_explained(tmp_path: Path) -> None:
    done = streamflow(tmp_path, "doctor", "none.yaml")
    assert (done.returncode, done.stdout) == (78, "")
