import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.cli.programs import streamflow

GRAPH = """\
name: two
sources:
  a: {type: file, path: a.csv}
  b: {type: kafka, bootstrap_servers: "${HOST:-h:1}", topics: [t], security_protocol: SASL_SSL,
      username: me, password: "${SECRET}"}
operators:
  both: {type: select, inputs: [a, b], fields: [x], overflow: {a: latest}}
sinks:
  out: {type: file, inputs: [both], path: "out<&>.jsonl"}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a graph that needs a secret, which is set."""
    monkeypatch.setenv("SECRET", "hunter2")
    (tmp_path / "graph.yaml").write_text(GRAPH, encoding="utf-8")
    return tmp_path


@pytest.mark.slow
def test_list_has_a_row_for_every_type(tmp_path: Path) -> None:
    done = streamflow(tmp_path, "list")
    assert done.returncode == 0
    rows = [tuple(line.split()[:2]) for line in done.stdout.splitlines()]
    assert {("source", "kafka"), ("model", "model"), ("format", "csv"), ("sink", "file")} <= {*rows}
    found = json.loads(streamflow(tmp_path, "list", "--json").stdout)
    assert {(row["kind"], row["name"]) for row in found} <= set(rows)


@pytest.mark.slow
def test_describe_shows_every_option(tmp_path: Path) -> None:
    done = streamflow(tmp_path, "describe", "kafka", "--json")
    source, sink = json.loads(done.stdout)
    assert (source["kind"], sink["kind"]) == ("source", "sink")
    options = {option["name"]: option for option in source["options"]}
    assert options["topics"]["type"] == "list of text"
    assert options["topics"]["default"] == "[]"
    assert options["bootstrap_servers"]["default"] is None
    assert options["password"]["type"] == "secret text"
    assert options["session_timeout"]["default"] == "10"
    shown = streamflow(tmp_path, "describe", "sink.kafka")
    assert shown.stdout.startswith("kafka, a sink\n")
    assert "delivery" in shown.stdout
    assert "stop_at_end" not in shown.stdout


@pytest.mark.slow
def test_describe_suggests_a_name(tmp_path: Path) -> None:
    done = streamflow(tmp_path, "describe", "kafak")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "expected the name of a type, found kafak; did you mean kafka?, or run streamflow list\n"
    )


@pytest.mark.slow
def test_schema_is_json(tmp_path: Path) -> None:
    schema = json.loads(streamflow(tmp_path, "schema").stdout)
    assert schema["$schema"].startswith("https://json-schema.org/")


@pytest.mark.slow
def test_graph_draws_the_stream_in_order(folder: Path) -> None:
    assert streamflow(folder, "graph", "graph.yaml").stdout.splitlines() == [
        "source    a     file",
        "source    b     kafka",
        "operator  both  select  <- a, b",
        "sink      out   file    <- both",
    ]
    lines = streamflow(folder, "graph", "graph.yaml", "--format", "mermaid").stdout.splitlines()
    assert lines[0] == "flowchart LR"
    assert "  n0 -- latest --> n2" in lines
    assert "  n2 --> n3" in lines


@pytest.mark.slow
def test_graph_is_a_picture_with_a_box_for_each_node_and_a_line_for_each_edge(folder: Path) -> None:
    picture = streamflow(folder, "graph", "graph.yaml", "--format", "svg").stdout
    root = ElementTree.fromstring(picture)
    tags = [element.tag.rpartition("}")[2] for element in root]
    assert (tags.count("rect"), tags.count("path"), tags.count("text")) == (4, 3, 8)
    boxes = [(element.get("x"), element.get("y")) for element in root if "rect" in element.tag]
    assert len(set(boxes)) == 4


@pytest.mark.slow
def test_config_show_puts_variables_in_and_leaves_secrets_out(folder: Path) -> None:
    done = streamflow(folder, "config", "show", "graph.yaml", "--set", "name=other")
    assert done.returncode == 0
    assert "name: other" in done.stdout
    assert 'bootstrap_servers: "h:1"' in done.stdout
    assert "hunter2" not in done.stdout
    assert "${B_PASSWORD:?" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("command", [["graph"], ["config", "show"]])
def test_what_is_wrong_with_the_file_is_told(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "graph.yaml").write_text("name: g\n", encoding="utf-8")
    done = streamflow(tmp_path, *command, "graph.yaml")
    assert (done.returncode, done.stdout) == (78, "")
    assert "sources" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_names_the_commands_of_other_packages_too(
    tmp_path: Path, arguments: list[str]
) -> None:
    done = streamflow(tmp_path, *arguments)
    assert "demo" in done.stdout
    assert "describe" in done.stdout
