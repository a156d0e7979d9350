"""``streamflow demo``: the main job on real data, with a broker that comes with it.

recording (shuttle.csv.gz, from river's wheel) --replay.yaml--> topic shuttle
topic shuttle --graph.yaml: standardize, network--> topic predictions, predictions.jsonl
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Mapping
from importlib.resources import files
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from streamflow import Graph
from streamflow.cli import exit_codes
from streamflow.cli.running import run_graph
from streamflow.config.schema import SCHEMA_LINE, write_schema
from streamflow.errors import GraphError, MissingExtraError
from streamflow.nodes.plugins import require
from streamflow.runtime.stats import Stats

REQUIRES = dict.fromkeys(
    ("aiokafka", "confluent_kafka", "matplotlib", "river"), "streamflow-online[demo]"
)
GRAPHS = files("streamflow_connectors.demo")
PREDICTION_PARTITIONS = 4  # the embedded broker keeps 5 MB of each


def demo(
    *,
    stages: Annotated[int | None, Parameter(help="Number of pipeline stages.")] = None,
    records: Annotated[
        int | None, Parameter(help="Replay only this many records; by default all 49,097.")
    ] = None,
    output: Annotated[
        Path, Parameter(help="Folder for the predictions and the picture of the score.")
    ] = Path("streamflow-demo"),
    write: Annotated[
        Path | None, Parameter(help="Only leave the YAML of the demo in this folder.")
    ] = None,
    graph: Annotated[
        Path | None, Parameter(help="Learn with this graph instead, the YAML that you changed.")
    ] = None,
) -> int:
    """Learn from a real sensor stream through an embedded Kafka, and show how well that goes.

    Example: streamflow demo --stages 2
    """
    try:
        require(REQUIRES, where="streamflow demo")
        if write is not None:
            return write_graphs(write)
        output.mkdir(parents=True, exist_ok=True)
        return run_demo(graph, output=output, stages=stages, records=records)
    except (MissingExtraError, GraphError) as error:
        sys.stderr.write(f"{error}\n")
        return exit_codes.BAD_CONFIGURATION


def write_graphs(folder: Path) -> int:
    """Leave both graphs in ``folder``, ready for a broker of the user's or for the demo."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("graph.yaml", "replay.yaml"):
        text = (GRAPHS / name).read_text(encoding="utf-8")
        recording = json.dumps(str(recording_path()))
        text = text.replace("path: shuttle.csv.gz", f"path: {recording}")
        (folder / name).write_text(SCHEMA_LINE + text, encoding="utf-8")
    write_schema(folder)
    sys.stdout.write(
        f"Wrote {folder / 'graph.yaml'} and {folder / 'replay.yaml'}. Change them, then run\n"
        f"  streamflow demo --graph {folder / 'graph.yaml'}\n"
        f"or, with a broker of your own,\n"
        f"  export KAFKA=host:9092\n"
        f"  streamflow run {folder / 'replay.yaml'}\n"
        f"  streamflow run {folder / 'graph.yaml'}\n"
    )
    return 0


def run_demo(graph: Path | None, *, output: Path, stages: int | None, records: int | None) -> int:
    """Replay the recording, learn from it, and show the score; returns the exit code."""
    from streamflow_connectors.demo.embedded_kafka import EmbeddedKafka  # needs the extra

    with EmbeddedKafka() as broker:
        broker.create_topic("shuttle")
        broker.create_topic("predictions", PREDICTION_PARTITIONS)
        _say(f"Embedded Kafka at {broker.address}. Replaying {recording_path().name}")
        code, _ = run_graph(_replay(broker.address, output, records), report=False)
        if code:
            return code
        learning = _learning(graph, broker.address, output, stages)
        _say("Learning from every reading right after it is predicted")
        code, stats = run_graph(learning)
        if stats:
            _show_score(stats, output)
        folder = output if graph is None else graph.parent
        _say(f"Predictions: topic 'predictions', and {folder / 'predictions.jsonl'}")
    return code


def recording_path() -> Path:
    """Return the Shuttle data set in river's wheel, without importing river."""
    spec = find_spec("river")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "datasets" / "shuttle.csv.gz"


def _replay(address: str, output: Path, records: int | None) -> Graph:
    path = recording_path() if records is None else _excerpt(output, records)
    overrides = {
        "sources.recording.path": json.dumps(str(path)),
        "sinks.topic.bootstrap_servers": json.dumps(address),
    }
    return _read(GRAPHS / "replay.yaml", overrides)


def _excerpt(output: Path, records: int) -> Path:
    """Write the first ``records`` readings to a file of their own."""
    excerpt = output / "shuttle.csv"
    with gzip.open(recording_path(), "rt") as recording:
        excerpt.write_text("".join(islice(recording, records + 1)))
    return excerpt.resolve()


def _learning(graph: Path | None, address: str, output: Path, stages: int | None) -> Graph:
    overrides = {
        "sources.readings.bootstrap_servers": json.dumps(address),
        "sinks.predictions.bootstrap_servers": json.dumps(address),
    }
    if stages is not None:
        overrides["models.detector.stages"] = str(stages)
    if graph is not None:
        return _read(graph, overrides)
    overrides["sinks.copy.path"] = json.dumps(str((output / "predictions.jsonl").resolve()))
    return _read(GRAPHS / "graph.yaml", overrides)


def _read(path: Any, overrides: Mapping[str, str]) -> Graph:
    return Graph.from_yaml(Path(str(path)), overrides=overrides)


def _show_score(stats: Stats, output: Path) -> None:
    """Draw the score over time, in the terminal and as a picture."""
    from streamflow.observe.chart import line_chart, terminal_chart  # imports what draws

    for name, node in stats.nodes.items():
        history = node.report.get("history")
        if not history or not history["scored"]:
            continue
        title = f"{name}: {history['metric']} over the last records"
        places, lines = history["scored"], history["lines"]
        _say(terminal_chart(places, lines, title=title))
        picture = output / f"{name}.png"
        line_chart(
            picture, places, lines, title=title, x_label="records", y_label=history["metric"]
        )
        _say(f"Score over time: {picture}")


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
