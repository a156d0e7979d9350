import json
import subprocess
import sys
from pathlib import Path

import pytest


def demo(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "streamflow", "demo", *options],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_the_demo_predicts_every_reading_and_draws_the_score(tmp_path: Path) -> None:
    done = demo(tmp_path, "--records", "300", "--stages", "2")
    lines = (tmp_path / "streamflow-demo" / "predictions.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["source"]["offset"] for record in records] == list(range(300))
    assert [record["step"] for record in records[:4]] == [0, 0, 1, 2]
    assert (tmp_path / "streamflow-demo" / "detector.png").read_bytes().startswith(b"\x89PNG")
    assert "no change" in done.stderr
    assert "streamflow-demo/predictions.jsonl" in done.stderr


@pytest.mark.slow
def test_the_written_graph_can_be_changed_and_run(tmp_path: Path) -> None:
    demo(tmp_path, "--write", "mine")
    graph = tmp_path / "mine" / "graph.yaml"
    schema = graph.read_text().split("\n", 1)[0].removeprefix("# yaml-language-server: $schema=")
    assert json.loads((graph.parent / schema).read_text())["properties"]["sources"]
    graph.write_text(graph.read_text().replace("Linear: [9, 32]", "Linear: [9, 32, false]"))
    done = demo(tmp_path, "--graph", "mine/graph.yaml", "--records", "200")
    assert len((tmp_path / "mine" / "predictions.jsonl").read_text().splitlines()) == 200
    assert "mine/predictions.jsonl" in done.stderr
