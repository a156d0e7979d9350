"""What a reader of a group holds, and what another one receives as well."""

from aiokafka import TopicPartition  # type: ignore[import-untyped]

from streamflow_connectors.kafka.assignment import Holdings

ONE, OTHER = TopicPartition("t", 0), TopicPartition("t", 1)


def holding(received: int, committed: int) -> Holdings:
    """Return holdings of two partitions from position 10 on, and one of them went on."""
    held = Holdings("in")
    held.assign([ONE, OTHER])
    held.settle({ONE: 10, OTHER: 10}, {ONE: 10})
    held.positions[ONE] = received
    held.commit({ONE: committed})
    return held


def test_what_is_committed_is_shared_with_nobody() -> None:
    held = holding(30, 30)
    held.revoke()
    assert held.num_shared == 0


def test_what_was_received_and_not_committed_another_member_receives_too() -> None:
    held = holding(30, 12)
    assert held.num_shared == 0
    held.revoke()
    assert held.num_shared == 18
    held.assign([OTHER])
    held.settle({OTHER: 10}, {})
    held.revoke()
    assert held.num_shared == 18


def test_what_nobody_has_committed_when_a_partition_comes_back_was_received_here_alone() -> None:
    held = holding(30, 12)
    held.revoke()
    held.assign([ONE])
    held.settle({ONE: 30}, {ONE: 12})
    assert held.num_shared == 0


def test_what_others_have_committed_meanwhile_was_received_twice() -> None:
    for committed, shared in [(20, 8), (30, 18), (50, 18)]:
        held = holding(30, 12)
        held.revoke()
        held.assign([ONE])
        held.settle({ONE: max(30, committed)}, {ONE: committed})
        assert held.num_shared == shared
        held.revoke()
        assert held.num_shared >= shared
