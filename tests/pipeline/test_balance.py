"""Cuts against all cuts that there are."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamflow.errors import PartitionError
from streamflow.pipeline.planning.balance import Cut, balance, cut_at, fewest_stages
from streamflow.pipeline.planning.costs import Cost, Device, Layer, Profile
from streamflow.pipeline.schedule import orders

# A busy machine must not fail a test.
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
KINDS = 2
TENTHS = st.integers(0, 40).map(lambda n: n / 10)
COSTS = st.builds(Cost, TENTHS, TENTHS, TENTHS)
LAYERS = st.builds(
    Layer,
    name=st.just("layer"),
    costs=st.tuples(*[COSTS] * KINDS),
    parameter_bytes=st.integers(0, 3),
    state_bytes=st.integers(0, 3),
    boundary_bytes=st.integers(0, 3),
    transfer=TENTHS,
    may_cut=st.booleans(),
)
DEVICES = st.builds(
    Device,
    name=st.sampled_from(["a", "b"]),
    kind=st.integers(0, KINDS - 1),
    memory_bytes=st.none() | st.integers(0, 40),
)
PROFILES = st.builds(
    Profile,
    layers=st.lists(LAYERS, min_size=1, max_size=12).map(tuple),
    devices=st.lists(DEVICES, min_size=1, max_size=5).map(tuple),
    fixed=st.tuples(*[COSTS] * KINDS),
    input_bytes=st.integers(0, 3),
)


def lags_of(num_stages: int) -> list[int]:
    return [order.lag for order in orders("1f1b", num_stages)]


def load(profile: Profile, first: int, stop: int, stage: int, lags: Sequence[int]) -> float:
    """Add up one by one what balance computes by differences of sums."""
    devices = [
        profile.devices[0] if len(profile.devices) == 1 else profile.devices[s]
        for s in range(len(lags))
    ]
    own = devices[stage]
    parts = [profile.fixed[own.kind], *(x.costs[own.kind] for x in profile.layers[first:stop])]
    total = 0.0
    for index, part in enumerate(parts):
        total += part.forward * (2 if lags[stage] > 0 else 1) + part.backward
        has_weights = any(x.parameter_bytes for x in profile.layers[first:stop])
        total += part.update if index or has_weights else 0.0
    if stage > 0 and devices[stage - 1] != own:
        total += profile.layers[first - 1].transfer
    if stage < len(lags) - 1 and devices[stage + 1] != own:
        total += profile.layers[stop - 1].transfer
    return total


def memory(profile: Profile, first: int, stop: int, lag: int, *, stashes: bool) -> int:
    inputs = profile.input_bytes if first == 0 else profile.layers[first - 1].boundary_bytes
    total = (lag + 1) * inputs
    for layer in profile.layers[first:stop]:
        total += layer.state_bytes + layer.parameter_bytes
        total += lag * layer.parameter_bytes if stashes else 0
    return total


def all_cuts(profile: Profile, lags: Sequence[int], *, stashes: bool) -> list[tuple[float, int]]:
    """Return bottleneck and bytes of every cut that is possible."""
    count, found = len(profile.layers), []
    for starts in itertools.combinations(range(1, count), len(lags) - 1):
        bounds = list(itertools.pairwise((0, *starts, count)))
        limits = [
            profile.devices[s if len(profile.devices) > 1 else 0].memory_bytes
            for s in range(len(lags))
        ]
        fits = all(
            limit is None or memory(profile, *bound, lag, stashes=stashes) <= limit
            for bound, lag, limit in zip(bounds, lags, limits, strict=True)
        )
        if fits and all(profile.layers[start].may_cut for start in starts):
            loads = [load(profile, *bound, s, lags) for s, bound in enumerate(bounds)]
            found.append((max(loads), sum(profile.layers[s - 1].boundary_bytes for s in starts)))
    return found


@UNTIMED
@given(PROFILES, st.integers(1, 5), st.booleans())
def test_no_cut_is_better(profile: Profile, num_stages: int, stashes: bool) -> None:
    lags = lags_of(num_stages)
    enough = len(profile.devices) in (1, *range(num_stages, 6))
    cuts = all_cuts(profile, lags, stashes=stashes) if enough else []
    if not cuts:
        with pytest.raises(PartitionError, match="stages: expected"):
            balance(profile, lags, stashes=stashes)
        return
    cut = balance(profile, lags, stashes=stashes)
    best = min(bottleneck for bottleneck, _ in cuts)
    fewest = min(crossing for bottleneck, crossing in cuts if bottleneck <= best + 1e-9)
    assert cut.bottleneck == pytest.approx(best)
    assert cut.boundary_bytes == fewest
    assert all(profile.layers[start].may_cut for start in cut.starts)
    assert cut == cut_at(profile, cut.starts, lags)


@UNTIMED
@given(PROFILES, st.none() | st.floats(0.01, 2))
def test_no_fewer_stages_reach_the_rate_and_none_are_faster(
    profile: Profile, rate: float | None
) -> None:
    free = [replace(device, memory_bytes=None) for device in profile.devices]
    profile = replace(profile, devices=tuple(free))
    rates = [
        1 / max(min(all_cuts(profile, lags_of(n), stashes=False))[0], 1e-9)
        for n in range(1, profile.max_stages + 1)
    ]
    asked: list[int] = []

    def rate_of(cut: Cut) -> float:
        asked.append(len(cut.loads))
        return 1 / max(cut.bottleneck, 1e-9)

    cut = fewest_stages(profile, range(1, profile.max_stages + 1), lags_of, rate_of, rate)
    reached = [n for n, found in enumerate(rates, 1) if rate is not None and found >= rate + 1e-9]
    assert asked == list(range(1, len(asked) + 1))
    if reached:
        assert len(cut.loads) == len(asked) <= reached[0]
    else:
        assert 1 / max(cut.bottleneck, 1e-9) == pytest.approx(max(rates))


def uniform(count: int, **changes: object) -> Profile:
    """Return layers that take a second each, late or not."""
    cost = Cost(0.0, 0.5, 0.5)
    layers = tuple(
        Layer(f"l{n}", (cost,), 4, 8, boundary_bytes=2, **changes)  # type: ignore[arg-type]
        for n in range(count)
    )
    return Profile(layers, (Device("cpu"),), (Cost(),), input_bytes=2)


def test_stages_with_lag_get_fewer_layers() -> None:
    profile = uniform(6)
    layers = tuple(replace(layer, costs=(Cost(1.0),)) for layer in profile.layers)
    profile = replace(profile, layers=layers)
    assert balance(profile, [1, 0]).starts == (2,)
    assert balance(profile, [0, 0]).starts == (3,)


def test_of_equal_bottlenecks_the_fewest_bytes_cross() -> None:
    layers = list(uniform(5).layers)
    layers[1] = replace(layers[1], boundary_bytes=1)
    profile = replace(uniform(5), layers=tuple(layers))
    assert balance(profile, [0, 0]).starts == (2,)
    layers[1], layers[2] = replace(layers[1], boundary_bytes=9), layers[2]
    assert balance(replace(profile, layers=tuple(layers)), [0, 0]).starts == (3,)


def test_of_equal_bottlenecks_and_bytes_the_other_stages_are_alike() -> None:
    layers = list(uniform(5).layers)
    slow = Cost(9.0)
    layers[0] = replace(layers[0], costs=(slow,))
    assert balance(replace(uniform(5), layers=tuple(layers)), [0, 0, 0]).starts == (1, 3)


def test_more_stages_must_be_faster_by_the_margin() -> None:
    rates = {1: 1.0, 2: 1.05, 3: 1.2, 4: 1.25}

    def choose(margin: float, rate: float | None = None) -> int:
        def rate_of(cut: Cut) -> float:
            return rates[len(cut.loads)]

        numbers = range(1, 5)
        cut = fewest_stages(uniform(4), numbers, lags_of, rate_of, rate, margin=margin)
        return len(cut.loads)

    assert (choose(0.0), choose(0.1), choose(0.3)) == (4, 3, 1)
    assert choose(0.3, rate=1.01) == 2


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(PartitionError, match="stages: expected at most 2 for this network, got 3"):
        balance(uniform(2), [0, 0, 0])
    tied = replace(uniform(4).layers[2], may_cut=False)
    profile = replace(uniform(3), layers=(*uniform(2).layers, tied))
    with pytest.raises(PartitionError, match="at most 2"):
        balance(profile, [0, 0, 0])


def test_what_does_not_fit_the_memory_is_told_with_the_nearest_cut() -> None:
    devices = (Device("small", memory_bytes=34), Device("large", memory_bytes=50))
    profile = replace(uniform(6), devices=devices, input_bytes=5)
    # Layers take 12 each; the first stage holds two samples of 5, the second an input of 2.
    assert balance(profile, [1, 0]).starts == (2,)
    tight = (devices[0], replace(devices[1], memory_bytes=40))
    with pytest.raises(PartitionError, match=r"nearest needs .* stage 1 \(from l2\) on large"):
        balance(replace(profile, devices=tight), [1, 0])


def test_stashed_weights_take_memory() -> None:
    profile = replace(uniform(2), devices=(Device("a", memory_bytes=18), Device("b")))
    balance(profile, [1, 0])
    with pytest.raises(PartitionError, match="memory"):
        balance(profile, [1, 0], stashes=True)


def test_a_number_of_stages_that_does_not_fit_the_memory_is_left_out() -> None:
    profile = replace(uniform(4), devices=(Device("cpu", memory_bytes=30),))
    found = fewest_stages(profile, range(1, 5), lambda n: [0] * n, lambda cut: 1.0)
    assert len(found.loads) == 2
    tiny = replace(profile, devices=(Device("cpu", memory_bytes=5),))
    with pytest.raises(PartitionError, match="memory"):
        fewest_stages(tiny, range(1, 5), lambda n: [0] * n, lambda cut: 1.0)
