import json
import socket
from pathlib import Path

import pytest

from streamflow import plugins
from streamflow.cli.doctor import examine
from tests.cli.programs import streamflow

GRAPH = """\
name: g
sources:
  in: {{type: kafka, bootstrap_servers: "127.0.0.1:{port}", topics: [t]}}
models:
  m: {{inputs: [in], network: [{{Linear: [1, 1]}}, {layer}], features: [x], target: y}}
sinks:
  out: {{type: file, path: out.jsonl, inputs: [m]}}
"""


def write(folder: Path, port: int, layer: str = "ReLU") -> None:
    (folder / "graph.yaml").write_text(GRAPH.format(port=port, layer=layer), encoding="utf-8")


def test_the_machine_is_described(tmp_path: Path) -> None:
    done = streamflow(tmp_path, "doctor", "--json")
    assert done.returncode == 0
    found = {finding["subject"]: finding["found"] for finding in json.loads(done.stdout)}
    assert {"streamflow", "python", "torch", "processor cores", "GPUs", "C++ compiler"} <= {*found}
    assert found["aiokafka's C extension"] == "there"
    shown = streamflow(tmp_path, "doctor").stdout
    assert found["python"].split()[0] in shown


def test_a_compiler_that_is_missing_has_a_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++")
    monkeypatch.setenv("PATH", "/nowhere")
    done = streamflow(tmp_path, "doctor", "--json")
    [finding] = [item for item in json.loads(done.stdout) if item["subject"] == "C++ compiler"]
    assert (done.returncode, finding["found"]) == (0, "not there")
    assert "apt install g++" in finding["cure"]


def test_packages_that_are_missing_are_told_with_the_command_that_installs_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plugins, "_is_installed", lambda module: False)
    assert examine(None, as_json=True) == 0
    found = {item["subject"]: item for item in json.loads(capsys.readouterr().out)}
    finding = found["kafka: the package aiokafka"]
    assert finding["found"] == "not installed"
    assert finding["cure"] == "run: pip install 'streamflow[kafka]'"


def test_what_a_graph_connects_to_is_tried(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        write(tmp_path, port)
        done = streamflow(tmp_path, "doctor", "graph.yaml", "--json")
        findings = {item["subject"]: item for item in json.loads(done.stdout)}
        assert done.returncode == 0
        assert findings[f"in: 127.0.0.1:{port}"]["found"] == "answers"
    done = streamflow(tmp_path, "doctor", "graph.yaml", "--json")
    findings = {item["subject"]: item for item in json.loads(done.stdout)}
    assert done.returncode == 1
    assert findings[f"in: 127.0.0.1:{port}"]["found"].startswith("does not answer: ")


def test_a_network_that_cannot_be_built_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        write(tmp_path, server.getsockname()[1], "RELU")
        done = streamflow(tmp_path, "doctor", "graph.yaml")
    assert done.returncode == 1
    assert "did you mean ReLU?" in " ".join(done.stdout.split())


def test_a_graph_that_is_wrong_is_explained(tmp_path: Path) -> None:
    done = streamflow(tmp_path, "doctor", "none.yaml")
    assert (done.returncode, done.stdout) == (78, "")
