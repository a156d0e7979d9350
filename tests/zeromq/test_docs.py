from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

from streamflow import Graph
from streamflow_connectors.zeromq import ZeroMqSink, ZeroMqSource
from tests.test_docs import blocks
from tests.traces import PLENTY
from tests.zeromq.peers import free_port

PAGE = "docs/zeromq.md"


@pytest.mark.slow
@pytest.mark.anyio
async def test_the_example_works_as_written(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    receive, send, _ = (text.replace("127.0.0.1:5555", address) for text in blocks(PAGE, "yaml"))
    [by_hand] = (text.replace("127.0.0.1:5555", address) for text in blocks(PAGE, "python"))
    rows = [{"temperature": number / 10, "load": number} for number in range(20)]
    (tmp_path / "readings.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for name, text in (("receive", receive), ("send", send)):
        (tmp_path / f"{name}.yaml").write_text(text)
    with anyio.fail_after(PLENTY):
        async with Graph.from_yaml(tmp_path / "receive.yaml").open() as receiving:
            async with Graph.from_yaml(tmp_path / "send.yaml").open() as sending:
                await sending.wait()
            await to_thread.run_sync(exec, by_hand, {})
            await receiving.wait()
    assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == len(rows) + 1


def test_keys_are_made_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [code] = re.findall(r'python -c "(.*)"', blocks(PAGE, "console")[0])
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    public, secret = printed.splitlines()
    monkeypatch.setenv("FEED_PUBLIC", public)
    monkeypatch.setenv("OTHER_PUBLIC", public)
    monkeypatch.setenv("FEED_SECRET", secret)
    (tmp_path / "graph.yaml").write_text(f"name: keys\n{blocks(PAGE, 'yaml')[2]}")
    graph = Graph.from_yaml(tmp_path / "graph.yaml")
    for node in (graph.sources["readings"], graph.sinks["feed"]):
        assert isinstance(node, ZeroMqSource | ZeroMqSink)
        assert node.curve_secret_key is not None
        assert node.curve_secret_key.get_secret_value() == secret
        assert list(node.deep_problems(tmp_path)) == []


@pytest.mark.parametrize("declared", [ZeroMqSource, ZeroMqSink])
def test_the_page_names_every_option(declared: Any) -> None:
    text = (Path(__file__).parent.parent.parent / PAGE).read_text(encoding="utf-8")
    shared = {"type", "inputs", "merge", "overflow", "buffer"}
    named = set(re.findall(r"`(\w+)`", text))
    assert declared.model_fields.keys() - shared <= named
