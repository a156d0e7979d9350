"""From a network and one sample to a plan: measure, balance, try.

A model of the costs proposes where to cut. How fast stages in threads are it cannot say: eager
stages fight for the interpreter lock, and what memory does depends on the thread. So each proposal
is tried, in turn with one stage inline, which is the plan wherever nothing else is clearly faster.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from torch import Tensor, nn

from streamflow.errors import OptionError
from streamflow.pipeline import checks, trees
from streamflow.pipeline.options import Options
from streamflow.pipeline.planning.balance import Cut, balance, cut_at, fewest_stages
from streamflow.pipeline.planning.costs import Cost, Profile
from streamflow.pipeline.planning.plan import Plan, PlannedLayer, PlannedStage, Tried
from streamflow.pipeline.planning.profiling import Surroundings, profile
from streamflow.pipeline.planning.rehearsal import (
    Rehearsal,
    Subject,
    in_turn,
    low,
    low_costs,
    on_one_device,
    recorded,
)
from streamflow.pipeline.schedule import orders
from streamflow.pipeline.stages.recurrence import Set

FirstSample = tuple[Any, Any]
"""An input and its target, or None, with a leading dimension of 1."""

# More stages learn later, and threads cost cores: they must be clearly faster.
_MARGIN = 0.1
# So many numbers of stages in a row that are not faster end the search.
_PATIENCE = 2
# Below this part of what the stages allow, it is not they that limit the rate.
_HINDERED = 0.8
_SAMPLES_PER_STAGE = 8
_LATENCIES = 4


def first_sample(inputs: Any, targets: Any) -> FirstSample:
    """Return a copy of the first sample of a call, or of zeros where it has none.

    Args:
        inputs: Tensors (n, ...); n may be 0.
        targets: The same, or None.

    Raises:
        SampleError: The inputs have no leading dimension of samples.
    """
    checks.count(inputs, "inputs")

    def first(tensor: Tensor) -> Tensor:
        found = tensor.detach()[:1].clone()
        return found if len(found) else found.new_zeros(1, *found.shape[1:])

    return trees.map_tensors(first, inputs), trees.map_tensors(first, targets)


def make_plan(
    module: nn.Module,
    sample: Any,
    target: Any = None,
    *,
    options: Options,
    initial: Set | None = None,
    seconds: float = 1.0,
) -> Plan:
    """Measure a network with one sample and say how to run it; the network stays as it is.

    ``options.stages`` decides what is looked for: names of modules are taken as they are, an int is
    balanced, and ``"auto"`` gives the fewest stages that reach ``options.rate``, else the fastest.
    ``options.executor`` ``"auto"`` gives the faster one, ``inline`` unless ``threads`` clearly is;
    with ``"auto"`` for both the plan is never slower than one stage inline.

    Args:
        module: The network.
        sample: One input with a leading dimension of 1, as the pipeline takes it.
        target: Its target (1, ...). Without one, learning is measured with a loss of the output
            alone, which costs about the same.
        options: How the pipeline is to be built.
        initial: Recurrent state that a stream begins with.
        seconds: How long to measure, about; networks that need long for a sample take longer.

    Raises:
        OptionError: The network cannot be copied.
        PartitionError: The network cannot be cut as asked.
        SampleError: The sample does not fit network or loss.
    """
    if options.loss is None or not checks.takes_target(options.loss):
        target = None
    elif target is None:
        options = replace(options, loss=_any_loss)
    subject = Subject(module, sample, target, options=options, initial=initial or {})
    measured, surroundings = profile(subject, seconds=seconds / 2)
    trials = _Trials(subject, measured, surroundings.cores, seconds / 4)
    cut = _choose(options, measured, trials)
    names = measured.names(cut.starts)
    costs = _stage_costs(subject, names, seconds=seconds / 8)
    return _plan(options, measured, surroundings, cut, costs, trials)


def _any_loss(output: Any) -> Tensor:
    losses = [tensor.square().mean() for tensor in trees.floats(output)]
    return sum(losses[1:], losses[0])


def _choose(options: Options, profile: Profile, trials: "_Trials") -> Cut:
    def lags(num_stages: int) -> list[int]:
        return [order.lag for order in orders(options.schedule, num_stages)]

    stashes = options.backward == "stashed"
    if isinstance(options.stages, str):
        return fewest_stages(
            profile,
            trials.numbers(),
            lags,
            trials.rate_of,
            options.rate,
            stashes=stashes,
            margin=_MARGIN,
        )
    if isinstance(options.stages, int):
        cut = balance(profile, lags(options.stages), stashes=stashes)
    else:
        names = [layer.name for layer in profile.layers]
        starts = [names.index(name) for name in options.stages]
        cut = cut_at(profile, starts, lags(len(starts) + 1))
    trials.rate_of(cut)
    return cut


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How a way to run the network did: see :class:`Plan` for rate and latencies, in eager code."""

    rate: float
    learning: str
    latency: float
    loaded_latency: float

    @property
    def is_compiled(self) -> bool:
        """Whether the rate is that of compiled code."""
        return self.learning.startswith("compiled")


class _Trials:
    """Ways to run a network, each tried in turn with one stage inline.

    Attributes:
        tried: By number of stages and executor; rates as if all were measured together.
    """

    def __init__(self, subject: Subject, profile: Profile, cores: int, seconds: float) -> None:
        self._subject, self._options = subject, subject.options
        self._profile = profile
        self._cores = cores
        self._seconds = seconds
        self._num_in_vain = 0
        self.tried: dict[tuple[int, str], _Outcome] = {}

    def numbers(self) -> Iterator[int]:
        """Yield numbers of stages that may be worth trying, until more do not help.

        Raises:
            OptionError: The options fit no number of stages.
        """
        most = self._profile.max_stages
        if len(self._profile.devices) == 1:
            # Stages on one device overlap only in threads, and only as many as there are cores.
            most = 1 if self._options.executor == "inline" else min(most, self._cores)
        possible = [number for number in range(1, most + 1) if self._is_possible(number)]
        if not possible:
            self._options.check_num_stages(1)
        for number in possible:
            if self._num_in_vain < _PATIENCE:
                yield number

    def _is_possible(self, num_stages: int) -> bool:
        try:
            self._options.check_num_stages(num_stages)
        except OptionError:
            return False
        return True

    def rate_of(self, cut: Cut) -> float:
        """Try a cut; return the samples per second of the executor that would run it."""
        num_stages = len(cut.loads)
        before = max((outcome.rate for outcome in self.tried.values()), default=0.0)
        ways = self._ways(num_stages)
        alone, *found = self._try(self._profile.names(cut.starts), ways)
        factor = self.tried.setdefault((1, "inline"), alone).rate / alone.rate
        for executor, outcome in zip(ways, found, strict=True):
            self.tried[num_stages, executor] = replace(outcome, rate=outcome.rate * factor)
        outcome = self.tried[num_stages, self.executor(num_stages)]
        rate = outcome.rate if num_stages == 1 or self._counts(outcome) else 0.0
        self._num_in_vain = 0 if rate > before * (1 + _MARGIN) else self._num_in_vain + 1
        return rate

    def _counts(self, outcome: _Outcome) -> bool:
        """Say whether several stages are no worse than they look: one may yet be compiled."""
        alone = self.tried[1, "inline"]
        may_be_compiled = alone.is_compiled or not alone.learning
        return outcome.is_compiled or not may_be_compiled

    def executor(self, num_stages: int) -> str:
        """Return what runs so many stages: inline unless threads are clearly faster."""
        if self._options.executor != "auto":
            return self._options.executor

        def rate(executor: str) -> float:
            found = self.tried.get((num_stages, executor))
            return found.rate if found else 0.0

        return "threads" if rate("threads") > rate("inline") * (1 + _MARGIN) else "inline"

    def _ways(self, num_stages: int) -> list[str]:
        """Return the executors to try beside one stage inline."""
        asked = self._options.executor
        ways = ["inline", "threads"] if asked == "auto" else [asked]
        is_searching = isinstance(self._options.stages, str) and len(self._profile.devices) == 1
        # In one thread more stages on the same device only cost more.
        is_needless = num_stages == 1 or is_searching
        return [way for way in ways if way != "inline" or not is_needless]

    def _try(self, cuts: Sequence[str], ways: Sequence[str]) -> list[_Outcome]:
        """Return how one stage inline does, and each way."""
        copied = self._subject.copy()
        alone = self._subject.copy() if len(self._profile.devices) > 1 else copied
        changes = on_one_device(self._options, self._profile.devices[0].name)
        rehearsals = [Rehearsal(alone, (), "inline", may_compile=True, **changes)]
        try:
            rehearsals += [Rehearsal(copied, cuts, way, may_compile=True) for way in ways]
            for rehearsal in rehearsals:
                # Stages overlap only where there are several samples.
                least = _SAMPLES_PER_STAGE * (len(rehearsal.stages) - 1)
                rehearsal.settle(rehearsal.process, at_least=max(least, 1))
            rounds = in_turn(
                [alone.module, copied.module],
                [rehearsal.process for rehearsal in rehearsals],
                seconds=self._seconds,
            )
            return [_outcome(*pair) for pair in zip(rehearsals, rounds, strict=True)]
        finally:
            for rehearsal in rehearsals:
                rehearsal.close()


def _outcome(rehearsal: Rehearsal, times: Sequence[float]) -> _Outcome:
    learning = rehearsal.learning
    latency = low([rehearsal.latency(1) for _ in range(_LATENCIES)])
    # A single stage lets no sample wait that has entered.
    loaded = rehearsal.latency(rehearsal.count) if len(rehearsal.stages) > 1 else latency
    # Not a low time: stages in threads are now fast and now slow, as they get the lock.
    return _Outcome(1 / median(times), learning, latency, loaded)


def _plan(
    options: Options,
    profile: Profile,
    surroundings: Surroundings,
    cut: Cut,
    costs: Sequence[Cost],
    trials: _Trials,
) -> Plan:
    executor = trials.executor(len(costs))
    found = trials.tried[len(costs), executor]
    periods = _periods(costs, executor, options.schedule, surroundings.cores)
    # Only the whole was measured compiled: all parts are faster alike.
    factor = 1 / (found.rate * max(periods.values())) if found.is_compiled else 1.0
    return Plan(
        stages=_stages(profile, cut, [cost.scaled(factor) for cost in costs], options),
        cuts=profile.names(cut.starts),
        schedule=options.schedule,
        backward=options.backward,
        executor=executor,
        rate=found.rate,
        wanted=options.rate,
        latency=found.latency * factor,
        loaded_latency=found.loaded_latency * factor,
        call=surroundings.call,
        limit=_limit(periods, factor, found.rate, executor, surroundings.admission),
        learning=found.learning,
        is_compiled=found.is_compiled,
        tried=tuple(Tried(*way, outcome.rate) for way, outcome in trials.tried.items()),
    )


def _stage_costs(subject: Subject, cuts: Sequence[str], *, seconds: float) -> list[Cost]:
    """Measure what each stage takes, one at a time."""
    copied = subject.copy()
    rehearsal = Rehearsal(copied, cuts, "inline", **recorded(subject.options, len(cuts) + 1))
    rehearsal.settle(rehearsal.total)
    return low_costs(in_turn([copied.module], [rehearsal.record], seconds=seconds)[0])


def _stages(
    profile: Profile, cut: Cut, costs: Sequence[Cost], options: Options
) -> tuple[PlannedStage, ...]:
    bounds = (0, *cut.starts, len(profile.layers))
    stages = []
    own_orders = orders(options.schedule, len(costs))
    for index, (cost, order) in enumerate(zip(costs, own_orders, strict=True)):
        first, stop = bounds[index : index + 2]
        device = profile.device(index)
        predicted = profile.cost(first, stop, index, order.lag)
        factor = cost.total / predicted.total if predicted.total else 1.0
        layers = tuple(
            PlannedLayer(
                layer.name,
                layer.costs[device.kind].with_lag(order.lag).scaled(factor),
                layer.parameter_bytes,
                layer.boundary_bytes,
            )
            for layer in profile.layers[first:stop]
        )
        memory = profile.memory(first, stop, order.lag, stashes=options.backward == "stashed")
        stages.append(PlannedStage(layers, order.lag, device.name, cost, memory))
    return tuple(stages)


def _periods(costs: Sequence[Cost], executor: str, schedule: str, cores: int) -> dict[str, float]:
    """Return the seconds of each sample that what the stages share allows, by what it is."""
    loads = [cost.total for cost in costs]
    slowest = f"stage {loads.index(max(loads))}"
    if executor == "inline":
        shared = slowest if len(loads) == 1 else "the one thread that runs all stages"
        return {shared: sum(loads)}
    periods = {slowest: max(loads), f"{cores} cores": sum(loads) / cores}
    if schedule == "sequential" and len(loads) > 1:
        periods[f"{schedule}, in which stages wait for each other"] = sum(loads)
    return periods


def _limit(
    periods: dict[str, float], factor: float, rate: float, executor: str, admission: float
) -> str:
    """Say what keeps the rate from being higher."""
    if executor == "inline":
        return next(iter(periods))
    seconds = {name: period * factor for name, period in periods.items()}
    seconds["the caller, who takes samples in"] = admission
    limit = max(seconds, key=lambda name: seconds[name])
    if rate * seconds[limit] < _HINDERED:
        return "threads that hinder each other (interpreter lock, hand-over, memory)"
    return limit
