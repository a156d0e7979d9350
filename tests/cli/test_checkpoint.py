import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from streamflow.checkpoints import Identity, Snapshot, open_store
from streamflow.cli.app import app
from streamflow.models.network import load_weights
from streamflow.pipeline import Pipeline
from tests.cli.programs import python, streamflow

Command: TypeAlias = Callable[..., tuple[int, str, str]]

IDENTITY = Identity("lines", {"sources": {}, "operators": {}, "models": {"m": {"seed": 3}}})


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, momentum=0.5).eval(), nn.Linear(3, 1))


def learned(number: int) -> dict[str, Any]:
    """Return the state of a pipeline that has learned some samples."""
    optimizer = partial(torch.optim.Adam, lr=0.01)
    with Pipeline(network(), loss=nn.functional.mse_loss, optimizer=optimizer) as pipeline:
        pipeline.process(torch.ones(number, 2), torch.zeros(number, 1))
        state = pipeline.state_dict()
    return {"pipeline": state, "held": [(1, "a")] * number, "score": float("nan")}


def snapshot(number: int) -> Snapshot:
    return Snapshot(
        records={"rows": 1000 * number},
        positions={"rows": {(("path", "a.csv"),): 10 * number, (("path", "b.csv"),): 0}},
        states={"m": learned(number), "count": {"sums": np.full((2, 3), number), "same": 1}},
        marks={"out": {"bytes": 100 * number}},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with two checkpoints."""
    path = tmp_path / "kept"
    with open_store(path, identity=IDENTITY, keep=2) as store:
        for number in (1, 2):
            store.write(snapshot(number))
    return path


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Return what calls a command, for its exit code and what it prints."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = app(["checkpoint", *map(str, arguments)], result_action="return_value")
        found = capsys.readouterr()
        return code, found.out, found.err

    return call


def test_list_shows_all_with_time_records_and_size(folder: Path, command: Command) -> None:
    code, out, error = command("list", folder)
    rows = [line.split() for line in out.splitlines()]
    size = sum(item.stat().st_size for item in (folder / "00000002").iterdir())
    assert (code, error) == (0, "")
    assert [row[0] for row in rows] == ["00000001", "00000002"]
    assert [row[3:5] for row in rows] == [["1,000", "records"], ["2,000", "records"]]
    assert rows[1][5:] == [f"{size:,}", "bytes", "ok"]


def test_list_as_json_has_the_same(folder: Path, command: Command) -> None:
    (folder / "00000001" / "m.safetensors").unlink()
    (folder / "00000002" / "manifest.json").write_bytes(b"{}")
    code, out, _ = command("list", folder, "--json")
    first, second = json.loads(out)["checkpoints"]
    assert code == 0
    assert (first["name"], first["records"], first["ok"]) == ("00000001", 1000, False)
    assert "m.safetensors: expected a file" in first["problem"]
    assert (second["name"], second["records"], second["ok"]) == ("00000002", None, False)
    assert "manifest.json: expected its own checksum" in second["problem"]


def test_list_of_none_says_so(tmp_path: Path, command: Command) -> None:
    assert command("list", tmp_path) == (0, f"{tmp_path}: no checkpoints\n", "")
    assert json.loads(command("list", tmp_path, "--json")[1])["checkpoints"] == []


def test_show_tells_positions_shapes_and_counters(folder: Path, command: Command) -> None:
    code, out, _ = command("show", folder)
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert code == 0
    assert lines[0].startswith(f"{folder}/00000002: lines, 2,000 records, ")
    for line in (
        "rows: 2,000 records",
        "path=a.csv 20",
        "path=b.csv 0",
        "pipeline.module.0.weight F32 (3, 2)",
        "pipeline.module.1.num_batches_tracked I64 ()",
        "pipeline.counters.samples 2",
        "pipeline.counters.updates 1 value",
        "held 2 values",
        "score nan",
        "sums I64 (2, 3)",
        "bytes 200",
    ):
        assert line in lines
    assert [line for line in lines if line.endswith(":")] == ["m:", "count:", "out:"]


def test_show_as_json_has_the_same(folder: Path, command: Command) -> None:
    code, out, _ = command("show", folder / "00000001", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["graph"], found["hash"], found["records"]) == (
        "lines",
        IDENTITY.hash,
        {"rows": 1000},
    )
    assert found["positions"]["rows"][0] == {"partition": {"path": "a.csv"}, "position": 10}
    state = found["states"]["m"]
    assert state["tensors"]["pipeline.module.0.weight"] == {"dtype": "F32", "shape": [3, 2]}
    assert state["values"]["pipeline.counters.samples"] == 1
    assert state["values"]["score"] == "nan"
    assert found["marks"] == {"out": {"bytes": 100}}


def test_diff_tells_what_changed_and_by_how_much(folder: Path, command: Command) -> None:
    one, other = (learned(number)["pipeline"]["module"]["0.weight"] for number in (1, 2))
    code, out, _ = command("diff", folder / "00000001", folder)
    lines = out.splitlines()
    assert code == 0
    distance = f"{(one - other).abs().max().item():g}"
    for line in (
        "rows.records: 1000 -> 2000",
        "rows.position.path=a.csv: 10 -> 20",
        f"m.pipeline.module.0.weight: float32 (3, 2), at most {distance} apart",
        "m.pipeline.counters.samples: 1 -> 2",
        "m.held: a list of 1 -> a list of 2",
        "count.sums: int64 (2, 3), at most 1 apart",
        "out.bytes: 100 -> 200",
    ):
        assert line in lines
    assert not [line for line in lines if "b.csv" in line or "score" in line or ".same" in line]
    assert lines[-1].endswith("other values are the same")


def test_diff_as_json_has_the_same(folder: Path, command: Command) -> None:
    code, out, _ = command("diff", folder / "00000001", folder / "00000002", "--json")
    found = json.loads(out)
    sums = {"path": "count.sums", "before": "int64 (2, 3)", "after": "int64 (2, 3)"}
    assert code == 0
    assert sums | {"max_difference": 1.0} in found["states"]
    assert found["marks"] == [{"path": "out.bytes", "before": "100", "after": "200"}]
    assert found["graph"] == []


def test_diff_of_one_with_itself_is_empty(folder: Path, command: Command) -> None:
    code, out, _ = command("diff", folder, folder, "--json")
    found = json.loads(out)
    assert code == 0
    assert [found[part] for part in ("positions", "states", "marks")] == [[], [], []]
    assert found["same"] > 10


def test_diff_shows_that_the_graph_is_another(
    folder: Path, tmp_path: Path, command: Command
) -> None:
    identity = Identity("other", {"sources": {}, "operators": {}, "models": {"m": {"seed": 4}}})
    with open_store(tmp_path / "other", identity=identity, keep=1) as store:
        store.write(Snapshot(states={"new": {"array": np.arange(3)}}))
    _, out, _ = command("diff", folder, tmp_path / "other")
    lines = out.splitlines()
    assert lines[0].startswith("models.m.seed: expected 3 as in the checkpoint, found 4")
    assert "new.array: nothing -> int64 (3)" in lines
    assert "count.sums: int64 (2, 3) -> nothing" in lines


@pytest.mark.parametrize(
    ("before", "after", "distance"),
    [
        (torch.tensor([1.0, float("nan")]), torch.tensor([1.5, float("nan")]), 0.5),
        (torch.tensor([float("inf"), -1.0]), torch.tensor([float("inf"), 1.0]), 2.0),
        (torch.tensor([float("nan")]), torch.tensor([0.0]), "inf"),
        (torch.tensor(True), torch.tensor(False), 1.0),
        (torch.tensor([1, 2], dtype=torch.uint64), torch.tensor([4, 2], dtype=torch.uint64), 3.0),
        (torch.tensor([1 + 1j]), torch.tensor([1 - 1j]), 2.0),
        (torch.ones(2).to(torch.float8_e4m3fn), torch.zeros(2).to(torch.float8_e4m3fn), 1.0),
        (torch.ones(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.bfloat16), 1.0),
        (np.array([1, 5], "u1"), np.array([3, 4], "u1"), 2.0),
        (np.array([1 + 1j], "c8"), np.array([1j], "c8"), 1.0),
        (torch.zeros(0), torch.zeros(0), None),
        (torch.tensor(0.0), torch.tensor(-0.0), None),
    ],
    ids=repr,
)
def test_diff_measures_any_numbers(
    before: Any, after: Any, distance: float | str | None, tmp_path: Path, command: Command
) -> None:
    with open_store(tmp_path, identity=IDENTITY, keep=2) as store:
        for value in (before, after):
            store.write(Snapshot(states={"m": {"a": value}}))
    _, out, _ = command("diff", tmp_path / "00000001", tmp_path / "00000002", "--json")
    changes = json.loads(out)["states"]
    assert [change["max_difference"] for change in changes] == (
        [] if distance is None else [distance]
    )


def test_diff_sees_shapes_that_long_tensors_do_not_print(tmp_path: Path, command: Command) -> None:
    with open_store(tmp_path, identity=IDENTITY, keep=2) as store:
        for length in (2000, 3000):
            store.write(Snapshot(states={"m": {"a": torch.zeros(length)}}))
    _, out, _ = command("diff", tmp_path / "00000001", tmp_path / "00000002")
    assert "m.a: float32 (2000) -> float32 (3000)" in out


def test_verify_exits_with_1_for_damage(folder: Path, command: Command) -> None:
    assert command("verify", folder) == (0, "00000001: ok\n00000002: ok\n", "")
    path = folder / "00000001" / "count.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    code, out, _ = command("verify", folder)
    first, second = out.splitlines()
    assert (code, second) == (1, "00000002: ok")
    assert first.startswith("00000001: damaged: ")
    assert "count.safetensors: expected its checksum, found another one" in first
    assert command("verify", folder / "00000002")[0] == 0
    code, out, _ = command("verify", folder, "--json")
    found = json.loads(out)
    assert (code, found["ok"], [row["ok"] for row in found["checkpoints"]]) == (
        1,
        False,
        [False, True],
    )


def test_verify_knows_a_checkpoint_without_its_manifest(folder: Path, command: Command) -> None:
    (folder / "00000002" / "manifest.json").unlink()
    code, out, _ = command("verify", folder / "00000002")
    assert code == 1
    assert "expected the manifest of a checkpoint, found: no such file" in out


def test_exported_weights_are_those_of_a_plain_network(
    folder: Path, tmp_path: Path, command: Command
) -> None:
    output = tmp_path / "weights.safetensors"
    output.write_text("an older one")
    code, out, _ = command("export", folder, "--model", "m", "--output", output)
    assert (code, out) == (0, f"{output}: 9 tensors of m in {folder}/00000002\n")
    expected = learned(2)["pipeline"]["module"]
    plain = network()
    plain.load_state_dict(safetensors.torch.load_file(output))
    assert all(torch.equal(value, expected[name]) for name, value in plain.state_dict().items())
    of_a_graph = network()
    load_weights(of_a_graph, output)
    assert torch.equal(of_a_graph.state_dict()["0.weight"], expected["0.weight"])
    assert sorted(item.name for item in tmp_path.iterdir()) == ["kept", "weights.safetensors"]
    assert output.stat().st_mode == (folder / "00000002" / "manifest.json").stat().st_mode


def test_the_only_model_needs_no_name(folder: Path, tmp_path: Path, command: Command) -> None:
    output = tmp_path / "w.safetensors"
    code, out, _ = command("export", folder / "00000001", "--output", output, "--json")
    found = json.loads(out)
    assert (code, found["model"], len(found["tensors"])) == (0, "m", 9)
    assert output.exists()


@pytest.mark.parametrize("name", ["M", "count", "x"])
def test_a_model_that_is_not_there_is_named(
    name: str, folder: Path, tmp_path: Path, command: Command
) -> None:
    output = tmp_path / "w.safetensors"
    code, out, error = command("export", folder, "--model", name, "--output", output)
    assert (code, out) == (1, "")
    assert f"00000002: expected the name of a model, found {name}; " in error
    assert error.endswith(("did you mean m?\n", "choose one of: m\n"))
    assert not output.exists()


def test_weights_that_cannot_be_written_are_no_weights(
    folder: Path, tmp_path: Path, command: Command
) -> None:
    code, _, error = command("export", folder, "--output", tmp_path / "none" / "w.safetensors")
    assert code == 1
    assert "expected to write weights, found: no such file" in error
    (tmp_path / "taken").mkdir()
    code, _, error = command("export", folder, "--output", tmp_path / "taken")
    assert code == 1
    assert "expected to write weights, found: is a directory" in error
    assert sorted(item.name for item in tmp_path.iterdir()) == ["kept", "taken"]


def test_a_state_that_safetensors_cannot_hold_is_named(tmp_path: Path, command: Command) -> None:
    module = {"weight": torch.ones(2), "_extra_state": {"a": 1}}
    with open_store(tmp_path / "kept", identity=IDENTITY, keep=1) as store:
        store.write(Snapshot(states={"m": {"pipeline": {"module": module}}}))
    code, _, error = command("export", tmp_path / "kept", "--output", tmp_path / "w")
    assert code == 1
    assert error.startswith("_extra_state: expected a tensor in the network's state, found a dict")


def test_a_damaged_newest_one_is_passed_over_but_not_when_it_is_meant(
    folder: Path, command: Command
) -> None:
    (folder / "00000002" / "m.safetensors").unlink()
    code, out, _ = command("show", folder, "--json")
    assert (code, json.loads(out)["path"]) == (0, f"{folder}/00000001")
    code, out, error = command("show", folder / "00000002", "--json")
    assert (code, json.loads(out)["error"]) == (1, error.strip())
    assert "m.safetensors: expected a file" in error
    assert error.endswith("; choose another one\n")


@pytest.mark.parametrize("name", ["show", "verify"])
def test_an_empty_folder_has_nothing_to_show(name: str, tmp_path: Path, command: Command) -> None:
    code, out, error = command(name, tmp_path)
    assert (code, out) == (1, "")
    assert error == f"{tmp_path}: expected checkpoints, found none; run the graph first\n"


@pytest.mark.parametrize("name", ["list", "show", "verify"])
def test_a_path_that_is_not_there_is_named(name: str, tmp_path: Path, command: Command) -> None:
    code, out, error = command(name, tmp_path / "none")
    assert (code, out) == (1, "")
    assert "none: expected a folder of checkpoints, a checkpoint or a graph file, found" in error


GRAPH = """\
version: 1
name: copy
checkpoint: {path: "kept/{instance}", every: 2}
sources:
  rows: {type: file, path: in.csv}
sinks:
  out: {type: file, path: out.jsonl, inputs: [rows]}
"""


def test_a_graph_leads_to_its_checkpoints(folder: Path, tmp_path: Path, command: Command) -> None:
    shutil.move(folder, tmp_path / "moved")
    folder.mkdir()
    shutil.move(tmp_path / "moved", folder / "a")
    graph = tmp_path / "graph.yaml"
    graph.write_text(GRAPH, encoding="utf-8")
    code, out, _ = command("list", graph, "--instance", "a", "--json")
    assert (code, len(json.loads(out)["checkpoints"])) == (0, 2)
    code, _, error = command("list", graph)
    assert code == 1
    assert f"{folder}/0: expected a folder of checkpoints, found: no such file" in error


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (None, "graph.yaml:1:1: expected a graph file, found none"),
        (GRAPH.replace("every: 2", "often: 2"), "graph.yaml:3:"),
        (GRAPH.replace("checkpoint:", "#"), "expected a graph with checkpoints, found one without"),
    ],
)
def test_a_graph_that_leads_nowhere_is_bad_configuration(
    graph: str | None, message: str, tmp_path: Path, command: Command
) -> None:
    if graph:
        (tmp_path / "graph.yaml").write_text(graph, encoding="utf-8")
    code, out, error = command("list", tmp_path / "graph.yaml")
    assert (code, out) == (78, "")
    assert message in error


@pytest.mark.slow
def test_what_a_run_leaves_is_shown_without_torch(tmp_path: Path) -> None:
    (tmp_path / "graph.yaml").write_text(GRAPH, encoding="utf-8")
    (tmp_path / "in.csv").write_text("a,b\n" + "1,2\n" * 5, encoding="utf-8")
    done = streamflow(tmp_path, "run", "graph.yaml")
    assert done.returncode == 0, done.stderr
    done = streamflow(tmp_path, "checkpoint", "show", "graph.yaml", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["records"] == {"rows": 5}
    assert streamflow(tmp_path, "checkpoint", "show").returncode == 2
    code = (
        "import sys\nfrom streamflow.cli.app import app\n"
        "for name in ('list', 'show', 'verify'): app(['checkpoint', name, 'kept/0'])\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = python(tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
