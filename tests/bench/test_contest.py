import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from streamflow.bench import Result, Settings, bench_model
from streamflow.bench.results import Row
from streamflow.errors import OptionError
from streamflow.models.model import Model

SHORT: dict[str, Any] = {"rounds": 2, "seconds": 0.01}
LAYERS = ({"Linear": [3, 4]}, "Tanh", {"Linear": [4, 4]}, "Tanh", {"Linear": [4, 1]})


def model(**options: Any) -> Model:
    declared: dict[str, Any] = {
        "inputs": ["in"],
        "network": LAYERS,
        "features": "x",
        "target": "y",
    }
    return Model(**declared | options)


def bench(declared: Model, *ways: str) -> tuple[Result, dict[str, Row], list[tuple[str, int, int]]]:
    steps: list[tuple[str, int, int]] = []
    settings = Settings(ways=ways, **SHORT)
    result = bench_model(declared, Path(), settings, lambda *step: steps.append(step))
    assert not multiprocessing.active_children()
    return result, {row.way.name: row for row in result.rows}, steps


@pytest.mark.slow
def test_every_way_is_measured_in_every_round() -> None:
    result, rows, steps = bench(model(), "eager", "inline-2", "threads-2")
    assert not any(row.failure for row in rows.values())
    assert {len(row.rounds) for row in rows.values()} == {2}
    assert (result.shape, result.num_parameters, result.num_layers) == ((3,), 41, 5)
    assert result.samples_per_call in {2**power for power in range(9)}
    assert [done for _, done, _ in steps] == list(range(len(rows) * 3))
    assert {total for _, _, total in steps} == {len(rows) * 3}
    names = list(rows)
    assert [step[0] for step in steps] == [
        *(f"preparing {name}" for name in names),
        *(f"round {number} of 2, {name}" for number in (1, 2) for name in names),
    ]
    assert rows["inline-2"].cuts == rows["threads-2"].cuts != ()
    assert rows["eager"].learning == "eager: compile is False"


@pytest.mark.slow
def test_a_process_that_ends_is_told_and_the_others_go_on() -> None:
    deadly = model(network="tests.bench.networks:deadly", stages=["1"])
    _, rows, _ = bench(deadly, "inline-2", "threads-2")
    assert rows["threads-2"].failure == "its process ended by SIGKILL: the end is near"
    assert (rows["threads-2"].cuts, rows["threads-2"].rounds) == (("1",), [])
    assert all(len(row.rounds) == 2 for name, row in rows.items() if name != "threads-2")


@pytest.mark.slow
def test_named_cuts_are_kept() -> None:
    wide = ({"Linear": [3, 512]}, {"Linear": [512, 512]}, "Tanh", {"Linear": [512, 1]})
    _, rows, _ = bench(model(network=wide, stages=["3"]), "inline-2")
    assert rows["inline-2"].cuts == ("3",)


@pytest.mark.slow
def test_what_does_not_go_with_a_number_of_stages_is_told_and_the_others_go_on() -> None:
    declared = model(optimizer=["SGD", "Adam"], stages=2)
    result, rows, _ = bench(declared, "eager", "inline-2")
    assert "optimizer: expected one per stage, 1, got 2" in rows["eager"].failure
    assert "optimizer: expected one per stage, 1, got 2" in rows["loop-1"].failure
    assert len(rows["inline-2"].rounds) == 2
    assert (result.best_loop, result.ratio(rows["inline-2"])) == (None, None)


def test_a_declaration_must_go_to_other_processes() -> None:
    with pytest.raises(OptionError, match="other processes can import"):
        bench(model(network=lambda: None))
