"""How long a contestant takes: for samples that wait, and for one after the other by itself."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import quantiles

import torch

from streamflow.bench.contestants import Contestant
from streamflow.bench.memory import peak_bytes

# Part of a round that goes to single samples.
_SINGLES = 1 / 3
_FEWEST_SINGLES = 10
# Calls before anything counts: code is compiled and tried, stages start their threads.
_SETTLING_CALLS = 5
# Part of a round that a call of waiting samples may take.
_CALL = 1 / 8


@dataclass(frozen=True, slots=True)
class Round:
    """One repetition of a way; times in seconds.

    Attributes:
        rate: Samples per second that were predicted and learned, several waiting for each call.
        latency_p50: Median time of calls with one sample, one right after the other.
        latency_p99: What 99 of 100 of them do not exceed.
        num_samples: Samples behind the rate.
        num_singles: Calls behind the latencies.
        memory_bytes: Growth of the most memory that the process had at a time, since before the
            network was built.
        learning: How samples were learned in the end.
    """

    rate: float
    latency_p50: float
    latency_p99: float
    num_samples: int
    num_singles: int
    memory_bytes: int
    learning: str


def settle(contestant: Contestant, count: int | None, *, most: int, seconds: float) -> int:
    """Learn until everything is allocated, compiled and running.

    Args:
        contestant: What learns.
        count: Samples of a call, None to find out how many do not take long.
        most: The most there may be.
        seconds: How long a round is to take.

    Returns:
        How many samples a call has.
    """
    if count is None:
        contestant.take(1)
        count = power_below(seconds * _CALL / _seconds(contestant, 1), most)
    for _ in range(_SETTLING_CALLS):
        contestant.take(count)
    contestant.take(1)
    contestant.finish()
    return count


def power_below(wanted: float, most: int) -> int:
    """Return the largest power of two up to ``wanted`` and ``most``, at least 1."""
    return 1 << max(int(min(wanted, most)), 1).bit_length() - 1


def measure(contestant: Contestant, count: int, *, seconds: float, memory: int) -> Round:
    """Learn for about so many seconds, longer where the network is slow.

    Args:
        contestant: What learns, settled.
        count: Samples of a call.
        seconds: How long.
        memory: Peak of the process before the network was built, in bytes.
    """
    contestant.take(count)  # what ran before has taken the caches
    contestant.finish()
    rate, num_samples = _rate(contestant, count, seconds * (1 - _SINGLES))
    singles = _singles(contestant, seconds * _SINGLES)
    percentiles = quantiles(singles, n=100, method="inclusive")
    return Round(
        rate=rate,
        latency_p50=percentiles[49],
        latency_p99=percentiles[98],
        num_samples=num_samples,
        num_singles=len(singles),
        memory_bytes=peak_bytes() - memory,
        learning=contestant.learning,
    )


def _rate(contestant: Contestant, count: int, seconds: float) -> tuple[float, int]:
    start, done = time.perf_counter(), 0
    while not done or time.perf_counter() - start < seconds:
        contestant.take(count)
        done += count
    contestant.finish()
    _wait()
    return done / (time.perf_counter() - start), done


def _singles(contestant: Contestant, seconds: float) -> list[float]:
    start = time.perf_counter()
    found: list[float] = []
    while len(found) < _FEWEST_SINGLES or time.perf_counter() - start < seconds:
        found.append(_seconds(contestant, 1))
    contestant.finish()
    return found


def _seconds(contestant: Contestant, count: int) -> float:
    start = time.perf_counter()
    contestant.take(count)
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    """Wait until GPUs have done what they were given."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        for index in range(torch.cuda.device_count()):
            torch.cuda.synchronize(index)
