"""From a network and one sample to a plan: measure, balance, try.

A model of the costs proposes where to cut. How fast stages in threads are it cannot say: eager
stages fight for the interpreter lock, and what memory does depends on the thread. So each proposal
is tried, in turn with one stage inline, which is the plan wherever nothing else is clearly faster.
"""

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from torch import nn

from streamflow.errors import OptionError
from streamflow.pipeline import checks
from streamflow.pipeline.options import Options
from streamflow.pipeline.planning.balance import Cut, balance, cut_at, fewest_stages
from streamflow.pipeline.planning.costs import Cost, Profile
from streamflow.pipeline.planning.forecast import forecast
from streamflow.pipeline.planning.plan import Plan, PlannedLayer, PlannedStage, Tried
from streamflow.pipeline.planning.profiling import (
    Surroundings,
    on_one_device,
    profile,
    recorded,
)
from streamflow.pipeline.planning.rehearsal import Rehearsal, Subject, in_turn, low_costs
from streamflow.pipeline.routing.router import EAGER_SO_FAR
from streamflow.pipeline.schedule import Order, orders
from streamflow.pipeline.stages.recurrence import Set

# More stages learn later, and threads cost cores: they must be clearly faster.
_MARGIN = 0.1
# So many numbers of stages in a row that are not faster end the search.
_PATIENCE = 2
# Below this part of what the stages allow, it is not they that limit the rate.
_HINDERED = 0.8
_SAMPLES_PER_STAGE = 8


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
        target: Its target (1, ...), where the loss takes one.
        options: How the pipeline is to be built.
        initial: Recurrent state that a stream begins with.
        seconds: How long to measure, about; networks that need long for a sample take longer.

    Raises:
        OptionError: The network cannot be copied, or there is no target to learn from.
        PartitionError: The network cannot be cut as asked.
        SampleError: The sample does not fit network or loss.
    """
    has_target = options.loss is not None and checks.takes_target(options.loss)
    if has_target and target is None:
        msg = (
            "targets: expected one to measure how the network learns, got None; pass the target of "
            "the sample"
        )
        raise OptionError(msg)
    subject = Subject(module, sample, target, options=options, initial=initial or {})
    measured, surroundings = profile(subject, seconds=seconds / 2)
    trials = _Trials(subject, measured, surroundings.cores, seconds / 4)
    cut = _choose(options, measured, trials)
    names = measured.names(cut.starts)
    costs = _stage_costs(subject, names, seconds=seconds / 8)
    return _plan(options, measured, surroundings, cut, costs, trials)


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


class _Trials:
    """Ways to run a network, each tried in turn with one stage inline.

    Attributes:
        tried: Samples per second by number of stages and executor, all as if measured together.
        learning: How each of them learned.
    """

    def __init__(self, subject: Subject, profile: Profile, cores: int, seconds: float) -> None:
        self._subject, self._options = subject, subject.options
        self._profile = profile
        self._cores = cores
        self._seconds = seconds
        self._num_in_vain = 0
        self.tried: dict[tuple[int, str], float] = {}
        self.learning: dict[tuple[int, str], str] = {}

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
        before = max(self.tried.values(), default=0.0)
        ways = self._ways(num_stages)
        times, learning = self._times(self._profile.names(cut.starts), ways)
        self.learning.setdefault((1, "inline"), learning[0])
        self.learning |= {(num_stages, w): how for w, how in zip(ways, learning[1:], strict=True)}
        reference = self.tried.setdefault((1, "inline"), 1 / times[0])
        for executor, seconds in zip(ways, times[1:], strict=True):
            self.tried[num_stages, executor] = reference * times[0] / seconds
        way = num_stages, self.executor(num_stages)
        rate = self.tried[way] if self._counts(way) else 0.0
        self._num_in_vain = 0 if rate > before * (1 + _MARGIN) else self._num_in_vain + 1
        return rate

    def _counts(self, way: tuple[int, str]) -> bool:
        """Say whether a way is no worse than it looks: one stage may yet be compiled, or is."""
        alone = self.learning[1, "inline"]
        is_compiled = alone == EAGER_SO_FAR or alone.startswith("compiled")
        return way[0] == 1 or not is_compiled or self.is_compiled(way)

    def is_compiled(self, way: tuple[int, str]) -> bool:
        """Say whether a way was measured with compiled code."""
        return self.learning[way].startswith("compiled")

    def executor(self, num_stages: int) -> str:
        """Return what runs so many stages: inline unless threads are clearly faster."""
        if self._options.executor != "auto":
            return self._options.executor
        inline = self.tried.get((num_stages, "inline"), 0.0)
        threads = self.tried.get((num_stages, "threads"), 0.0)
        return "threads" if threads > inline * (1 + _MARGIN) else "inline"

    def _ways(self, num_stages: int) -> list[str]:
        """Return the executors to try beside one stage inline."""
        asked = self._options.executor
        ways = ["inline", "threads"] if asked == "auto" else [asked]
        is_searching = isinstance(self._options.stages, str) and len(self._profile.devices) == 1
        # In one thread more stages on the same device only cost more.
        is_needless = num_stages == 1 or is_searching
        return [way for way in ways if way != "inline" or not is_needless]

    def _times(self, cuts: Sequence[str], ways: Sequence[str]) -> tuple[list[float], list[str]]:
        """Return the seconds of a sample with one stage inline and in each way, and how it was."""
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
            learning = [rehearsal.learning for rehearsal in rehearsals]
        finally:
            for rehearsal in rehearsals:
                rehearsal.close()
        # Not a low time: stages in threads are now fast and now slow, as they get the lock.
        return [median(times) for times in rounds], learning


def _plan(
    options: Options,
    profile: Profile,
    surroundings: Surroundings,
    cut: Cut,
    costs: Sequence[Cost],
    trials: _Trials,
) -> Plan:
    num_stages = len(costs)
    executor = trials.executor(num_stages)
    own_orders = orders(options.schedule, num_stages)
    hand_over = 0.0 if executor == "inline" else surroundings.hand_over
    played = forecast(
        costs,
        own_orders,
        processors=1 if executor == "inline" else surroundings.cores,
        hand_over=hand_over,
    )
    rate = trials.tried[num_stages, executor]
    is_compiled = trials.is_compiled((num_stages, executor))
    slowdown = played.rate / rate
    if is_compiled:  # only the whole was measured compiled: all parts are faster alike
        costs = [cost.scaled(slowdown) for cost in costs]
    # Where threads hinder each other, everything takes longer in the same proportion.
    elif executor == "inline" or slowdown < 1.0:
        slowdown = 1.0
    return Plan(
        stages=_stages(profile, cut, costs, own_orders, stashes=options.backward == "stashed"),
        cuts=profile.names(cut.starts),
        schedule=options.schedule,
        backward=options.backward,
        executor=executor,
        rate=rate,
        wanted=options.rate,
        latency=sum(cost.forward for cost in costs) + (num_stages - 1) * hand_over,
        loaded_latency=played.latency * slowdown,
        call=surroundings.call,
        limit=_limit(
            costs,
            rate,
            rate if is_compiled else played.rate,
            executor,
            options.schedule,
            surroundings,
        ),
        learning=trials.learning[num_stages, executor] if is_compiled else "",
        is_compiled=is_compiled,
        tried=tuple(Tried(*way, rate) for way, rate in trials.tried.items()),
    )


def _stage_costs(subject: Subject, cuts: Sequence[str], *, seconds: float) -> list[Cost]:
    """Measure what each stage takes, one at a time."""
    copied = subject.copy()
    rehearsal = Rehearsal(copied, cuts, "inline", **recorded(subject.options, len(cuts) + 1))
    rehearsal.settle(rehearsal.total)
    return low_costs(in_turn([copied.module], [rehearsal.record], seconds=seconds)[0])


def _stages(
    profile: Profile, cut: Cut, costs: Sequence[Cost], own_orders: Sequence[Order], *, stashes: bool
) -> tuple[PlannedStage, ...]:
    bounds = (0, *cut.starts, len(profile.layers))
    stages = []
    for index, (cost, order) in enumerate(zip(costs, own_orders, strict=True)):
        first, stop = bounds[index : index + 2]
        device = profile.device(index)
        predicted = profile.cost(first, stop, index, order.lag)
        factor = cost.total / predicted.total if predicted.total else 1.0
        layers = tuple(
            PlannedLayer(
                layer.name,
                layer.costs[device.kind].of(order.lag).scaled(factor),
                layer.parameter_bytes,
                layer.boundary_bytes,
            )
            for layer in profile.layers[first:stop]
        )
        memory = profile.memory(first, stop, order.lag, stashes=stashes)
        stages.append(PlannedStage(layers, order.lag, device.name, cost, memory))
    return tuple(stages)


def _limit(
    costs: Sequence[Cost],
    rate: float,
    played: float,
    executor: str,
    schedule: str,
    surroundings: Surroundings,
) -> str:
    """Say what keeps the rate from being higher."""
    loads = [cost.total for cost in costs]
    slowest = f"stage {loads.index(max(loads))}"
    if executor == "inline":
        return slowest if len(loads) == 1 else "the one thread that runs all stages"
    reach = {
        slowest: max(loads),
        f"{surroundings.cores} cores": sum(loads) / surroundings.cores,
        "the caller, who takes samples in": surroundings.admission,
    }
    limit = max(reach, key=lambda name: reach[name])
    allowed = 1 / max(reach[limit], 1 / played)
    if rate < allowed * _HINDERED:
        return "threads that hinder each other (interpreter lock, hand-over, memory)"
    if played * reach[limit] < _HINDERED:
        return f"{schedule}, in which stages wait for each other"
    return limit
