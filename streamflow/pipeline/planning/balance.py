"""Where to cut a chain of layers so that the slowest stage is as fast as it can be: pure numbers.

Theory of operation. A stage is a run of consecutive layers. Its load is the seconds that it is busy
with one sample, and the largest load of all stages, the bottleneck, limits the rate. With lag a
stage runs every sample forward twice, so the load of the same layers depends on which stage of how
many they are in. Layers a to e, their seconds without lag and with, in two stages of ``1f1b``:

    layer     a    b    c    d    e
    prompt    1    1    2    2    1      the last stage has lag 0
    late      1.5  1.5  3    3    1.5    the first has lag 1

    cut       ab|cde: max(3, 5) = 5      abc|de: max(6, 3) = 6

One pass over all cuts finds the smallest bottleneck, from the last stage to the first. A second one
finds, among the cuts that stay within it, the one with the fewest bytes over the cuts. One pass for
both would be wrong: the best rest of a cut may have more bytes than another rest that is slower but
still within the bottleneck that an earlier stage sets.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from streamflow.errors import PartitionError
from streamflow.pipeline.planning.costs import Cost, Profile

# Equal up to the rounding of sums.
_TOLERANCE = 1e-9
_NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Cut:
    """Stages of a chain.

    Attributes:
        starts: First layer of every stage but the first.
        costs: What each stage costs.
        loads: Seconds that each stage is busy with one sample, transfers included.
        boundary_bytes: Size of what crosses all cuts for one sample.
    """

    starts: tuple[int, ...]
    costs: tuple[Cost, ...]
    loads: tuple[float, ...]
    boundary_bytes: int

    @property
    def bottleneck(self) -> float:
        """The largest load."""
        return max(self.loads)


Load = Callable[[int, int, int], float]
"""Load of a stage by its index, its first layer and the layer after its last."""


def cut_chain(
    num_stages: int,
    load: Load,
    *,
    may_cut: Sequence[bool],
    boundary_bytes: Sequence[int],
) -> list[int] | None:
    """Cut a chain so that the largest load is smallest; then with the fewest bytes over the cuts.

    Exact. Among cuts equal in both, the one whose loads are most alike, then the earliest.

    Args:
        num_stages: How many stages.
        load: Load of a stage; infinite where it is not possible.
        may_cut: For each layer, whether a cut before it is allowed.
        boundary_bytes: For each layer, the bytes that cross a cut after it.

    Returns:
        First layer of every stage but the first, or None where no cut is possible.
    """
    bottleneck = _bottleneck(num_stages, load, may_cut)
    if bottleneck == _NEVER:
        return None
    limit = bottleneck + _TOLERANCE * abs(bottleneck)

    def weigh(stage: int, first: int, stop: int) -> tuple[float, float] | None:
        own = load(stage, first, stop)
        crossing = boundary_bytes[stop - 1] if stop < len(may_cut) else 0
        return (crossing, own * own) if own <= limit else None

    return _lightest(num_stages, weigh, may_cut)


def _stops(num_layers: int, may_cut: Sequence[bool], first: int, is_last: bool) -> Iterable[int]:
    """List where a stage that begins at ``first`` may end."""
    if is_last:
        return (num_layers,)
    return (stop for stop in range(first + 1, num_layers) if may_cut[stop])


def _bottleneck(num_stages: int, load: Load, may_cut: Sequence[bool]) -> float:
    count = len(may_cut)
    # rest[i]: the smallest bottleneck of the layers from i in the stages after this one.
    rest = [_NEVER] * (count + 1)
    for stage in reversed(range(num_stages)):
        is_last = stage == num_stages - 1
        rest[count] = 0.0 if is_last else _NEVER
        rest = [
            min(
                (
                    max(load(stage, first, stop), rest[stop])
                    for stop in _stops(count, may_cut, first, is_last)
                    if rest[stop] < _NEVER
                ),
                default=_NEVER,
            )
            for first in range(count)
        ] + [_NEVER]
    return rest[0]


def _lightest(
    num_stages: int,
    weigh: Callable[[int, int, int], tuple[float, float] | None],
    may_cut: Sequence[bool],
) -> list[int]:
    count = len(may_cut)
    # rest[i]: weight of the lightest cut of the layers from i, and where its stages end.
    rest: list[tuple[float, float, tuple[int, ...]] | None] = [*[None] * count, (0.0, 0.0, ())]
    for stage in reversed(range(num_stages)):
        found: list[tuple[float, float, tuple[int, ...]] | None] = []
        for first in range(count):
            ways = []
            for stop in _stops(count, may_cut, first, stage == num_stages - 1):
                after, own = rest[stop], weigh(stage, first, stop)
                if after is not None and own is not None:
                    ways.append((own[0] + after[0], own[1] + after[1], (stop, *after[2])))
            found.append(min(ways, default=None))
        rest = [*found, None]
    assert rest[0] is not None
    return list(rest[0][2][:-1])


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

    def load(stage: int, first: int, stop: int) -> float:
        limit = profile.device(stage).memory_bytes
        if limit is not None and profile.memory(first, stop, lags[stage], stashes=stashes) > limit:
            return _NEVER
        return sums.load(stage, first, stop)

    sums = _Sums(profile, lags)
    starts = _starts(profile, num_stages, load)
    if starts is None:
        raise PartitionError(_shortage(profile, lags, stashes=stashes))
    return cut_at(profile, starts, lags)


def cut_at(profile: Profile, starts: Sequence[int], lags: Sequence[int]) -> Cut:
    """Return the stages that begin at the layers ``starts``, and at the first one."""
    sums = _Sums(profile, lags)
    bounds = list(itertools.pairwise((0, *starts, len(profile.layers))))
    return Cut(
        tuple(starts),
        tuple(profile.cost(*bound, stage, lags[stage]) for stage, bound in enumerate(bounds)),
        tuple(sums.load(stage, *bound) for stage, bound in enumerate(bounds)),
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


class _Sums:
    """Loads of all runs of layers, by differences of sums."""

    def __init__(self, profile: Profile, lags: Sequence[int]) -> None:
        layers = profile.layers
        self._layers = layers
        self._owners = [0, *itertools.accumulate(bool(x.parameter_bytes) for x in layers)]
        self._fixed, self._totals, self._brings = [], [], []
        for stage, lag in enumerate(lags):
            kind = profile.device(stage).kind
            costs = (layer.costs[kind].of(lag).total for layer in layers)
            self._fixed.append(profile.fixed[kind].of(lag))
            self._totals.append([0.0, *itertools.accumulate(costs)])
            neighbours = (stage - 1, stage + 1)
            self._brings.append(
                [
                    0 <= other < len(lags) and profile.device(other) != profile.device(stage)
                    for other in neighbours
                ]
            )

    def load(self, stage: int, first: int, stop: int) -> float:
        """Return the load of a stage: it brings its inputs, and its gradients, to its device."""
        fixed, total = self._fixed[stage], self._totals[stage]
        has_update = self._owners[stop] > self._owners[first]
        own = fixed.forward + fixed.backward + (fixed.update if has_update else 0.0)
        before, after = self._brings[stage]
        return (
            own
            + (total[stop] - total[first])
            + (self._layers[first - 1].transfer if before else 0.0)
            + (self._layers[stop - 1].transfer if after else 0.0)
        )


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
