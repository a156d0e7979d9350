import subprocess
import sys

import pytest

from streamflow.bench import memory
from streamflow.bench.clock import measure, power_below, settle
from streamflow.bench.contestants import Contestant
from streamflow.bench.samples import Waiting
from tests.bench.test_contestants import samples


class Counting(Contestant):
    """Learns nothing, and takes note of what it is asked for."""

    def __init__(self, waiting: Waiting) -> None:
        super().__init__(waiting)
        self.calls: list[int] = []

    @property
    def learning(self) -> str:
        return "not at all"

    def finish(self) -> None:
        self.calls.append(0)

    def _learn(self, first: int, stop: int) -> None:
        self.calls.append(stop - first)


@pytest.mark.parametrize(
    ("wanted", "most", "found"), [(0.3, 256, 1), (7.9, 256, 4), (8.0, 256, 8), (1e9, 100, 64)]
)
def test_calls_have_a_power_of_two_samples(wanted: float, most: int, found: int) -> None:
    assert power_below(wanted, most) == found


def test_all_kinds_of_calls_are_made_before_anything_counts() -> None:
    contestant = Counting(samples())
    assert settle(contestant, 4, most=8, seconds=1.0) == 4
    assert contestant.calls == [4, 4, 4, 4, 4, 1, 0]
    quick = Counting(samples())
    assert settle(quick, None, most=8, seconds=1e9) == 8
    assert set(quick.calls) == {0, 1, 8}


def test_a_round_counts_what_was_learned() -> None:
    contestant = Counting(samples())
    found = measure(contestant, 4, seconds=1e-9, memory=0)
    assert (found.num_samples, found.num_singles) == (4, 10)  # the fewest, in no time
    assert contestant.calls == [4, 0, 4, 0, *[1] * 10, 0]
    assert found.rate > 0
    assert 0 < found.latency_p50 <= found.latency_p99
    assert found.learning == "not at all"


PEAK = """\
import runpy, sys
peak = runpy.run_path(sys.argv[1])["peak_bytes"]
before = peak()
held = b"1" * 2**27
assert 2**27 - 2**20 <= peak() - before <= 2**27 + 2**22, (before, peak())
del held
assert peak() - before >= 2**27 - 2**20
"""


def test_memory_is_what_was_needed_at_most() -> None:
    subprocess.run([sys.executable, "-c", PEAK, memory.__file__], check=True)
