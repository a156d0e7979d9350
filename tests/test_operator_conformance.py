"""The check of operators itself: it lets pass what goes on exactly, and finds what does not."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import pytest
import torch

from streamflow.contracts import Context, Processed
from streamflow.nodes import Operator
from streamflow.operators.step import Step
from streamflow.records import Batch, Record, split_rejected
from streamflow.testing import check_operator

VALUES = [1.0, 0.1, None, -0.0, Record(3.0, key="k", timestamp_ms=5), 2.5, float("inf")]


class Sums(Step):
    """Adds up numbers, and rejects what is none."""

    def __init__(self) -> None:
        self.total = np.zeros(1)

    def process(self, batch: Batch) -> Processed:
        rows = batch.rows()
        good, rejected = split_rejected(
            batch, {i: "no number" for i, row in enumerate(rows) if row is None}
        )
        sums: list[Any] = []
        for value in good.rows():
            self.total += value
            sums.append(self.total.copy())
        return Processed(good.with_values(sums), rejected)

    def state(self) -> dict[str, Any]:
        return {"total": self.total.copy()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.total = state["total"].copy()


class Forgets(Sums):
    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        pass


class Rounds(Sums):
    def state(self) -> dict[str, Any]:
        return {"total": np.float32(self.total).astype(float)}


class Lends(Sums):
    def state(self) -> dict[str, Any]:
        return {"total": self.total}


class Keeps(Sums):
    def restore(self, state: Mapping[str, Any]) -> None:
        self.total = state["total"]


class Restless(Sums):
    def state(self) -> dict[str, Any]:
        self.total = self.total + 1
        return super().state()


class Holds(Step):
    """Passes records on, and has anything as its state."""

    content: Any = None

    def process(self, batch: Batch) -> Processed:
        return Processed(batch)

    def state(self) -> dict[str, Any]:
        return {"parts": [{"odd": self.content}]}


class Hesitates(Sums):
    """Knows what was restored only once there are records again."""

    has_records = False

    def process(self, batch: Batch) -> Processed:
        self.has_records = True
        return super().process(batch)

    def state(self) -> dict[str, Any]:
        return super().state() if self.has_records else {"total": np.zeros(1)}


class LosesTheEnd(Sums):
    """Goes on exactly, until its inputs end."""

    def __init__(self) -> None:
        super().__init__()
        self.last: Batch | None = None

    def process(self, batch: Batch) -> Processed:
        self.last = batch
        return super().process(batch)

    def end(self) -> Processed:
        return Processed(self.last)


class Made(Operator):
    type: Literal["made"] = "made"
    step: Callable[[], Any]

    @contextmanager
    def open(self, context: Context) -> Iterator[Any]:
        yield self.step()


def check(step: Callable[[], Any], **options: Any) -> None:
    check_operator(lambda: Made(inputs=("readings",), step=step), VALUES, **options)


def test_a_sum_goes_on() -> None:
    check(Sums)


@pytest.mark.parametrize(
    ("step", "complaint"),
    [
        (Forgets, r"after 1 of 7 records: expected .* with the state restored"),
        (Rounds, r"after 2 of 7 records: expected .* with the state restored"),
        (Lends, r"after 0 of 7 records: expected a copy, found a state that changes"),
        (Keeps, r"after 0 of 7 records: expected restore to leave the state alone"),
        (Restless, r"after 0 of 7 records: expected an equal state when asked again"),
        (Hesitates, r"after 1 of 7 records: expected the restored state, found another one"),
        (LosesTheEnd, r"after 7 of 7 records: expected .* with the state restored"),
    ],
)
def test_the_check_finds(step: Callable[[], Any], complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        check(step)


@pytest.mark.parametrize(
    "content",
    [
        {1: "one"},
        {1, 2},
        np.array([None]),
        Counter("ab"),
        torch.eye(2).to_sparse(),
        Sums,
    ],
)
def test_the_check_finds_what_no_state_may_hold(content: Any) -> None:
    step = type("HoldsIt", (Holds,), {"content": content})
    with pytest.raises(AssertionError, match=r"state\.parts\.0\.odd: expected .*, found"):
        check(step)


@pytest.mark.parametrize(
    "content",
    [
        (1, [2.5, (None, True)], {"a": b"\xff\x00", "": "ü\ud800"}),
        [float("inf"), -0.0, 2**80, 5e-324],
        [np.zeros((0, 3), np.int8), np.array(1.5), np.array([1, 2], ">i2")],
        [torch.zeros(2, 0), torch.tensor(True), torch.ones(2, 3, dtype=torch.bfloat16).T],
        [torch.tensor([1 + 2j]), torch.tensor(-7)],
    ],
)
def test_whatever_a_state_may_hold_comes_back(content: Any) -> None:
    came: list[Any] = []

    class HoldsIt(Holds):
        def restore(self, state: Mapping[str, Any]) -> None:
            came.append(state["parts"][0]["odd"])

    HoldsIt.content = content
    check(HoldsIt, cuts=[3])
    assert repr(came) == repr([content])


def test_places_to_look_at_can_be_chosen() -> None:
    check(Forgets, cuts=[0])
