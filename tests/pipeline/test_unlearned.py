"""Samples that are not learned, between and beside those that compiled code learns."""

from typing import Any

import pytest
import torch
from torch import nn

from streamflow.pipeline.admission import AdmittedBatch
from streamflow.pipeline.native.native import Native
from streamflow.pipeline.routing import compiled
from streamflow.pipeline.stages.recurrence import Key
from tests.pipeline.networks import chain, stream
from tests.pipeline.test_compiled import both, in_calls
from tests.pipeline.test_states import KEYS, recurrent
from tests.pipeline.test_states import STATE as RECURRENT

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("cache")]


@pytest.fixture
def flags(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Of each call of compiled code, which of its samples are learned."""
    found: list[bytes] = []
    run = Native.run

    def watched(self: Native, work: Any, rows: Any, **options: Any) -> Any:
        found.append(rows.is_learned)
        return run(self, work, rows, **options)

    monkeypatch.setattr(Native, "run", watched)
    return found


def net() -> nn.Sequential:
    return chain(["linear", "tanh", "scale", "linear"], 0)


def with_learn(calls: list[dict[str, Any]], learn: list[bool]) -> list[dict[str, Any]]:
    first = 0
    for call in calls:
        stop = first + len(call["inputs"])
        call["learn"], first = torch.tensor(learn[first:stop]), stop
    return calls


def test_they_run_in_the_same_call(flags: list[bytes]) -> None:
    inputs, targets = stream(60, seed=1)
    learn = [n % 3 == 0 for n in range(60)]
    both(net(), *with_learn(in_calls(inputs, targets, 30), learn))
    assert flags[-1] == bytes(learn[30:])


def test_a_call_of_them_alone_takes_any_targets(flags: list[bytes]) -> None:
    inputs, targets = stream(60, seed=2)
    quiet = {"inputs": inputs[:5]}
    wide = {"inputs": inputs[:5], "targets": targets[:5].repeat(1, 2), "learn": torch.zeros(5) > 0}
    both(net(), *in_calls(inputs, targets, 30), quiet, wide, *in_calls(inputs, targets, 20))
    assert flags.count(bytes(5)) == 2


def test_many_in_a_row_share_a_forward(flags: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_CHANGE", 0)  # four are many
    inputs, targets = stream(60, seed=3)
    learn = [n not in range(40, 44) and n not in range(50, 53) for n in range(60)]
    plain = chain(["linear", "tanh", "linear"], 0)
    both(plain, *with_learn(in_calls(inputs, targets, 30), learn), {"inputs": inputs[:9]})
    assert flags[-2:] == [bytes(learn[30:40]), bytes(learn[44:])]


def test_they_move_recurrent_states_in_compiled_code(flags: list[bytes]) -> None:
    count = 2 * len(KEYS)
    inputs, targets = stream(count, seed=4)
    call: dict[str, Any] = {"inputs": inputs, "targets": targets, "keys": KEYS * 2}
    quiet = {"inputs": inputs, "keys": KEYS * 2}
    both(recurrent(), call, quiet, call, state=RECURRENT, max_keys=2)
    assert any(set(learned) == {0} for learned in flags)


class Averaged(nn.Module):
    """Subtracts a running mean, which every forward moves."""

    mean: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, 3, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.mean = self.mean * 0.9 + x.detach() * 0.1
        return x - self.mean


def test_they_move_buffers_in_compiled_code(flags: list[bytes]) -> None:
    inputs, targets = stream(60, seed=5)
    averaged = nn.Sequential(Averaged(), *chain(["linear"], 0))
    quiet = {"inputs": inputs[:9]}
    both(averaged, *in_calls(inputs, targets, 30), quiet, *in_calls(inputs, targets, 30))
    assert bytes(9) in flags


def test_code_is_tried_on_samples_that_are_learned(flags: list[bytes]) -> None:
    inputs, targets = stream(60, seed=6)
    learn = [n < 1 or n > 28 for n in range(60)]
    both(net(), *with_learn(in_calls(inputs, targets, 1, 5), learn))
    assert flags[0] == bytes(learn[29:39])


def test_how_far_a_call_goes() -> None:
    rows = torch.zeros(40, 1)
    learned = [n not in (3, 4, 10, 11, 12, 13) for n in range(40)]
    keys: list[Key] = ["a" if n < 6 else "b" for n in range(40)]
    batch = AdmittedBatch(rows, rows, None, learned, keys)
    places = (0, 3, 5, 6, 10, 11, 38)
    assert [batch.run_length(place, 256, None) for place in places] == [6, 3, 1, 34, 30, 29, 2]
    assert [batch.run_length(place, 256, 4) for place in places] == [6, 3, 1, 4, 0, 29, 2]
    assert [batch.run_length(place, 256, 2) for place in places] == [3, 0, 1, 4, 0, 0, 2]
    assert [batch.count_quiet(place) for place in places] == [0, 2, 0, 0, 4, 3, 0]
    quiet = AdmittedBatch(rows, None, None, [False] * 40, keys)
    assert quiet.count_quiet(3) == 37
