"""The pipeline: what a caller sees of stages, schedules and executors."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from torch import nn

from streamflow.errors import ClosedError, OptionError, StageError
from streamflow.pipeline import checks, saving, trees
from streamflow.pipeline.admission import Admission
from streamflow.pipeline.network.partition import partition
from streamflow.pipeline.options import (
    Device,
    Loss,
    OptimizerFactory,
    Options,
    SchedulerFactory,
)
from streamflow.pipeline.planning.plan import Plan
from streamflow.pipeline.planning.planning import FirstSample, first_sample, make_plan
from streamflow.pipeline.routing.router import Router
from streamflow.pipeline.routing.variants import EAGER_SO_FAR
from streamflow.pipeline.running.assembly import assemble
from streamflow.pipeline.running.timeline import Timeline
from streamflow.pipeline.stages.lanes import device_of, move
from streamflow.pipeline.stages.recurrence import initial_state
from streamflow.pipeline.stages.updates import check_groups


class Pipeline:
    """Predicts every sample as it arrives and learns from it at once, stage by stage.

    Each sample causes one update in every stage. With more than one stage a gradient is applied
    some updates after its sample was predicted; ``schedule`` says how many and ``backward`` at
    which input and weights the gradient is taken. Equal drain points give equal results, however
    the stream is cut into calls (``greedy`` in threads excepted): bitwise with ``compile=False``,
    and otherwise to rounding.

    A pipeline is a context manager: leaving it drains, leaving it by an exception abandons what is
    in flight. It is not safe to call from two threads at the same time.

    Args:
        module: The network. It stays the caller's own: its parameters are the ones that learn.
        loss: ``(output, target)`` or ``(output)`` to a scalar; None for inference only.
        optimizer: Called once per stage with the stage's parameters; gets ``step()`` per update.
            A list has one for each stage.
        stages: Names of the modules to cut before; or a number of stages, which are cut at the
            first sample so that the slowest is fastest here (name the cuts for results that are
            the same on every machine); or ``"auto"``: the fewest stages that keep up with
            ``rate``, or without a rate the fastest number. :meth:`plan` shows the choice, and
            :meth:`state_dict` keeps it.
        rate: Samples per second to keep up with.
        schedule: ``sequential``, ``1f1b``, ``greedy`` or ``lockstep``.
        backward: ``own``, ``stashed``, or with ``lockstep`` ``newest``.
        executor: ``inline`` runs all stages in the caller's thread, ``threads`` each in one of
            its own. ``auto`` measures compiled stages both ways while they run, in calls of at
            least four samples per stage, and takes threads where they are faster by 10 %; it
            looks again every minute. Eager stages run as was measured to be faster where they
            are cut by measuring, and ``inline`` where the cuts are named. Results never depend on
            it (``greedy`` excepted).
        devices: Where stages compute: one device for all, or one per stage. The module's tensors
            move there, and back when the pipeline is closed. None: wherever the module is.
        compile: ``"auto"`` learns eagerly at once, compiles in a process of its own if learning
            goes on for ten seconds, and then learns all samples that wait in one call of
            compiled code: each by an update of its own as ever, equal to rounding. True waits for
            the compiler. That takes a C++ compiler, all stages on the CPU, SGD, Adam, AdamW,
            RMSprop or Adagrad, and no ``accumulate``; with several stages neither ``stashed`` nor
            clipping over the ``network`` either.
            Where it cannot be, or is not faster, learning stays eager, and :attr:`learning` and a
            warning say why. Unless it is False, samples that wait and are not learned share one
            forward, where the network is found to treat each row of a batch as if it were alone.
            False is eager, one by one, and bitwise reproducible.
        state: Names of buffers that are recurrent state: what a sample's forward leaves in them
            the next sample of the same key finds there. Gradients reach one sample deep.
        max_keys: Streams whose recurrent state is kept; beyond it the one that was not seen for
            the longest is forgotten, and begins anew with the values of the module's construction.
        seed: Of dropout and other random operations, which have their own numbers per stage.
        scheduler: Called once per stage with its optimizer; gets ``step()`` after every update.
        groups: Settings of the optimizer for some parameters: by a pattern of parameter names
            (``*`` matches anything), a dict like ``{"lr": 0.1}``. The first match counts.
        accumulate: Learned samples whose mean gradient makes one update, per stage.
        clip_norm: Largest norm of a gradient.
        clip_over: Over which the norm is taken: each ``stage``, or the whole ``network``, which
            ``sequential`` and one stage know in time.
        allow_nonfinite: Learn from losses and gradients that are not finite. By default such a
            sample is predicted but causes no update in that stage and in those before it (with
            ``clip_over="network"`` in none), and ``counters["skipped"]`` counts it.

    Raises:
        OptionError: An option cannot work.
        PartitionError: The network cannot be cut as asked.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        loss: Loss | None = None,
        optimizer: OptimizerFactory | Sequence[OptimizerFactory] | None = None,
        stages: int | str | Sequence[str] = 1,
        rate: float | None = None,
        schedule: str = "1f1b",
        backward: str = "own",
        executor: str = "auto",
        devices: Device | Sequence[Device] | None = None,
        compile: str | bool = "auto",
        state: Sequence[str] = (),
        max_keys: int = 10_000,
        seed: int = 0,
        scheduler: SchedulerFactory | None = None,
        groups: Mapping[str, Mapping[str, Any]] | None = None,
        accumulate: int = 1,
        clip_norm: float | None = None,
        clip_over: str = "stage",
        allow_nonfinite: bool = False,
    ) -> None:
        self._options = Options(
            loss=loss,
            optimizer=optimizer,
            stages=stages,
            rate=rate,
            schedule=schedule,
            backward=backward,
            executor=executor,
            devices=devices,
            compile=compile,
            state=state,
            max_keys=max_keys,
            seed=seed,
            scheduler=scheduler,
            groups=groups or {},
            accumulate=accumulate,
            clip_norm=clip_norm,
            clip_over=clip_over,
            allow_nonfinite=allow_nonfinite,
        )
        check_groups(module, self._options)
        self._module = module
        self._home = device_of(module)
        self._initial = initial_state(module, self._options.state)
        self._router: Router | None = None
        self._loaded: dict[str, Any] | None = None
        self._plan: Plan | None = None
        self._first: FirstSample | None = None
        self._num_samples = self._num_learned = 0
        self._is_closed = False
        self.steps: list[int] = []
        if not isinstance(stages, int | str) or stages == 1:
            self._settle([] if isinstance(stages, int | str) else stages, executor)
        elif stages != "auto":
            partition(module, stages)  # tells early that the network does not have so many

    def _settle(self, cuts: Sequence[str], executor: str) -> Router:
        """Build the stages."""
        assembly = assemble(self._module, cuts, executor, self._options, self._initial)
        router = self._router = Router(assembly, self._options)
        self._admission = Admission(
            self._options.loss,
            input_device=assembly.stages[0].lane.device,
            output_device=assembly.stages[-1].lane.device,
            has_state=bool(self._options.state),
            predict=lambda row: router.peek([row], [None])[0],
        )
        if self._loaded is not None:
            assembly.load(self._loaded)
            self._loaded = None
        return router

    def _ready(self, inputs: Any, targets: Any = None) -> Router:
        """Return what runs the stages; at the first sample it is measured how to cut."""
        self._check_usable()
        if self._router is not None:
            return self._router
        first = first_sample(inputs, targets)
        if self._loaded is not None and (cuts := self._fitting_cuts(self._loaded)) is not None:
            options = replace(self._options, stages=cuts, rate=None)
        else:
            options = self._options
        plan = self._plan = make_plan(self._module, *first, options=options, initial=self._initial)
        return self._settle(plan.cuts, plan.executor)

    def _fitting_cuts(self, state: dict[str, Any]) -> list[str] | None:
        """Return the cuts of a saved state, where the number of stages leaves them open."""
        cuts: list[str] | None = state.get("cuts")
        if cuts is None or self._options.num_stages not in (None, len(cuts) + 1):
            return None
        return cuts

    def plan(self, inputs: Any = None, targets: Any = None) -> Plan:
        """Say how the network is cut, what each stage costs, and what rate to expect.

        Measures for about a second, on copies; the pipeline stays as it is. Without ``inputs`` it
        takes the first sample that came, or what was measured to cut at that.

        Args:
            inputs: Samples as :meth:`process` takes them; the first is measured.
            targets: Their targets; without them, learning is measured with another loss.

        Raises:
            OptionError: There is no sample to measure with, or the network cannot be copied.
        """
        self._check_usable()
        if inputs is None and self._plan is not None:
            return self._plan
        if inputs is None and self._first is None:
            msg = "plan: expected a sample to measure with, got none so far; pass inputs"
            raise OptionError(msg)
        first = self._first if inputs is None else first_sample(inputs, targets)
        assert first is not None
        options = self._options
        if self._router is not None:
            self._router.drain()
            executor = self._router.assembly.executor.name
            cuts = self._router.assembly.cuts
            options = replace(options, stages=cuts, rate=None, executor=executor)
        plan = make_plan(self._module, *first, options=options, initial=self._initial)
        has_news = self._router is not None and self.learning != EAGER_SO_FAR
        return replace(plan, learning=self.learning) if has_news else plan

    def __enter__(self) -> Self:
        self._check_usable()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._abandon()

    def __repr__(self) -> str:
        status = "broken" if self._failure else "closed" if self._is_closed else "open"
        scheme = f"{self._options.schedule}, {self._options.backward}"
        if self._router is None:
            return f"<Pipeline {status}: {self._options.stages} stages to be cut, {scheme}>"
        stages = self._router.assembly.stages
        count = len(stages)
        devices = ", ".join(dict.fromkeys(str(stage.lane.device) for stage in stages))
        return (
            f"<Pipeline {status}: {count} stage{'s' * (count > 1)}, {scheme}, "
            f"{self._router.assembly.executor.name} on {devices}, "
            f"{self._num_samples} samples, updates {self.counters['updates']}, {self.learning}>"
        )

    @property
    def module(self) -> nn.Module:
        """The caller's own module; its weights are current after a drain."""
        return self._module

    @property
    def learning(self) -> str:
        """How samples are learned now: ``compiled: CODE``, or ``eager...`` with the reason."""
        return EAGER_SO_FAR if self._router is None else self._router.learning

    @property
    def counters(self) -> dict[str, Any]:
        """What happened so far.

        ``samples`` taken in and those of them to be ``learned``; per stage ``updates`` made and
        samples ``skipped``; streams whose recurrent state was ``forgotten``.
        """
        if self._loaded is not None:
            return dict(self._loaded["counters"])
        return {
            "samples": self._num_samples,
            "learned": self._num_learned,
            **self._updates,
        }

    @property
    def _updates(self) -> dict[str, Any]:
        if self._router is None:
            return {"updates": [], "skipped": [], "forgotten": 0}
        return self._router.assembly.counters

    def process(
        self,
        inputs: Any,
        targets: Any = None,
        learn: Any = None,
        weights: Any = None,
        keys: Any = None,
    ) -> Any:
        """Predict samples in order and learn from each.

        Gradients may still be in flight when the outputs are there; see :meth:`drain`.

        Args:
            inputs: Tensor, tuple or dict of tensors (n, ...); n may be 0.
            targets: The same, as the loss takes them; None where nothing is learned.
            learn: Bool (n,): which samples cause updates. By default all, if there are targets or
                the loss needs none. Targets of the others are ignored.
            weights: Float (n,): factor of each sample's loss.
            keys: The stream of each sample (n,), str or int, for recurrent state; by default all
                are of one stream.

        Returns:
            Outputs (n, ...) in input order, owned by the caller. Row i was computed with the
            weights after ``pipeline.steps[i]`` updates of stage 0.

        Raises:
            SampleError: A sample cannot enter; none has, and the pipeline is as it was.
            StageError: A stage raised; the pipeline is broken.
        """
        router = self._ready(inputs, targets)
        batch = self._admission.admit(inputs, targets, learn, weights, keys)
        batch.number = self._num_samples
        self._num_samples += batch.count
        self._num_learned += sum(batch.is_learned)
        self._first = self._first or first_sample(inputs, targets)
        self.steps = []
        if not batch.count:
            return self._no_outputs(inputs)
        outputs, self.steps = router.process(batch)
        return outputs

    def learn(
        self,
        inputs: Any,
        targets: Any = None,
        learn: Any = None,
        weights: Any = None,
        keys: Any = None,
    ) -> None:
        """Do what :meth:`process` does without its outputs, for labels that came late."""
        self.process(inputs, targets, learn, weights, keys)

    def infer(self, inputs: Any, keys: Any = None) -> Any:
        """Predict each sample as if it were the next one, and leave no trace.

        Uses the weights, buffers, recurrent state and random numbers that the next forward would
        use, takes no slot in the schedule and writes nothing.

        Raises:
            SampleError: A sample does not fit the network; the pipeline is as it was.
        """
        router = self._ready(inputs)
        count = checks.count(inputs, "inputs")
        checks.raise_first(checks.find_not_finite(inputs, "inputs"))
        streams = self._admission.keys(keys, count)
        if count == 0:
            return self._no_outputs(inputs)
        return router.infer(self._admission.own(inputs), streams)

    def drain(self) -> None:
        """Apply every gradient in flight, in schedule order; the next sample enters at slot 0."""
        self._check_usable()
        if self._router is not None:
            self._router.drain()

    @contextmanager
    def timeline(self) -> Iterator[Timeline]:
        """Record what each stage does, from a drain to a drain.

        With a number of stages or ``"auto"`` they must have been cut: by :meth:`process`.

        >>> with pipeline.timeline() as timeline:  # doctest: +SKIP
        ...     pipeline.process(inputs, targets)
        >>> Path("timeline.svg").write_text(timeline.svg())  # doctest: +SKIP

        Raises:
            OptionError: There are no stages so far.
            StageError: A stage raised; the pipeline is broken.
        """
        self.drain()
        if self._router is None:
            msg = "timeline: expected stages, got none before the first sample; process one first"
            raise OptionError(msg)
        timeline = Timeline(len(self._router.assembly.stages))
        self._router.watch(timeline.events.append)
        try:
            yield timeline
            self.drain()
        finally:
            self._router.watch(None)

    def close(self) -> None:
        """Drain and take no more samples; closing again does nothing."""
        if self._is_closed:
            return
        try:
            if self._failure is None:
                self.drain()
        finally:
            self._abandon()

    def state_dict(self) -> dict[str, Any]:
        """Drain, and return copies of all that a later pipeline needs to continue.

        Returns:
            ``module`` and ``optimizer`` under the names of the caller's module, ``counters``, and
            what else goes on: ``schedulers`` and ``random`` states per stage, ``accumulated``
            gradients, ``recurrent`` states, and the ``cuts``.

        Raises:
            StageError: The pipeline is broken, or breaks as it is drained.
        """
        if self._failure is not None:
            raise self._failure
        if not self._is_closed:
            self.drain()
        if self._loaded is not None:
            loaded: dict[str, Any] = saving.copy(self._loaded)
            return loaded
        return {
            **(self._router.assembly.save() if self._router else saving.join([])),
            "module": saving.copy(dict(self._module.state_dict())),
            "counters": self.counters,
            "cuts": list(self._router.assembly.cuts) if self._router else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Drain, and continue from what :meth:`state_dict` returned.

        The state may come from any number of stages, executor or device. Random states are taken
        over where the number of stages is the same, and so are the cuts, where this pipeline has
        not been cut yet.
        """
        self.drain()
        self._module.load_state_dict(state["module"])
        if self._router is None:
            self._loaded = saving.copy(state)
        else:
            self._router.assembly.load(state)
        self._num_samples = state["counters"]["samples"]
        self._num_learned = state["counters"]["learned"]

    def _no_outputs(self, inputs: Any) -> Any:
        return trees.map_tensors(lambda t: t[:0].clone(), self._admission.output_of(inputs))

    @property
    def _failure(self) -> StageError | None:
        return self._router.failure if self._router else None

    def _check_usable(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._is_closed:
            msg = "pipeline: expected an open one, got one that was closed; build a new one"
            raise ClosedError(msg)

    def _abandon(self) -> None:
        if self._router is not None:
            self._router.close()
        self._is_closed = True
        if self._options.devices is not None:
            move(self._module, self._module, self._home)
