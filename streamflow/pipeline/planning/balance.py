"""Where to cut a network so that the slowest stage is as fast as it can be: pure numbers.

A stage's load is the seconds that it is busy with one sample, and the largest load of all stages,
the bottleneck, limits the rate; :mod:`~streamflow.pipeline.network.chain` says how it is found.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from streamflow.errors import PartitionError
from streamflow.pipeline.network.chain import NEVER, Load, cut_chain
from streamflow.pipeline.planning.costs import Profile


@dataclass(frozen=True, slots=True)
class Cut:
    """Stages of a chain.

    Attributes:
        starts: First layer of every stage but the first.
        loads: Seconds that each stage is busy with one sample, transfers included.
        boundary_bytes: Size of what crosses all cuts for one sample.
    """

    starts: tuple[int, ...]
    loads: tuple[float, ...]
    boundary_bytes: int

    @property
    def bottleneck(self) -> float:
        """The largest load."""
        return max(self.loads)


def balance(profile: Profile, lags: Sequence[int], *, stashes: bool = False) -> Cut:
    """Cut a chain into one stage for each lag so that the bottleneck is smallest.

    Ties have the fewest bytes over the cuts.

    Args:
        profile: The chain.
        lags: Lag of each stage, first stage first.
        stashes: Whether a stage keeps the weights of every sample that it holds.

    Raises:
        PartitionError: There are not so many layers or devices, or a stage does not fit its memory.
    """
    num_stages = len(lags)
    if num_stages > profile.max_stages:
        msg = (
            f"stages: expected at most {profile.max_stages} for this network, got {num_stages}; "
            "a stage needs at least one layer and a device, and tied parameters one stage"
        )
        raise PartitionError(msg)

    loads = _loads(profile, lags)

    def load(stage: int, first: int, stop: int) -> float:
        limit = profile.device(stage).memory_bytes
        if limit is not None and profile.memory(first, stop, lags[stage], stashes=stashes) > limit:
            return NEVER
        return loads(stage, first, stop)

    starts = _starts(profile, num_stages, load)
    if starts is None:
        raise PartitionError(_shortage(profile, lags, stashes=stashes))
    return cut_at(profile, starts, lags)


def cut_at(profile: Profile, starts: Sequence[int], lags: Sequence[int]) -> Cut:
    """Return the stages that begin at the layers ``starts``, and at the first one."""
    load = _loads(profile, lags)
    bounds = list(itertools.pairwise((0, *starts, len(profile.layers))))
    return Cut(
        tuple(starts),
        tuple(load(stage, *bound) for stage, bound in enumerate(bounds)),
        sum(profile.layers[start - 1].boundary_bytes for start in starts),
    )


def fewest_stages(
    profile: Profile,
    numbers: Iterable[int],
    lags_of: Callable[[int], Sequence[int]],
    rate_of: Callable[[Cut], float],
    rate: float | None = None,
    *,
    stashes: bool = False,
    margin: float = 0.0,
) -> Cut:
    """Return the cut with the fewest stages that reaches a rate, else the fastest.

    Args:
        profile: The chain.
        numbers: Numbers of stages to choose from, smallest first.
        lags_of: Lags of so many stages.
        rate_of: Samples per second that a cut reaches; asked once per number of stages, and no
            more once the wanted rate is reached.
        rate: The wanted one; None for as many as possible.
        stashes: As in :func:`balance`.
        margin: How much faster, as a fraction, more stages must be to be worth their lag.

    Raises:
        PartitionError: No number of stages fits the memory.
    """
    best, best_rate = None, 0.0
    shortage = PartitionError("stages: expected a number of them, got none; allow at least one")
    for num_stages in numbers:
        try:
            cut = balance(profile, lags_of(num_stages), stashes=stashes)
        except PartitionError as error:
            shortage = error
            continue
        reached = rate_of(cut)
        if rate is not None and reached >= rate:
            return cut
        if best is None or reached > best_rate * (1 + margin):
            best, best_rate = cut, reached
    if best is None:
        raise shortage
    return best


def _loads(profile: Profile, lags: Sequence[int]) -> Load:
    """Return the loads of all runs of layers, by differences of sums."""
    layers, last = profile.layers, len(lags) - 1
    devices = [profile.device(stage) for stage in range(len(lags))]
    places = list(zip(devices, lags, strict=True))
    fixed = [profile.fixed[device.kind].with_lag(lag) for device, lag in places]
    sums = [
        _sums(layer.costs[device.kind].with_lag(lag).total for layer in layers)
        for device, lag in places
    ]
    owners = _sums(bool(layer.parameter_bytes) for layer in layers)

    def load(stage: int, first: int, stop: int) -> float:
        found = fixed[stage].total + sums[stage][stop] - sums[stage][first]
        if owners[stop] == owners[first]:
            found -= fixed[stage].update
        # A stage brings its inputs, and its gradients, to its device.
        if stage > 0 and devices[stage - 1] != devices[stage]:
            found += layers[first - 1].transfer
        if stage < last and devices[stage + 1] != devices[stage]:
            found += layers[stop - 1].transfer
        return found

    return load


def _sums(numbers: Iterable[float]) -> list[float]:
    return list(itertools.accumulate(numbers, initial=0.0))


def _starts(profile: Profile, num_stages: int, load: Load) -> list[int] | None:
    return cut_chain(
        num_stages,
        load,
        may_cut=[layer.may_cut for layer in profile.layers],
        boundary_bytes=[layer.boundary_bytes for layer in profile.layers],
    )


def _shortage(profile: Profile, lags: Sequence[int], *, stashes: bool) -> str:
    """Say what the nearest cut lacks: that whose worst stage exceeds its memory the least."""

    def need(stage: int, first: int, stop: int) -> int:
        return profile.memory(first, stop, lags[stage], stashes=stashes)

    def excess(stage: int, first: int, stop: int) -> float:
        limit = profile.device(stage).memory_bytes
        return 0.0 if limit is None else need(stage, first, stop) / max(limit, 1)

    starts = _starts(profile, len(lags), excess)
    assert starts is not None
    bounds = list(itertools.pairwise((0, *starts, len(profile.layers))))
    worst = max(range(len(lags)), key=lambda stage: excess(stage, *bounds[stage]))
    device, first = profile.device(worst), profile.layers[bounds[worst][0]].name
    return (
        f"stages: expected {len(lags)} to fit the memory of their devices, got none that do: the "
        f"nearest needs {_mib(need(worst, *bounds[worst]))} for stage {worst} (from {first}) on "
        f"{device.name}, which has {_mib(device.memory_bytes or 0)}; use more stages or devices"
    )


def _mib(count_bytes: int) -> str:
    return f"{count_bytes / 2**20:,.1f} MiB"
