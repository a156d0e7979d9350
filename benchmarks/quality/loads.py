"""Contestants under load: a stream that arrives faster than one sequential loop can learn.

A load is the rate of arrivals in units of what one stage in a sequential loop can do.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch.nn import functional as F

from benchmarks.quality.clock import Clock, Durations
from benchmarks.quality.learning import Scheme, Scores, build, replicate, score
from benchmarks.quality.network import cuts, network
from benchmarks.quality.streams import Stream
from streamflow.pipeline import Pipeline

STAGE_COUNTS = (1, 2, 4, 8)
SEQUENTIAL = Scheme("sequential", "own", 1)
FIXED = {
    "sequential": SEQUENTIAL,
    "lockstep + newest, 8": Scheme("lockstep", "newest", 8),
    "1f1b + own, 8": Scheme("1f1b", "own", 8),
    "greedy + own, 8": Scheme("greedy", "own", 8),
}
PLAN = "fewest stages, greedy"


@dataclass(frozen=True, slots=True)
class StageCosts:
    """Seconds of one stage's actions: tenth percentiles, which a busy machine hardly changes.

    Attributes:
        forward: Without a graph.
        kept_forward: With the graph that ``backward`` uses.
        backward: From a kept graph, with the update.
        late_backward: Running the stage again first, with the update.
    """

    forward: float
    kept_forward: float
    backward: float
    late_backward: float

    def durations(self, scheme: Scheme, *, is_last: bool) -> Durations:
        """Say what the actions cost in a scheme.

        PARTIME needs no second forward, as the newest sample's graph is there when it is wanted:
        its backward is charged as one of a kept graph, although here the stage runs again.
        """
        if scheme.schedule in ("sequential", "greedy") or is_last:
            return Durations(self.kept_forward, self.backward, self.late_backward)
        if scheme.backward == "newest":
            return Durations(self.kept_forward, self.backward, self.backward)
        return Durations(self.forward, self.late_backward, self.late_backward)


Costs = Mapping[int, Sequence[StageCosts]]
"""Stage costs by the number of stages."""


def measure(width: int, samples: int) -> dict[int, list[StageCosts]]:
    """Time the stages of one network, learned by the real pipeline in one thread."""
    return {count: _measure(count, width, samples) for count in STAGE_COUNTS}


def _measure(num_stages: int, width: int, samples: int) -> list[StageCosts]:
    kept = _action_times(Scheme("sequential", "own", num_stages), width, samples)
    again = _action_times(Scheme("1f1b", "own", num_stages), width, samples)
    return [
        StageCosts(
            forward=again[stage, "forward"],
            kept_forward=kept[stage, "forward"],
            backward=kept[stage, "backward"],
            late_backward=again[stage, "backward"],
        )
        for stage in range(num_stages)
    ]


def _action_times(scheme: Scheme, width: int, samples: int) -> dict[tuple[int, str], float]:
    inputs, targets = torch.randn(samples, 1, 8), torch.randn(samples, 1, 1)
    with Pipeline(
        network(8, 1, [0], width=width),
        loss=F.mse_loss,
        optimizer=partial(torch.optim.SGD, lr=1e-3),
        stages=cuts(scheme.num_stages),
        schedule=scheme.schedule,
        executor="inline",
        compile=False,
    ) as pipeline:
        pipeline.process(inputs[:20], targets[:20])  # first calls are slower
        with pipeline.timeline() as timeline:
            pipeline.process(inputs, targets)
    times: dict[tuple[int, str], list[float]] = {}
    for event in timeline.events:
        times.setdefault((event.stage, event.action), []).append(event.stop - event.start)
    return {action: statistics.quantiles(found, n=10)[0] for action, found in times.items()}


def durations(costs: Costs, scheme: Scheme) -> list[Durations]:
    """Return what each stage's actions cost in a scheme."""
    last = scheme.num_stages - 1
    return [
        stage.durations(scheme, is_last=index == last)
        for index, stage in enumerate(costs[scheme.num_stages])
    ]


def capacity(costs: Costs, scheme: Scheme) -> float:
    """Return the load that the slowest stage of a scheme can keep up with."""
    *others, last = durations(costs, scheme)
    slowest = max([t.forward + t.late_backward for t in others] + [last.forward + last.backward])
    return sequential_period(costs) / slowest


def sequential_period(costs: Costs) -> float:
    """Return the seconds that one sequential loop takes for a sample."""
    (stage,) = costs[1]
    return stage.kept_forward + stage.backward


def plan(costs: Costs, load: float) -> Scheme:
    """Return the greedy scheme of the fewest stages that keep up, or of the most there are."""
    schemes = [Scheme("greedy", "own", count) for count in STAGE_COUNTS]
    return next((s for s in schemes if capacity(costs, s) >= load), schemes[-1])


def contestants(costs: Costs, load: float) -> dict[str, Scheme]:
    """Return who learns at a load; one stage is sequential whatever its schedule is called."""
    planned = plan(costs, load)
    return {**FIXED, PLAN: SEQUENTIAL if planned.num_stages == 1 else planned}


def learn_under_load(
    stream: Stream, scheme: Scheme, rates: Sequence[float], costs: Costs, load: float
) -> dict[tuple[str, str], Scores]:
    """Return scores by stream and by the way in which skipped samples are answered."""
    clock = Clock(build(stream, scheme, rates), scheme.schedule, durations(costs, scheme))
    answers = clock.run(
        replicate(stream.inputs_NKD, len(rates)),
        replicate(stream.targets, len(rates)),
        sequential_period(costs) / load,
    )
    taken = float(answers.is_taken_N[stream.first_scored :].double().mean())
    outputs = {"held": answers.held_NRO, "fresh": answers.fresh_NRO}
    return {
        (name, way): replace(scores, taken=taken)
        for way, outputs_NRO in outputs.items()
        for name, scores in score(stream, outputs_NRO).items()
    }
