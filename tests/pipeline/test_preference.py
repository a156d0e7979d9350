"""The faster of two ways, found out by what calls take."""

import pytest

from streamflow.pipeline.routing import preference
from streamflow.pipeline.routing.preference import Preference


def tried(mine: Preference, alone: float, together: float, calls: int = 20) -> list[bool]:
    """Let calls of 100 samples take such times; return which of them ran in threads."""
    chosen = []
    for _ in range(calls):
        threads = mine.choose(100)
        chosen.append(threads)
        mine.note(100, together if threads else alone, threads=threads)
    return chosen


def test_both_ways_take_turns_before_one_is_chosen() -> None:
    chosen = tried(Preference(2), alone=0.2, together=0.1)
    assert chosen[:10] == [False, True] * 5
    assert all(chosen[10:])


@pytest.mark.parametrize("together", [0.19, 0.2, 0.5])
def test_threads_must_be_clearly_faster(together: float) -> None:
    mine = Preference(2)
    assert not any(tried(mine, alone=0.2, together=together)[10:])
    assert not mine.threads
    assert repr(mine) == "<Preference: settled, inline>"


def test_a_single_slow_call_decides_nothing() -> None:
    mine = Preference(2)
    mine.note(100, 60.0, threads=True)
    assert all(tried(mine, alone=0.2, together=0.1)[10:])


def test_short_calls_run_in_one_thread_and_count_for_nothing() -> None:
    mine = Preference(2)
    for _ in range(50):
        assert not mine.choose(7)
        mine.note(7, 1.0, threads=False)
    assert repr(mine) == "<Preference: trying, inline>"
    assert tried(mine, alone=0.2, together=0.1)[:2] == [False, True]


def test_short_trials_go_on_until_they_say_something() -> None:
    assert tried(Preference(2), alone=0.002, together=0.001, calls=60) == [False, True] * 30


def test_it_is_tried_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preference, "_RENEWED_SECONDS", 0.0)
    mine = Preference(2)
    assert tried(mine, alone=0.2, together=0.1, calls=10) == [False, True] * 5
    assert mine.threads
    assert tried(mine, alone=0.1, together=0.2, calls=12)[1:] == [False, True] * 5 + [False]
    assert not mine.threads
