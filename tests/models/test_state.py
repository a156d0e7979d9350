"""A restored model goes on to the last bit: outputs, dead letters, reports and weights."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from random import Random
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from streamflow.contracts import Context, Processor
from streamflow.models import forecaster
from streamflow.models.model import Model
from streamflow.records import Record
from streamflow.testing import check_operator
from tests.models.streams import Outcome, batch_of, line, model, numbers, readings, run
from tests.state_trees import pack, unpack

KEYS: Sequence[Any] = ("a", b"a", "", 7, 7.5, True, None, -1, 2**70)
COUNT = 30


class Recurrent(nn.Module):
    """Carries a state from sample to sample, and learns."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(5, 3)
        self.out = nn.Linear(3, 2)
        self.register_buffer("memory", torch.zeros(1, 3))
        self.memory: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.memory = self.cell(x, self.memory)
        output: torch.Tensor = self.out(self.memory)
        return output


class Mean(nn.Module):
    """A layer that takes samples of any length."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=1, keepdim=True)


def output_size(output: torch.Tensor) -> torch.Tensor:
    return output.square().mean()


def named(**options: Any) -> list[dict[str, Any]]:
    words = ("no", "yes")
    return [{**row, "class": words[row["class"]], **options} for row in readings(COUNT)]


def pairs() -> list[dict[str, Any]]:
    return [{"x": row["x"], "y": [row["y"], -row["x"]]} for row in numbers(COUNT)]


def other_types() -> list[dict[str, Any]]:
    """Return records whose targets are numbers of several types."""
    kinds: list[Callable[[float], Any]] = [np.float32, lambda y: [y], np.array, int, torch.tensor]
    return [{**row, "y": kinds[i % 5](row["y"])} for i, row in enumerate(numbers(COUNT))]


class Stream(NamedTuple):
    """A model, what it is given, and whether the records have keys."""

    declared: Model
    rows: Callable[[], list[Any]]
    has_keys: bool = False


DEEP = (
    {"Linear": [5, 8]},
    "Tanh",
    {"Dropout": 0.3},
    {"Linear": [8, 8]},
    "Tanh",
    {"Linear": [8, 2]},
)
WORDS = {"classes": ("no", "yes")}
ADAM = {"Adam": {"lr": 0.02}}
FORECAST = {"horizon": 3, "network": ({"Linear": [1, 4]}, "Tanh", {"Linear": [4, 1]})}


def plain() -> list[Any]:
    return readings(COUNT)


def few() -> list[Any]:
    return numbers(COUNT)


STREAMS = {
    "regression": Stream(line(optimizer={"SGD": {"lr": 0.01, "momentum": 0.9}}), few),
    "several outputs": Stream(line(network=({"Linear": [1, 2]},)), pairs),
    "binary": Stream(
        model(network=({"Linear": [5, 1]},), loss="binary_cross_entropy_with_logits"), plain
    ),
    "classification": Stream(model(network=DEEP, optimizer=ADAM, window=7), plain),
    "labels": Stream(model(**WORDS, window=1000), named, has_keys=True),
    "no loss of a target": Stream(
        model(target=None, loss="tests.models.test_state:output_size", task="regression"), plain
    ),
    "no learning": Stream(model(learn=False), plain),
    "standardized": Stream(line(standardize_target=True, optimizer=ADAM), few),
    "carry": Stream(model(carry=("a", "note")), lambda: named(note="x"), has_keys=True),
    "stages": Stream(model(network=DEEP, stages=("2", "4"), optimizer=ADAM), plain),
    "stashed": Stream(model(network=DEEP, stages=("3",), backward="stashed"), plain),
    "threads": Stream(model(network=DEEP, stages=("3",), executor="threads"), plain),
    "newest": Stream(
        model(network=DEEP, stages=("3",), schedule="lockstep", backward="newest"), plain
    ),
    "accumulated": Stream(
        model(network=DEEP, accumulate=4, clip_norm=0.5, stages=("3",), optimizer=ADAM), plain
    ),
    "milestones": Stream(
        model(scheduler={"MultiStepLR": {"milestones": [3, 9, 20], "gamma": 0.5}}), plain
    ),
    "one cycle": Stream(
        model(scheduler={"OneCycleLR": {"max_lr": 0.1, "total_steps": 99}}, optimizer=ADAM), plain
    ),
    "recurrent": Stream(
        model(network="tests.models.test_state:Recurrent", state=("memory",)), plain, has_keys=True
    ),
    "forgotten": Stream(
        model(network="tests.models.test_state:Recurrent", state=("memory",), max_keys=2),
        plain,
        has_keys=True,
    ),
    "recurrent field": Stream(
        model(network="tests.models.test_state:Recurrent", state=("memory",), keys="class"), plain
    ),
    "forecast": Stream(line(**FORECAST, optimizer=ADAM), few, has_keys=True),
    "forecast without keys": Stream(line(**FORECAST, learn=False), few),
    "forecast standardized": Stream(
        line(**FORECAST, standardize_target=True, stages=("2",)), few, has_keys=True
    ),
    "forecast labels": Stream(
        model(network=DEEP, horizon=1, stages=("2", "4"), **WORDS), named, has_keys=True
    ),
    "forecast other types": Stream(line(**FORECAST, standardize_target=True), other_types),
    "forecast text of numpy": Stream(
        model(horizon=1, **WORDS),
        lambda: [{**row, "class": np.str_(row["class"])} for row in named()],
        has_keys=True,
    ),
    "forecast several": Stream(line(network=({"Linear": [1, 2]},), horizon=2), pairs),
}


def spoil(rows: list[Any], source: Random) -> list[Any]:
    """Return records some of which lack a target, or go to the dead letters."""
    target = "class" if "class" in rows[0] else "y"
    feature = "a" if "class" in rows[0] else "x"
    changes: list[Any] = [{target: None}, {feature: "warm"}, {feature: None}, {target: "neither"}]
    return [{**row, **source.choice(changes)} if source.random() < 0.2 else row for row in rows]


def take(processor: Processor, rows: list[Any], start: int, keys: Any) -> Outcome:
    """Return what becomes of records, and the report after them."""
    outcome = Outcome()
    if rows:
        outcome.take(processor.process(batch_of(rows, start, keys)))
    outcome.report = dict(processor.report())
    return outcome


def told(outcome: Outcome) -> str:
    """Return an outcome as text that tells every bit of a number.

    How many gradients are in flight at this moment is up to the threads, and not part of it.
    """
    report = {**outcome.report, "updates": None, "skipped": None}
    return repr((outcome.records, outcome.causes, report))


def goes_on(
    declared: Model, rows: list[Any], cuts: Sequence[int], keys: Sequence[Any] | None = None
) -> None:
    """Compare a model with another one that is restored from it at the first cut."""
    places = [*cuts, len(rows)]
    context = Context("model")
    with declared.open(context) as whole, declared.open(context) as resumed:
        take(whole, rows[: cuts[0]], 0, keys and keys[: cuts[0]])
        state = whole.state()
        packed = pack(state)
        given = unpack(packed)
        resumed.restore(given)
        assert repr(resumed.report()) == repr(whole.report())
        for start, stop in pairwise(places):
            part = keys and keys[start:stop]
            found = take(resumed, rows[start:stop], start, part)
            assert told(found) == told(take(whole, rows[start:stop], start, part))
        assert pack(state) == packed  # a copy
        assert pack(given) == packed  # and copied
        assert pack(resumed.state()) == pack(whole.state())
        assert repr(resumed.end()) == repr(whole.end())
        assert repr(resumed.report()) == repr(whole.report())


@pytest.mark.parametrize("name", sorted(STREAMS))
@settings(max_examples=6, deadline=None)
@given(
    cuts=st.lists(st.integers(0, COUNT), min_size=1, max_size=3).map(sorted),
    seed=st.integers(0, 1000),
)
def test_a_restored_model_goes_on(name: str, cuts: list[int], seed: int) -> None:
    declared, make_rows, has_keys = STREAMS[name]
    source = Random(seed)
    rows = spoil(make_rows(), source)
    keys = source.choices(KEYS, k=len(rows)) if has_keys else None
    goes_on(declared, rows, cuts, keys)


@pytest.mark.parametrize("cut", range(0, COUNT, 4))
def test_the_order_in_which_held_keys_are_dropped_goes_on(
    monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    monkeypatch.setattr(forecaster, "MOST_KEYS", 3)
    source = Random(cut)
    keys = source.choices(KEYS[:5], k=COUNT)
    goes_on(line(horizon=2), numbers(COUNT), [cut, COUNT - 1], keys)
    report = run(line(horizon=2), numbers(COUNT), keys=keys).report
    assert report["dropped"]


def test_a_restored_model_does_not_depend_on_its_first_record() -> None:
    """The shape of features and targets is known, so what has another one is refused."""
    declared = line(network=("tests.models.test_state:Mean", {"Linear": [1, 1]}), features="x")
    good, bad = {"x": [1.0, 2.0], "y": 1.0}, {"x": [1.0, 2.0, 3.0], "y": 1.0}
    goes_on(declared, [good, bad, good], [1])
    with declared.open(Context("model")) as first, declared.open(Context("model")) as second:
        take(first, [good], 0, None)
        second.restore(first.state())
        found = take(second, [bad], 1, None)
    assert found.causes == {1: "expected features of shape [2], found [3]"}


@pytest.mark.slow
def test_measured_cuts_are_not_measured_again() -> None:
    """Where the network is cut is part of the result: dropout has its own numbers per stage."""
    goes_on(model(network=DEEP, stages=3), readings(COUNT), [5, 12])


def test_a_cut_without_a_drain_would_be_another_result() -> None:
    """The pipeline of two stages still holds a gradient at the cut, which its state applies."""
    rows = readings(COUNT)
    with STREAMS["stages"].declared.open(Context("model")) as processor:
        take(processor, rows[:10], 0, None)
        before = processor.report()["updates"]
        processor.state()
        assert processor.report()["updates"] != before


LAZY = ({"LazyLinear": [8]}, "LazyBatchNorm1d", "ReLU", {"LazyLinear": [2]})


@pytest.mark.parametrize("optimizer", [{"SGD": {"lr": 0.05}}, ADAM])
def test_a_network_without_a_shape_is_saved_as_such(optimizer: Any) -> None:
    declared = model(network=LAZY[:1] + LAZY[2:], optimizer=optimizer)
    rows = readings(COUNT)
    with declared.open(Context("model")) as processor:
        saved = unpack(pack(processor.state()))
    results = []
    for _ in range(2):
        with declared.open(Context("model")) as processor:
            processor.restore(unpack(pack(saved)))
            assert pack(processor.state()) == pack(saved)
            torch.manual_seed(3)  # a lazy layer draws from torch's own generator
            results.append(told(take(processor, rows, 0, None)))
            later = unpack(pack(processor.state()))
    with declared.open(Context("model")) as processor:
        torch.manual_seed(3)
        assert [told(take(processor, rows, 0, None))] * 2 == results
        assert pack(processor.state()) == pack(later)
        with declared.open(Context("model")) as resumed:
            resumed.restore(later)  # with shapes, into one without
            more = take(resumed, rows, COUNT, None)
        assert told(more) == told(take(processor, rows, COUNT, None))


def test_buffers_without_a_shape_are_saved_as_such() -> None:
    declared = model(network=LAZY)
    with (
        declared.open(Context("model")) as first,
        declared.open(Context("model")) as second,
    ):
        second.restore(unpack(pack(first.state())))
        assert pack(second.state()) == pack(first.state())
        assert pack(first.state())


@pytest.mark.parametrize("name", ["classification", "forecast", "milestones", "recurrent"])
def test_models_pass_the_public_check(name: str) -> None:
    declared, make_rows, has_keys = STREAMS[name]
    rows = spoil(make_rows(), Random(5))
    values = [Record(row, key=KEYS[i % 4] if has_keys else None) for i, row in enumerate(rows)]
    check_operator(lambda: declared, values, cuts=[0, 1, 13, COUNT])
