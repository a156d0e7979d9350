"""Random networks, cuts, schedules and streams against the specification, for as long as asked.

``STREAMFLOW_TEST_SECONDS`` sets how long. A failure prints a seed; given as
``STREAMFLOW_TEST_SEED`` it repeats that case alone.
"""

import copy
import itertools
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamflow.errors import PartitionError
from streamflow.pipeline import Pipeline, trees
from streamflow.pipeline.network.partition import partition, trace_layers
from tests.pipeline.networks import (
    KINDS,
    SCHEMES,
    SGD,
    assert_same,
    chain,
    cut_points,
    expected,
    process,
    stream,
)
from tests.pipeline.real_networks import CASES
from tests.pipeline.test_any_module import COUNT, assert_close, assert_equal, by_hand, learner

SECONDS = float(os.environ.get("STREAMFLOW_TEST_SECONDS", "20"))
SEED = os.environ.get("STREAMFLOW_TEST_SEED", "")


class Delayed(nn.Module):
    """Lets other threads go first, for a random while."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = random.Random(seed)

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.random.random() * 2e-4)
        y = x * 1.0
        if y.requires_grad:
            y.register_hook(self._backward)  # type: ignore[no-untyped-call]
        return y

    def _backward(self, gradient: Tensor) -> None:
        time.sleep(self.random.random() * 2e-4)


@dataclass(frozen=True)
class Chain:
    """A chain of layers and a stream for it."""

    kinds: list[str]
    num_stages: int
    count: int
    scheme: tuple[str, str]
    executor: str
    is_delayed: bool
    learned: list[bool]
    calls: list[int]
    drains: list[int]
    seed: int

    def check(self) -> None:
        net: nn.Sequential = chain(self.kinds, self.seed)
        if self.is_delayed:
            delays = (Delayed(self.seed + place) for place in itertools.count())
            net = nn.Sequential(*[p for layer in net for p in (layer, next(delays))])
        original = copy.deepcopy(net)
        cuts = cut_points(len(net), self.num_stages, self.seed)
        inputs, targets = stream(self.count, self.seed)
        with (
            Pipeline(
                net,
                loss=F.mse_loss,
                optimizer=SGD,
                stages=[str(cut) for cut in cuts],
                schedule=self.scheme[0],
                backward=self.scheme[1],
                executor=self.executor,
            ) as pipe,
            pipe.timeline() as timeline,
        ):
            outputs = process(pipe, inputs, targets, self.learned, self.calls, self.drains)
        order = None
        if self.scheme[0] == "greedy":
            events = sorted(timeline.events, key=lambda event: event.start)
            order = [(event.action, event.stage, event.sample) for event in events]
        wanted, learned_net = expected(
            original, cuts, inputs, targets, self.learned, self.drains, *self.scheme, order
        )
        if all(bool(p.abs().max() < 1e3) for p in learned_net.parameters()):
            assert torch.equal(outputs, wanted)
            assert_same(net, learned_net)


@dataclass(frozen=True)
class Real:
    """A network that people build, cut anywhere."""

    name: str
    cuts: list[str]
    backward: str
    seed: int

    def check(self) -> None:
        case = CASES[self.name]
        original = case.network(seed=self.seed)
        inputs, targets = case.stream(COUNT, seed=self.seed)
        try:
            partition(original, self.cuts)
        except PartitionError:
            return  # tied, or nothing left for a stage
        results = []
        for executor in ("inline", "threads"):
            net = copy.deepcopy(original)
            with learner(case, net, self.cuts, backward=self.backward, executor=executor) as pipe:
                outputs = pipe.process(inputs, targets)
            results.append((outputs, net.state_dict()))
        other = copy.deepcopy(original)
        wanted = by_hand(case, other, self.cuts, inputs, targets, self.backward)
        assert_equal(results[0], results[1])
        assert_close(results[0], (trees.stack_samples(wanted), other.state_dict()))


def draw(rng: random.Random, **fixed: int) -> Chain | Real:
    if not fixed and rng.random() < 0.25:
        return draw_real(rng)
    num_stages = fixed.get("num_stages", rng.randint(1, 6))
    kinds = [rng.choice(KINDS) for _ in range(rng.randint(max(num_stages, 2), 9))]
    for place, (before, kind) in enumerate(itertools.pairwise(kinds), start=1):
        # What comes before an operation in place must not need its own output for its gradient.
        if kind == "relu" and before in ("tanh", "relu"):
            kinds[place] = "linear"
    count = fixed.get("count", rng.choice([1, 2, 5, 12, 25, 40]))
    executor = rng.choice(["inline", "threads"])
    share = rng.choice([0.0, 0.5, 1.0, 1.0])
    return Chain(
        kinds,
        num_stages,
        count,
        rng.choice(SCHEMES),
        executor,
        executor == "threads" and count <= 25 and rng.random() < 0.5,
        [rng.random() < share for _ in range(count)],
        [rng.randint(0, count) for _ in range(rng.randint(0, 4))],
        [rng.randint(0, count) for _ in range(rng.randint(0, 4))],
        rng.randint(0, 999),
    )


def draw_real(rng: random.Random) -> Real:
    name = rng.choice(list(CASES))
    try:
        starts: Sequence[str] = list(trace_layers(CASES[name].network()).starts)
    except PartitionError:
        starts = CASES[name].cuts[0]
    chosen = sorted(rng.sample(range(len(starts)), rng.randint(1, min(3, len(starts)))))
    backward = rng.choice(["own", "stashed"])
    return Real(name, [starts[place] for place in chosen], backward, rng.randint(0, 999))


def cases(seed: str) -> Iterator[tuple[str, Chain | Real]]:
    """Yield cases with the seeds that repeat them, without end unless one is asked for."""
    fixed: list[dict[str, int]] = [{"count": 0}, {"count": 200}, {"num_stages": 6}]
    root, _, place = seed.partition("/")
    for index in (int(place),) if place else itertools.count():
        label = f"{root}/{index}"
        yield label, draw(random.Random(label), **(fixed[index] if index < len(fixed) else {}))


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 180)
def test_random_cases_equal_the_specification(capsys: pytest.CaptureFixture[str]) -> None:
    seed = SEED or str(random.SystemRandom().randrange(10**6))
    deadline, done = time.monotonic() + SECONDS, 0
    for label, case in cases(seed):
        try:
            case.check()
        except Exception as error:
            msg = f"repeat with STREAMFLOW_TEST_SEED={label}: {case}"
            raise AssertionError(msg) from error
        done += 1
        if done >= 3 and time.monotonic() > deadline:
            break
    with capsys.disabled():
        sys.stdout.write(f" {done} cases with STREAMFLOW_TEST_SEED={seed} ")
