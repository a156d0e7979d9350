"""Features against what each is by definition, in plain Python."""

import math
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from streamflow.errors import GraphError
from streamflow.graph import Graph
from streamflow.models.features import FeatureReader
from streamflow.models.network import build_network
from streamflow.models.shapes import random_inputs
from streamflow.records import Batch, Partition
from streamflow.testing import check_operator
from streamflow_connectors.memory import MemorySink, MemorySource
from tests.models.streams import batch_of, line, model, run
from tests.models.test_state import goes_on

PERIODS = {"minute": 60, "hour": 24, "weekday": 7, "day": 31, "month": 12, "yearday": 366}
NAN = math.nan


def read(feature: Any, rows: list[Any], **options: Any) -> list[Any]:
    """Return what a feature makes of records, the cause where that is none."""
    inputs = FeatureReader(model(features=(feature,), **options)).read(batch_of(rows))
    found: list[Any] = inputs.values.tolist()
    for index, cause in inputs.causes.items():
        found[index] = cause
    for index in inputs.incomplete:
        found[index] = "incomplete"
    return found


def values(*found: Any) -> list[dict[str, Any]]:
    return [{"f": value} for value in found]


def same(found: Sequence[Any], expected: Sequence[Any]) -> bool:
    return repr(found) == repr(expected)


def test_listed_categories_are_ones_among_zeros() -> None:
    feature = {"field": "f", "categories": ["n", "s", 7]}
    assert read(feature, values("s", "n", 7, "s")) == [[0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0]]
    assert read({**feature, "encode": "index"}, values("s", 7.0)) == [[1], [2]]
    unknown = ["w", None, [1], NAN]
    assert read(feature, values("s", *unknown))[1:] == [
        f"expected for f ['n', 's', 7], found {value!r}" for value in unknown
    ]
    assert read(feature, [{"g": 1}]) == ["expected the field f, found none"]


def test_other_values_may_be_a_category_of_their_own() -> None:
    feature = {"field": "f", "categories": ["n", "s"], "other": True}
    assert read(feature, values("w", "n", 3)) == [[0, 0, 1], [1, 0, 0], [0, 0, 1]]
    bad: Any
    for bad in (None, NAN, []):
        assert read(feature, values("n", bad))[1] == f"expected for f ['n', 's'], found {bad!r}"


def bucket(text: str, count: int) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") % count


def test_a_hash_tells_the_input() -> None:
    found = read({"field": "f", "hash": 5}, values("apple", "pear", 12, 12.0, True))
    expected = [bucket(text, 5) for text in ("apple", "pear", "12", "12", "1")]
    assert [row.index(1.0) for row in found] == expected
    assert all(sum(row) == 1 for row in found)
    index = {"field": "f", "hash": 1000, "encode": "index"}
    assert read(index, values("apple", b"apple")) == [[bucket("apple", 1000)]] * 2
    assert read(index, values(1.5, "a"))[0] == "expected for f text or a whole number, found 1.5"


def test_hashes_spread_evenly() -> None:
    counts = np.sum(read({"field": "f", "hash": 16}, values(*map(str, range(16_000)))), axis=0)
    chi_squared = float(((counts - 1000) ** 2 / 1000).sum())
    assert chi_squared < 37.7  # 99.9 % of chi-squared with 15 degrees of freedom


def test_more_values_than_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamflow.models.encoders.MOST_HASHED", 10)
    rows = values(*(str(place % 40) for place in range(100)), None)
    found = read({"field": "f", "hash": 7, "nan": "skip"}, rows)
    assert [row.index(1.0) for row in found[:-1]] == [bucket(r["f"], 7) for r in rows[:-1]]
    assert found[-1] == "incomplete"


def circle(place: int, count: int) -> list[float]:
    angle = 2 * math.pi * place / count
    return [float(np.float32(math.sin(angle))), float(np.float32(math.cos(angle)))]


def parts_of(moment: datetime, parts: Sequence[str]) -> list[float]:
    """Return the parts of a time as Python's calendar tells them."""
    places = {
        "minute": moment.minute,
        "hour": moment.hour,
        "weekday": moment.weekday(),
        "day": moment.day - 1,
        "month": moment.month - 1,
        "yearday": moment.timetuple().tm_yday - 1,
    }
    return [number for part in parts for number in circle(places[part], PERIODS[part])]


ZONES = ("UTC", "Europe/Vienna", "America/New_York")
moments = st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29))


@given(
    times=st.lists(moments, min_size=1, max_size=5),
    parts=st.lists(st.sampled_from(sorted(PERIODS)), min_size=1, max_size=4),
    zone=st.sampled_from(ZONES),
    unit=st.sampled_from(["s", "ms", "us"]),
)
@settings(deadline=None)
def test_times_of_all_kinds_have_the_parts_of_the_calendar(
    times: list[datetime], parts: list[str], zone: str, unit: str
) -> None:
    aware = [time.replace(tzinfo=UTC) for time in times]
    there = [time.astimezone(ZoneInfo(zone)) for time in aware]
    expected = [parts_of(time, parts) for time in there]
    feature = {"field": "f", "parts": parts, "timezone": zone, "unit": unit}
    factor = {"s": 1, "ms": 1000, "us": 10**6}[unit]
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    ticks = [(time - epoch) // timedelta(seconds=1) * factor for time in aware]
    for column in (
        [time.isoformat() for time in aware],
        [time.isoformat() for time in there],
        [time.replace(tzinfo=None).isoformat() for time in there],  # of the zone
        there,
        ticks,
        np.array(ticks),
        [*map(float, ticks)],
        [np.int64(tick) for tick in ticks],
        [np.datetime64(time.replace(tzinfo=None)) for time in there],
    ):
        batch = Batch({"f": column}, [Partition("s")] * len(times), range(len(times)))
        found = FeatureReader(model(features=(feature,))).read(batch)
        assert not found.causes
        assert found.values.tolist() == expected


def test_the_time_of_the_record_itself() -> None:
    rows = values(1, 2)  # at 1000 and 1001 ms
    assert read({"parts": ["minute", "hour"]}, rows) == [[0, 1, 0, 1]] * 2
    batch = Batch({}, [Partition("s")] * 2, range(2), timestamps_ms=[3_600_000 * 6, None])
    found = FeatureReader(model(features=({"parts": ["hour"]},))).read(batch)
    assert found.values.tolist()[0] == circle(6, 24)
    assert found.causes[1].startswith("expected a time in ISO 8601, or seconds since 1970, found N")
    batch = Batch({}, [Partition("s")], range(1))
    assert FeatureReader(model(features=({"parts": ["hour"]},))).read(batch).causes


@pytest.mark.parametrize("bad", ["noon", None, 1.7e15, NAN, math.inf, True, [1], 10**400, {}])
def test_what_is_no_time(bad: Any) -> None:
    feature = {"field": "f", "parts": ["hour"]}
    good, found = read(feature, values(0, bad))
    assert good == [0, 1]
    assert found.startswith("expected a time in ISO 8601, or seconds since 1970, found ")
    assert read({**feature, "timezone": "Europe/Vienna"}, values(0, bad))[1] == found


def test_a_date_is_a_time() -> None:
    found = read({"field": "f", "parts": ["day"]}, values(date(2024, 2, 29)))
    assert found == [circle(28, 31)]


FEATURES: list[Any] = [
    {"field": "region", "categories": ["n", "s"], "other": True},
    {"field": "sku", "hash": 4, "nan": "skip"},
    {"field": "time", "parts": ["hour", "weekday"]},
    "a",
    "b",
]


def rows_with_gaps(count: int, seed: int, gap: float) -> list[dict[str, Any]]:
    """Return records some of whose features are missing, in all ways that there are."""
    draw = Random(seed)
    rows = []
    for place in range(count):
        is_first = not place  # which is to fit
        row: dict[str, Any] = {
            "region": draw.choice("nsew"),
            "sku": draw.randrange(50),
            "time": draw.choice([place * 4000, datetime(2024, 1, 1 + place % 28).isoformat()]),
            "a": draw.gauss(5, 1),
            "b": [draw.gauss(-5, 1), draw.gauss(0, 1)] if seed % 2 else draw.gauss(3, 1),
            "y": draw.gauss(0, 1),
        }
        for name in ("region", "sku", "time", "a", "b"):
            if draw.random() < gap and not is_first:
                row[name] = draw.choice([None, NAN])
                if draw.random() < 0.5:
                    del row[name]
        rows.append(row)
    return rows


def declared(seed: int, **options: Any) -> Any:
    """Return a model of all kinds of features; one is an array where the seed is odd."""
    usual: dict[str, Any] = {
        "features": tuple(FEATURES),
        "network": ({"Linear": [13 + seed % 2, 1]},),
        "nan": "impute",
    }
    return line(**(usual | options))


def is_there(value: Any) -> bool:
    return value is not None and value == value


def region_of(region: str, _seed: int) -> list[float]:
    place = "ns".index(region) if region in "ns" else 2
    return [float(place == other) for other in range(3)]


def time_of(time: Any, _seed: int) -> list[float]:
    if isinstance(time, str):
        return parts_of(datetime.fromisoformat(time), ["hour", "weekday"])
    return parts_of(datetime.fromtimestamp(time, UTC), ["hour", "weekday"])


def numbers_of(value: Any, seed: int) -> list[float]:
    return [float(np.float32(item)) for item in (value if isinstance(value, list) else [value])]


def imputed_by_hand(rows: list[dict[str, Any]], seed: int) -> list[list[float]]:
    """Return the inputs that records become: what is missing is the mean of those before."""
    read_by = {"region": region_of, "time": time_of, "a": numbers_of, "b": numbers_of}
    sums = {"region": [0.0] * 3, "time": [0.0] * 4, "a": [0.0], "b": [0.0] * (1 + seed % 2)}
    counts = dict.fromkeys(read_by, 0)
    inputs = []
    for row in rows:
        if not is_there(row.get("sku")):
            continue
        parts: dict[str, list[float]] = {}
        for name, read_one in read_by.items():
            if is_there(row.get(name)):
                parts[name] = read_one(row[name], seed)
                counts[name] += 1
                sums[name] = [o + n for o, n in zip(sums[name], parts[name], strict=True)]
            else:
                total, count = sums[name], max(counts[name], 1)
                parts[name] = [float(np.float32(item / count)) for item in total]
        hashed = [float(bucket(str(row["sku"]), 4) == place) for place in range(4)]
        inputs.append([*parts["region"], *hashed, *parts["time"], *parts["a"], *parts["b"]])
    return inputs


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("cuts", [(), (1, 2, 3), (17, 40), range(60)])
def test_what_is_missing_is_imputed_or_left_out(seed: int, cuts: Any) -> None:
    rows = rows_with_gaps(60, seed, 0.15)
    expected = imputed_by_hand(rows, seed)
    # The identity as a network: what it predicts is what it was given.
    identity = declared(seed, network=("Identity",), target=None, task="regression", learn=False)
    outcome = run(identity, rows, cuts=cuts)
    assert same([record.value["prediction"] for record in outcome.records], expected)
    assert not outcome.causes
    assert outcome.report["incomplete"] == 60 - len(expected)
    lines = [source["line"] for source in outcome.each("source")]
    complete = [i for i, row in enumerate(rows) if isinstance(row.get("sku"), int)]
    assert lines == complete


@pytest.mark.parametrize("horizon", [None, 2])
@pytest.mark.parametrize("seed", range(2))
def test_bad_records_leave_no_trace_in_the_means(seed: int, horizon: int | None) -> None:
    rows = rows_with_gaps(40, seed, 0.2)
    made = declared(seed, horizon=horizon, compile=False)
    bad = [{**row, "y": "none"} if i % 3 == 1 else row for i, row in enumerate(rows)]
    outcome = run(made, bad, cuts=[5, 6, 30])
    clean = run(made, [row for i, row in enumerate(rows) if i % 3 != 1])
    assert sorted(outcome.causes) == [i for i in range(40) if i % 3 == 1]
    assert outcome.each("prediction") == clean.each("prediction")


@given(
    cuts=st.lists(st.integers(0, 40), min_size=1, max_size=3).map(sorted), seed=st.integers(0, 9)
)
@settings(max_examples=8, deadline=None)
@pytest.mark.parametrize("horizon", [None, 2])
def test_a_restored_model_goes_on(cuts: list[int], seed: int, horizon: int | None) -> None:
    goes_on(declared(seed, horizon=horizon), rows_with_gaps(40, seed, 0.1), cuts)


def test_models_with_gaps_pass_the_public_check() -> None:
    check_operator(lambda: declared(2), rows_with_gaps(30, 2, 0.1), cuts=[0, 1, 13, 30])


@pytest.mark.parametrize("cuts", [(), (1,), (2,), (1, 2, 3)])
def test_nothing_fits_before_the_first_record_that_is_complete(cuts: Any) -> None:
    made = line(nan="skip")
    rows: list[Any] = [{"y": 1.0}, {"x": NAN}, {"x": "warm"}, {"x": 1.0, "y": 1.0}, {"x": None}]
    for stop in range(1, 6):
        outcome = run(made, rows[:stop], cuts=[cut for cut in cuts if cut < stop])
        assert len(outcome.records) == (stop > 3)
        assert sorted(outcome.causes) == [2][: stop > 2]
        assert outcome.report["incomplete"] == min(stop, 2) + (stop > 4)


def test_a_record_that_is_bad_in_another_way_is_a_bad_record() -> None:
    outcome = run(line(nan="skip"), [{"x": 1.0, "y": 2.0}, {"x": None, "y": "two"}])
    assert list(outcome.causes) == [1]
    assert outcome.report["incomplete"] == 0


def test_an_array_whose_shape_is_kept_may_have_gaps() -> None:
    network = ("Identity",)
    rows: list[Any] = [{"x": x} for x in ([[1.0, 4.0]], [[3.0, NAN]], None, [[NAN, 7.0]])]
    options: dict[str, Any] = {"features": "x", "network": network, "target": None, "learn": False}
    outcome = run(line(**options, task="regression", nan="impute"), rows)
    assert outcome.each("prediction") == [[1.0, 4.0], [3.0, 4.0], [2.0, 4.0], [2.0, 7.0]]
    outcome = run(line(**options, task="regression", nan="skip"), rows)
    assert outcome.each("prediction") == [[1.0, 4.0]]
    assert outcome.report["incomplete"] == 3


def test_infinity_is_never_missing() -> None:
    for policy in ("skip", "impute"):
        outcome = run(line(nan=policy), [{"x": 1.0, "y": 1.0}, {"x": math.inf, "y": 1.0}])
        assert outcome.causes == {1: "expected a finite number for x, found inf"}


WRONG: list[tuple[Any, str]] = [
    ({"field": "f", "category": ["n"]}, "features.0.category: expected an option of Feature, fo"),
    ({"categories": ["n"]}, "features.0: expected a field to read, found none; name it"),
    ({"field": "f", "categories": []}, "features.0: expected one or more categories, found none"),
    ({"field": "f", "parts": ["hours"]}, "features.0.parts.0: expected one of minute, hour, week"),
    ({"field": "f", "hash": 1}, "features.0.hash: expected a number of at least 2, found 1"),
    ({"field": "f", "hash": 3, "parts": ["day"]}, "features.0: expected one of categories, hash"),
    ({"field": "f", "other": True}, "features.0: expected other with categories only"),
    ({"field": "f", "encode": "index"}, "features.0: expected encode with categories or hash"),
    ({"field": "f", "timezone": "Asia/Tokyo"}, "features.0: expected timezone with parts only"),
    ({"parts": ["day"], "unit": "ms"}, "features.0: expected unit with parts and a field only"),
    ({"field": "f", "parts": ["day"], "timezone": "Mars"}, "features.0.timezone: expected a tim"),
    ({"field": "f", "categories": ["n", "n"]}, "features.0: expected each category once"),
    ({"field": "f", "nan": "drop"}, "features.0.nan: expected one of error, skip, impute, found"),
    ({"field": "f", "hash": 9, "encode": "index", "nan": "impute"}, "features.0: expected nan: e"),
    (3, "features.0: expected text, found 3"),
]


@pytest.mark.parametrize(("feature", "message"), WRONG)
def test_what_is_wrong_with_a_feature(feature: Any, message: str) -> None:
    with pytest.raises(GraphError) as caught:
        line(features=(feature,))
    assert str(caught.value).startswith(f"Model.{message}"), caught.value


def test_an_index_is_never_imputed() -> None:
    index = {"field": "f", "hash": 9, "encode": "index"}
    with pytest.raises(GraphError, match=r"features\.1: expected nan: error or skip for an index"):
        line(features=("x", index), nan="impute")
    assert line(features=("x", {**index, "nan": "skip"}), nan="impute").has_gaps("impute")


def test_the_width_of_the_network_is_checked(tmp_path: Path) -> None:
    def problems(width: int, *, only_scalars: bool, features: list[Any]) -> list[str]:
        made = line(features=tuple(features), network=({"Linear": [width, 1]},))
        return [str(one) for one in made.deep_problems(tmp_path, only_scalars=only_scalars)]

    assert problems(13, only_scalars=True, features=FEATURES) == []
    assert problems(14, only_scalars=False, features=FEATURES) == []  # b may be an array
    (found,) = problems(14, only_scalars=True, features=FEATURES)
    assert found == (
        "features: expected 14 features to fit Linear(in_features=14, out_features=1, bias=True), "
        "found 13 (region makes 3, sku makes 4, time makes 4); change the features or the first "
        "layer"
    )
    assert problems(4, only_scalars=False, features=[{"parts": ["hour"]}])  # for sure


def test_a_graph_with_features_survives_the_way_to_yaml_and_back(tmp_path: Path) -> None:
    graph = Graph(
        name="g",
        sources={"readings": MemorySource()},
        models={"m": line(features=tuple(FEATURES), nan="skip")},
        sinks={"s": MemorySink(inputs=("m",))},
    )
    text = graph.to_yaml()
    assert "- {field: sku, hash: 4, nan: skip}\n" in text
    (tmp_path / "graph.yaml").write_text(text)
    assert Graph.from_yaml(tmp_path / "graph.yaml") == graph


class Embedded(nn.Module):
    """Embeds the first feature, an index."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 3)
        self.out = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        embedded = self.embedding(x[:, 0].long())
        output: torch.Tensor = self.out(torch.cat([embedded, x[:, 1:]], dim=1))
        return output


def embedder(**options: Any) -> Any:
    index = {"field": "f", "categories": [*"abcdefgh"], "other": True, "encode": "index"}
    return line(network=f"{__name__}:Embedded", features=(index, "x"), **options)


def test_an_index_can_be_embedded() -> None:
    rows = [{"f": "abcdefghi"[i % 9], "x": 0.0, "y": float(i % 9)} for i in range(900)]
    outcome = run(embedder(optimizer={"Adam": {"lr": 0.05}}), rows)
    late = outcome.records[-9:]
    assert [round(record.value["prediction"]) for record in late] == list(range(9))


def test_made_up_inputs_have_indices_that_there_are(tmp_path: Path) -> None:
    made = embedder()
    inputs = random_inputs(made, build_network(made, tmp_path), count=200)
    assert inputs.shape == (200, 2)
    assert set(inputs[:, 0].tolist()) == set(range(9))
    assert inputs[:, 1].std() > 0.5
