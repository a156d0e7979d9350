import random

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamflow.records import Partition
from streamflow.runtime.acks import Ledger, Share

PARTITIONS = [Partition("source", (("partition", index),)) for index in range(3)]

UNITS = st.lists(st.sets(st.sampled_from(PARTITIONS), min_size=1), min_size=1, max_size=12)


def ends_of(units: list[set[Partition]]) -> list[dict[Partition, int]]:
    """Return where each unit ends: the n-th unit of a partition at 10 n."""
    counts = dict.fromkeys(PARTITIONS, 0)
    ends = []
    for unit in units:
        for partition in unit:
            counts[partition] += 10
        ends.append({partition: counts[partition] for partition in unit})
    return ends


def expected_positions(
    ends: list[dict[Partition, int]], open_shares: list[list[Share]]
) -> dict[Partition, int]:
    """Return, by definition, the end of each partition's leading units that are all finished."""
    positions: dict[Partition, int] = {}
    blocked: set[Partition] = set()
    for unit, shares in zip(ends, open_shares, strict=True):
        blocked |= unit.keys() if shares else set()
        positions |= {place: end for place, end in unit.items() if place not in blocked}
    return positions


@given(UNITS, st.randoms(use_true_random=False))
def test_positions_never_pass_an_unfinished_unit(
    units: list[set[Partition]], chance: random.Random
) -> None:
    ledger = Ledger()
    ends = ends_of(units)
    shares = [[ledger.track(unit)] for unit in ends]
    committed: dict[Partition, int] = {}
    splits = 20
    while any(shares):
        index = chance.choice([index for index, out in enumerate(shares) if out])
        share = shares[index].pop(chance.randrange(len(shares[index])))
        if splits and chance.random() < 0.5:
            splits -= 1
            shares[index] += share.split(chance.randint(1, 3))
        else:
            share.finish()
        advanced = ledger.take()
        assert all(end > committed.get(place, 0) for place, end in advanced.items())
        committed |= advanced
        assert committed == expected_positions(ends, shares)
        assert ledger.is_idle == (not any(shares))
    assert repr(ledger) == "<Ledger 0 units in flight over 0 partitions>"


def test_units_tracked_while_others_are_out_wait_for_them() -> None:
    ledger = Ledger()
    first = ledger.track({PARTITIONS[0]: 10})
    ledger.track({PARTITIONS[0]: 25, PARTITIONS[1]: 3}).finish()
    assert ledger.take() == {PARTITIONS[1]: 3}
    first.finish()
    assert ledger.take() == {PARTITIONS[0]: 25}
    assert ledger.take() == {}


def test_a_share_is_settled_once() -> None:
    share = Ledger().track({PARTITIONS[0]: 1})
    share.finish()
    with pytest.raises(AssertionError, match="once"):
        share.finish()
    with pytest.raises(AssertionError, match="once"):
        share.split(2)


@pytest.mark.anyio
async def test_settled_waits_for_every_share() -> None:
    ledger = Ledger()
    await ledger.settled()
    first, second = ledger.track({PARTITIONS[0]: 1}).split(2)
    seen: list[str] = []

    async def wait() -> None:
        await ledger.settled()
        seen.append("settled")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        first.finish()
        await anyio.wait_all_tasks_blocked()
        assert seen == []
        second.finish()
    assert seen == ["settled"]
