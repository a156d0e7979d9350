"""Records that wait, as columns, against the same in deques."""

from collections import OrderedDict, deque
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamflow.models.waiting_samples import WaitingSample, WaitingSamples
from tests.state_trees import pack, unpack

KEYS = st.sampled_from([None, "a", "b", 7, 7.5, b"c"])
STEPS = st.lists(st.tuples(st.sampled_from(["push", "push", "pop", "drop", "restore"]), KEYS))


def record(number: int) -> WaitingSample:
    return WaitingSample(
        torch.full((1, 2), float(number)), {"prediction": [number]}, f"before {number}"
    )


def told(held: WaitingSample) -> tuple[Any, ...]:
    return held.inputs.tolist(), held.predicted, held.previous


@given(STEPS)
@settings(deadline=None)
def test_records_come_back_in_order_of_their_key(steps: list[tuple[str, Any]]) -> None:
    holding = WaitingSamples()
    expected: OrderedDict[Any, tuple[deque[Any], list[Any]]] = OrderedDict()
    for number, (step, key) in enumerate(steps):
        if step == "restore":
            state = pack(holding.state())
            holding = WaitingSamples.restored(unpack(state))
            assert pack(holding.state()) == state
        elif step == "drop":
            if expected:
                assert holding.drop_oldest() == len(expected.popitem(last=False)[1][0])
        else:
            row = holding.row_of(key)
            waiting, newest = expected.setdefault(key, (deque(), [None]))
            expected.move_to_end(key)
            assert holding.newest(row) == newest[0]
            if step == "push":
                holding.push(row, record(number))
                waiting.append(told(record(number)))
                holding.set_newest(row, number)
                newest[0] = number
            elif waiting:
                assert told(holding.pop(row)) == waiting.popleft()
            assert holding.count(row) == len(waiting)
        assert holding.num_keys == len(expected)
        assert len(holding) == sum(len(waiting) for waiting, _ in expected.values())


def test_slots_and_rows_are_used_again() -> None:
    holding = WaitingSamples()
    for number in range(1000):
        holding.push(holding.row_of(number), record(number))
        if holding.num_keys > 3:
            assert holding.drop_oldest() == 1
    assert len(holding.state()["previous"]) == len(holding.state()["newest"]) == 4


def test_a_state_is_a_copy_and_columns_alone() -> None:
    holding = WaitingSamples()
    for number in range(100):
        holding.push(holding.row_of(number % 10), record(number))
    state = holding.state()
    packed = pack(state)
    assert len(packed.tensors) == 8  # one for each column of numbers, whatever is held
    for number in range(50):
        holding.pop(holding.row_of(number % 10))
    assert pack(state) == packed


def test_a_record_that_is_taken_out_is_the_callers() -> None:
    holding = WaitingSamples()
    row = holding.row_of(None)
    holding.push(row, record(1))
    held = holding.pop(row)
    holding.push(row, record(2))
    assert told(held) == told(record(1))
