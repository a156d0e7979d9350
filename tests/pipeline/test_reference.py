"""The implementation against the specification, bit by bit: the kernels are the same."""

import copy

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.pipeline.networks import (
    KINDS,
    SCHEMES,
    assert_same,
    chain,
    cut_points,
    expected,
    pipeline,
    process,
    stream,
)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, object]:
    num_stages = draw(st.integers(1, 6))
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=max(num_stages, 2), max_size=9))
    for place in range(1, len(kinds)):
        # What comes before an operation in place must not need its own output for its gradient.
        if kinds[place] == "relu" and kinds[place - 1] in ("tanh", "relu"):
            kinds[place] = "linear"
    count = draw(st.integers(0, 25) | st.sampled_from([50, 200]))
    places = st.lists(st.integers(0, count), max_size=4)
    return {
        "kinds": kinds,
        "cuts": cut_points(len(kinds), num_stages, draw(st.integers(0, 99))),
        "learned": draw(st.lists(st.booleans(), min_size=count, max_size=count))
        if draw(st.booleans())
        else [True] * count,
        "calls": draw(places),
        "drains": draw(places),
        "scheme": draw(st.sampled_from(SCHEMES)),
        "seed": draw(st.integers(0, 99)),
    }


@settings(max_examples=60, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(cases())
def test_any_stream_equals_the_reference(case: dict[str, object]) -> None:
    check(**case)  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("num_stages", [1, 2, 3, 6])
def test_every_scheme_equals_the_reference(scheme: tuple[str, str], num_stages: int) -> None:
    kinds = ["linear", "tanh", "scale", "product", "linear", "relu", "linear", "scale"]
    check(
        kinds,
        cut_points(len(kinds), num_stages, seed=num_stages),
        learned=[n % 5 != 3 for n in range(30)],
        calls=[1, 2, 11, 12],
        drains=[12, 13, 20],
        scheme=scheme,
        seed=1,
    )


def check(
    kinds: list[str],
    cuts: list[int],
    learned: list[bool],
    calls: list[int],
    drains: list[int],
    scheme: tuple[str, str],
    seed: int,
) -> None:
    net = chain(kinds, seed)
    inputs, targets = stream(len(learned), seed)
    wanted, learned_net = expected(net, cuts, inputs, targets, learned, drains, *scheme)
    if any(bool(p.abs().max() > 1e3) for p in learned_net.parameters()):
        return  # it diverged: infinities are not comparable
    untouched = copy.deepcopy(inputs)
    with pipeline(net, cuts, *scheme) as pipe:
        outputs = process(pipe, inputs, targets, learned, calls, drains)
    assert torch.equal(outputs, wanted)
    assert_same(net, learned_net)
    assert torch.equal(inputs, untouched)
