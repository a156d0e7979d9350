"""The sink that compares two models."""

import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamflow.checkpoints.trees import decode, encode, without_tensors
from streamflow.contracts import Context, Resume
from streamflow.errors import GraphError
from streamflow.evaluation.comparison import Comparison, ComparisonWriter
from streamflow.evaluation.paired import PairedLosses
from streamflow.graph import Graph
from streamflow.observe.report import verdict
from streamflow.records import Batch, Partition, to_columns
from streamflow_connectors.memory import MemorySource
from tests.models.streams import line

pytestmark = pytest.mark.anyio

PARTITIONS = [Partition("rows", (("partition", number),), "offset") for number in range(2)]


def rows(count: int, *, worse: float = 0.0, classes: bool = False) -> list[dict[str, Any]]:
    """Return predictions of two models, a and b, for the same records of two partitions."""
    draw = random.Random(1)
    found = []
    for number in range(count):
        for model, error in (("a", draw.gauss(0, 1)), ("b", draw.gauss(0, 1) + worse)):
            row: dict[str, Any] = {"model": model, "at": (number % 2, number // 2)}
            if classes:
                row |= {"prediction": "x" if abs(error) < 1 else "y", "target": "x", "scores": [1]}
            else:
                row |= {"prediction": 5 + error, "target": 5.0}
            found.append(row)
    return found


def batch_of(records: Sequence[dict[str, Any]]) -> Batch:
    values = [{name: row[name] for name in row if name != "at"} for row in records]
    partitions = [PARTITIONS[row["at"][0]] for row in records]
    return Batch(to_columns(values), partitions, [row["at"][1] for row in records])


async def compared(
    records: Sequence[dict[str, Any]], *, size: int = 7, resume_at: int = 0, **options: Any
) -> tuple[dict[str, Any], list[str]]:
    """Return the report and causes after all records, the sink opened anew on the way."""
    declared = Comparison(inputs=("a", "b"), **options)
    causes: list[str] = []
    async with AsyncExitStack() as stack:
        writer: Any = await stack.enter_async_context(declared.open(Context("better")))
        for start in range(0, len(records), size):
            if start <= resume_at < start + size:
                mark = decode(encode(dict(await writer.mark()), where="m").json, without_tensors)
                resumed = Context("better", resume=Resume(mark=mark))
                writer = await stack.enter_async_context(declared.open(resumed))
            rejected = await writer.write(batch_of(records[start : start + size]))
            causes += rejected.causes if rejected else []
        return dict(writer.report()), causes


async def test_each_record_is_compared_with_itself_whoever_comes_first() -> None:
    records = rows(300, worse=0.5)
    own = {model: [r for r in records if r["model"] == model] for model in "ab"}
    losses = PairedLosses()
    first, second = (
        np.array([(row["prediction"] - 5) ** 2 for row in own[model]]) for model in "ab"
    )
    losses.absorb(first, second)
    found = losses.diebold_mariano()
    assert found is not None
    for order in (records, [*own["a"], *own["b"]], records[::-1][::-1]):
        report, causes = await compared(order)
        assert causes == []
        comparison = report["comparison"]
        assert comparison["compared"] == 300
        assert comparison["means"] == pytest.approx({"a": first.mean(), "b": second.mean()})
        assert comparison["p_values"] == {"Diebold-Mariano": pytest.approx(found[0])}
        assert (comparison["better"], comparison["is_significant"]) == ("a", True)
        assert report["unmatched"] == report["unlabelled"] == 0


async def test_mistakes_of_classifiers_are_compared_by_two_tests() -> None:
    report, _ = await compared(rows(400, worse=1.0, classes=True))
    comparison = report["comparison"]
    assert comparison["loss"] == "mistake"
    assert sorted(comparison["p_values"]) == ["Diebold-Mariano", "McNemar"]
    assert comparison["is_significant"]
    assert verdict(comparison).endswith(
        "; a is better, which is significant ("
        + ", ".join(f"{name} p = {p:.2g}" for name, p in comparison["p_values"].items())
        + ")"
    )
    strict, _ = await compared(rows(400, worse=1.0, classes=True), level=1e-300)
    assert not strict["comparison"]["is_significant"]


async def test_one_loss_or_another() -> None:
    records = rows(50)
    for loss, of in (("squared", np.square), ("absolute", np.abs)):
        report, _ = await compared(records, loss=loss)
        errors = [row["prediction"] - 5 for row in records if row["model"] == "a"]
        assert report["comparison"]["means"]["a"] == pytest.approx(float(of(errors).mean()))
    arrays = [{**row, "prediction": [6.0, 8.0], "target": [5.0, 5.0]} for row in records]
    report, _ = await compared(arrays)
    assert report["comparison"]["means"] == {"a": 5.0, "b": 5.0}
    assert verdict(report["comparison"]).endswith(
        "mean squared error of a 5 and b 5; the difference is not significant "
        "(Diebold-Mariano p = 1)"
    )


@pytest.mark.parametrize("resume_at", [1, 40, 200])
async def test_a_comparison_goes_on_from_a_checkpoint(resume_at: int) -> None:
    records = rows(120, worse=0.2)
    late = [*(r for r in records if r["model"] == "a"), *(r for r in records if r["model"] == "b")]
    assert await compared(late, resume_at=resume_at) == await compared(late)


async def test_what_cannot_be_compared() -> None:
    good = rows(40)
    odd: list[dict[str, Any]] = [
        {"prediction": 1.0, "target": 1.0, "at": (0, 900)},
        {"model": "c", "prediction": 1.0, "target": 1.0, "at": (0, 900)},
        {"model": "a", "prediction": "x", "target": 1.0, "at": (0, 900)},
        {"model": "a", "prediction": float("nan"), "target": 1.0, "at": (0, 900)},
        {"model": "a", "prediction": 1.0, "at": (0, 901)},
        {"model": "b", "prediction": 1.0, "target": 1.0, "at": (0, 902)},
    ]
    report, causes = await compared([*good, *odd], size=1)
    assert [cause.split(",")[0] for cause in causes] == [
        "expected the field model",
        "expected predictions of a and b",
        "could not convert string to float: 'x'",
        "expected finite numbers to compare",
    ]
    assert (report["unlabelled"], report["unmatched"]) == (1, 1)
    assert report["comparison"] == (await compared(good))[0]["comparison"]


async def test_few_pairs_tell_nothing() -> None:
    report, _ = await compared(rows(20))
    assert report["comparison"]["p_values"] == {}
    assert verdict(report["comparison"]).endswith("; too few to tell which is better")
    assert (await compared([]))[0] == {"unlabelled": 0}


async def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamflow.evaluation.comparison.MOST_WAITING", 5)
    records = rows(20)
    order = [*(r for r in records if r["model"] == "a"), *(r for r in records if r["model"] == "b")]
    report, _ = await compared(order)
    assert report["comparison"]["compared"] == 5
    assert report["unmatched"] == 15 + 15  # of each model, whether given up or still waiting


def graph_of(folder: Path) -> Graph:
    data = [{"x": i % 7 / 7, "y": 3.0 * (i % 7)} for i in range(200)]
    options: dict[str, Any] = {"named": True, "compile": False}
    models = {
        "learns": line(inputs=("rows",), **options),
        "stays": line(inputs=("rows",), learn=False, **options),
    }
    return Graph(
        name="g",
        sources={"rows": MemorySource(records=data)},
        models=models,
        sinks={"better": Comparison(inputs=("learns", "stays"))},
    )


async def test_two_models_of_a_graph_are_compared(tmp_path: Path) -> None:
    async with graph_of(tmp_path).open() as run:
        await run.wait()
    comparison = run.stats().nodes["better"].report["comparison"]
    assert (comparison["compared"], comparison["better"]) == (200, "learns")
    assert comparison["is_significant"]


def test_a_name_needs_its_field() -> None:
    with pytest.raises(GraphError, match="other fields than the output's own, found model"):
        line(named=True, carry=("model",))
    assert line(carry=("model",)).carry == ("model",)
    assert ComparisonWriter(Comparison(inputs=("a",))).report() == {"unlabelled": 0}
