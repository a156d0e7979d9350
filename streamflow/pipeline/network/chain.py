"""Where to cut a chain so that the largest load is as small as it can be: pure numbers.

Theory of operation. A stage is a run of consecutive layers, and its load may depend on which stage
of how many it is. With lag a stage runs every sample forward twice. Layers a to e, their seconds
without lag and with, in two stages of ``1f1b``:

    layer     a    b    c    d    e
    prompt    1    1    2    2    1      the last stage has lag 0
    late      1.5  1.5  3    3    1.5    the first has lag 1

    cut       ab|cde: max(3, 5) = 5      abc|de: max(6, 3) = 6

One pass over all cuts finds the smallest bottleneck, from the last stage to the first. A second one
finds, among the cuts that stay within it, the one with the fewest bytes over the cuts. One pass for
both would be wrong: the best rest of a cut may have more bytes than another rest that is slower but
still within the bottleneck that an earlier stage sets.
"""

from collections.abc import Callable, Iterable, Sequence

# Equal up to the rounding of sums.
_TOLERANCE = 1e-9

NEVER = float("inf")
"""Load of a stage that is not possible."""

Load = Callable[[int, int, int], float]
"""Load of a stage by its index, its first layer and the layer after its last."""

_Weight = tuple[float, float]


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
        load: Load of a stage; ``NEVER`` where it is not possible.
        may_cut: For each layer, whether a cut before it is allowed.
        boundary_bytes: For each layer, the bytes that cross a cut after it.

    Returns:
        First layer of every stage but the first, or None where no cut is possible.
    """

    def alone(stage: int, first: int, stop: int) -> _Weight | None:
        own = load(stage, first, stop)
        return (own, 0.0) if own < NEVER else None

    fastest = _best(num_stages, alone, max, may_cut)
    if fastest is None:
        return None
    limit = fastest[0][0] * (1 + _TOLERANCE)

    def weigh(stage: int, first: int, stop: int) -> _Weight | None:
        own = load(stage, first, stop)
        crossing = boundary_bytes[stop - 1] if stop < len(may_cut) else 0
        return (crossing, own * own) if own <= limit else None

    lightest = _best(num_stages, weigh, _sum, may_cut)
    assert lightest is not None
    return list(lightest[1][:-1])


def _sum(one: _Weight, other: _Weight) -> _Weight:
    return one[0] + other[0], one[1] + other[1]


def _best(
    num_stages: int,
    weigh: Callable[[int, int, int], _Weight | None],
    join: Callable[[_Weight, _Weight], _Weight],
    may_cut: Sequence[bool],
) -> tuple[_Weight, tuple[int, ...]] | None:
    """Return the least weight of a cut and where its stages end; None where there is none."""
    count = len(may_cut)
    # rest[i]: the best cut of the layers from i into the stages after this one.
    rest: list[tuple[_Weight, tuple[int, ...]] | None] = [*[None] * count, ((0.0, 0.0), ())]
    for stage in reversed(range(num_stages)):
        is_last = stage == num_stages - 1
        rest = [
            min(
                (
                    (join(own, after[0]), (stop, *after[1]))
                    for stop in _stops(may_cut, first, is_last=is_last)
                    if (after := rest[stop]) and (own := weigh(stage, first, stop))
                ),
                default=None,
            )
            for first in range(count)
        ] + [None]
    return rest[0]


def _stops(may_cut: Sequence[bool], first: int, *, is_last: bool) -> Iterable[int]:
    """List where a stage that begins at ``first`` may end."""
    if is_last:
        return (len(may_cut),)
    return (stop for stop in range(first + 1, len(may_cut)) if may_cut[stop])
