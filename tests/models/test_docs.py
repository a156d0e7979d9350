"""The examples of docs/models.md run as they stand there."""

from pathlib import Path
from typing import Any

import anyio
import pytest

from streamflow import Graph
from streamflow.runtime.stats import Stats
from tests.models.streams import line, run
from tests.test_docs import blocks

PAGE = "docs/models.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the readings that the page makes."""
    made = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        exec(blocks(PAGE, "python")[0], {})
    return made


def finished(text: str, folder: Path) -> Stats:
    path = folder / "graph.yaml"
    path.write_text(text)
    graph = Graph.from_yaml(path)
    assert graph.deep_problems() == []

    async def run() -> Stats:
        async with graph.open() as opened:
            await opened.wait()
        return opened.stats()

    return anyio.run(run)


@pytest.mark.slow
def test_features_make_better_predictions_than_the_mean(folder: Path) -> None:
    stats = finished(blocks(PAGE, "yaml")[0], folder)
    assert (stats.received, stats.delivered, stats.rejected) == (2000, 2000, 0)
    score = stats.nodes["sold"].report["score"]["windowed"]
    assert score["model"]["rmse"] < 0.8 * score["running_mean"]["rmse"]


def test_the_network_that_embeds_takes_its_features() -> None:
    names: dict[str, Any] = {}
    exec(blocks(PAGE, "python")[1], names)
    index = {"field": "sku", "hash": 1000, "encode": "index"}
    rows = [{"sku": f"sku-{i % 9}", "price": i % 3, "y": float(i % 9)} for i in range(9)]
    outcome = run(line(network=names["Sales"], features=(index, "price")), rows)
    assert len(outcome.records) == 9


@pytest.mark.slow
def test_a_model_with_weights_skips_what_is_incomplete(folder: Path) -> None:
    stats = finished(blocks(PAGE, "yaml")[1], folder)
    report = stats.nodes["many"].report
    missing = (folder / "sales.jsonl").read_text().count('"price": null')
    assert report["incomplete"] == missing > 50
    assert report["score"]["windowed"]["model"]["kappa"] > 0.3


@pytest.mark.slow
def test_the_better_of_two_models_is_found(folder: Path) -> None:
    stats = finished(blocks(PAGE, "yaml")[2], folder)
    comparison = stats.nodes["better"].report["comparison"]
    assert comparison["compared"] == 2000
    assert (comparison["better"], comparison["is_significant"]) == ("with_time", True)
    for name, mean in comparison["means"].items():
        score = stats.nodes[name].report["score"]["cumulative"]["model"]
        assert abs(mean**0.5 - score["rmse"]) < 0.1  # which leaves out the very first


@pytest.mark.slow
def test_rivers_metrics_are_told(folder: Path) -> None:
    stats = finished(blocks(PAGE, "yaml")[3], folder)
    said = stats.nodes["many"].report["river"]
    names = ["MacroF1", "MacroFBeta(beta=2)", "BalancedAccuracy"]
    assert list(said["metrics"]) == names
    assert min(said["metrics"].values()) > 0.3
    assert said["drift"]["detector"] == "ADWIN(delta=0.002)"
