"""What a plan shows, on a plan of made-up figures."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from streamflow.pipeline.planning.costs import Cost
from streamflow.pipeline.planning.plan import (
    Plan,
    PlannedLayer,
    PlannedStage,
    Tried,
    seconds,
    size,
)

STAGES = (
    PlannedStage(
        (
            PlannedLayer("encoder", Cost(1e-4, 2e-4, 1e-4), 4096, 256),
            PlannedLayer("norm<1>", Cost(0.0, 1e-4, 0.0), 0, 256),
        ),
        lag=1,
        device="cpu",
        cost=Cost(2e-4, 4e-4, 1e-4),
        memory_bytes=8192,
    ),
    PlannedStage(
        (PlannedLayer("head", Cost(1e-4, 2e-4, 1e-4), 40, 4),),
        lag=0,
        device="cpu",
        cost=Cost(1e-4, 2e-4, 1e-4),
        memory_bytes=100,
    ),
)
PLAN = Plan(
    stages=STAGES,
    cuts=("head",),
    schedule="1f1b",
    backward="own",
    executor="threads",
    rate=1000.0,
    wanted=1500.0,
    latency=3e-4,
    loaded_latency=1.2e-3,
    call=5e-5,
    limit="stage 0",
    tried=(Tried(1, "inline", 900.0), Tried(2, "threads", 1000.0)),
)


def test_the_table_tells_all_there_is_in_100_columns() -> None:
    lines = str(PLAN).splitlines()
    assert lines[:4] == [
        "2 stages, threads, 1f1b, own: 1,000 samples/s of 1,500 wanted",
        "limited by stage 0",
        "latency 300 µs unloaded, 1.2 ms while samples wait; a call adds 50 µs",
        "measured, samples/s by stages: 1 inline 900, 2 threads 1,000",
    ]
    told = replace(PLAN, learning="eager: no C++ compiler; apt install g++").table().splitlines()
    assert told[3] == (
        "figures of eager learning; now it is eager: no C++ compiler; apt install g++"
    )
    cells = [line.split() for line in lines[6:]]
    assert cells[0][:8] == ["0", "cpu,", "lag", "1,", "8", "KiB", "200", "µs"]
    assert cells[0][-1] == "70%"
    assert " ".join(cells[1]) == "encoder 100 µs 200 µs 100 µs 400 µs 4 KiB 256 B"
    assert " ".join(cells[3]) == "the stage itself 200 µs"
    assert cells[4][0] == "1"
    assert max(map(len, lines)) <= 100


def test_a_long_name_keeps_its_end_and_the_columns() -> None:
    long = replace(STAGES[1].layers[0], name="encoder.layers.11.self_attention.output.projection")
    stages = (STAGES[0], replace(STAGES[1], layers=(long,)))
    before, after = str(PLAN).splitlines(), str(replace(PLAN, stages=stages)).splitlines()
    (line,) = (line for line in after if "projection" in line)
    assert line.split()[0].startswith("…")
    assert line[36:] == before[after.index(line)][36:]


def test_the_picture_has_a_bar_of_its_length_for_every_layer() -> None:
    root = ElementTree.fromstring(PLAN.svg())
    space = "{http://www.w3.org/2000/svg}"
    bars = root.findall(f"{space}rect")
    titles = [bar.findtext(f"{space}title") for bar in bars]
    assert titles == [
        "encoder: 400 µs",
        "norm<1>: 100 µs",
        "the stage itself: 200 µs",
        "head: 400 µs",
        "the stage itself: 0 µs",
    ]
    widths = [float(bar.attrib["width"]) for bar in bars]
    assert widths[0] == pytest.approx(4 * widths[1], rel=0.01)
    assert widths[0] == widths[3]
    starts = [float(bar.attrib["x"]) for bar in bars]
    assert starts[1:3] == pytest.approx([starts[0] + widths[0], starts[1] + widths[1]], abs=0.2)
    assert starts[3] == starts[0]
    assert bars[0].attrib["y"] != bars[3].attrib["y"]


def test_the_data_are_plain() -> None:
    data = json.loads(json.dumps(PLAN.to_dict()))
    assert (data["rate"], data["wanted"], data["is_fast_enough"]) == (1000.0, 1500.0, False)
    assert data["cuts"] == ["head"]
    assert [stage["lag"] for stage in data["stages"]] == [1, 0]
    assert [stage["busy"] for stage in data["stages"]] == [pytest.approx(0.7), pytest.approx(0.4)]
    assert data["stages"][0]["layers"][0]["cost"]["backward"] == 2e-4
    assert data["tried"][0] == {"num_stages": 1, "executor": "inline", "rate": 900.0}


def test_a_plan_is_fast_enough_where_it_reaches_what_was_wanted_or_nothing_was() -> None:
    assert not PLAN.is_fast_enough
    assert replace(PLAN, wanted=1000.0).is_fast_enough
    assert replace(PLAN, wanted=None).is_fast_enough
    assert "wanted" not in str(replace(PLAN, wanted=None))


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0 µs"), (1.5e-6, "1.5 µs"), (9.996e-4, "1 ms"), (0.0123, "12.3 ms"), (2.5, "2.5 s")],
)
def test_seconds_have_a_unit(value: float, shown: str) -> None:
    assert seconds(value) == shown


@pytest.mark.parametrize(
    ("count_bytes", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "0.977 KiB"), (5 * 2**20, "5 MiB"), (2**52, "4.1e+03 TiB")],
)
def test_sizes_have_a_unit(count_bytes: int, shown: str) -> None:
    assert size(count_bytes) == shown
