import pytest

from streamflow.bench.ways import SelectionError, all_ways, chosen


@pytest.mark.parametrize(
    ("num_cores", "num_layers", "names"),
    [
        (1, 1, "loop-1 eager compiled"),
        (1, 9, "loop-1 eager compiled inline-2 threads-2"),
        (2, 1, "loop-1 loop-2 eager compiled"),
        (4, 3, "loop-1 loop-4 eager compiled inline-2 threads-2 inline-3 threads-3"),
    ],
)
def test_there_are_as_many_stages_as_cores_and_layers(
    num_cores: int, num_layers: int, names: str
) -> None:
    assert [way.name for way in all_ways(num_cores, num_layers)] == names.split()


def test_many_stages_are_measured_in_powers_of_two() -> None:
    usual = chosen(all_ways(17, 40), ())
    stages = [way.num_stages for way in usual if way.executor == "threads"]
    assert stages == [2, 3, 4, 8, 16]


def test_loops_are_always_there_to_compare_with() -> None:
    ways = all_ways(4, 4)
    found = chosen(ways, ["threads-[24]", "eager"])
    assert [way.name for way in found] == ["loop-1", "loop-4", "eager", "threads-2", "threads-4"]


def test_unknown_ways_are_told_with_those_that_exist() -> None:
    with pytest.raises(SelectionError, match=r"--ways: expected .* loop-1, eager, .*, got fast"):
        chosen(all_ways(1, 2), ["eager", "fast"])


def test_stages_in_threads_share_what_one_stage_has_alone() -> None:
    ways = {way.name: way.threads(8) for way in all_ways(8, 3)}
    assert (ways["loop-1"], ways["loop-8"], ways["eager"]) == (1, 8, 8)
    assert (ways["inline-3"], ways["threads-3"]) == (8, 2)
