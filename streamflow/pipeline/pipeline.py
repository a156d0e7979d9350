"""The pipeline: what a caller sees of stages, schedules and executors."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from torch import nn

from streamflow.errors import ClosedError
from streamflow.pipeline import checks, saving, trees
from streamflow.pipeline.admission import Admission, Batch
from streamflow.pipeline.assembly import assemble
from streamflow.pipeline.devices import device_of, move
from streamflow.pipeline.flow import Flow
from streamflow.pipeline.messages import Sample
from streamflow.pipeline.options import (
    Device,
    Loss,
    OptimizerFactory,
    Options,
    SchedulerFactory,
)
from streamflow.pipeline.partition import partition
from streamflow.pipeline.stage import Stage
from streamflow.pipeline.states import initial_state
from streamflow.pipeline.timeline import Timeline
from streamflow.pipeline.updates import check_groups


class Pipeline:
    """Predicts every sample as it arrives and learns from it at once, stage by stage.

    Each sample causes one update in every stage. With more than one stage a gradient is applied
    some updates after its sample was predicted; ``schedule`` says how many and ``backward`` at
    which input and weights the gradient is taken. Equal drain points give equal results, however
    the stream is cut into calls (``greedy`` in threads excepted).

    A pipeline is a context manager: leaving it drains, leaving it by an exception abandons what is
    in flight. It is not safe to call from two threads at the same time.

    Args:
        module: The network. It stays the caller's own: its parameters are the ones that learn.
        loss: ``(output, target)`` or ``(output)`` to a scalar; None for inference only.
        optimizer: Called once per stage with the stage's parameters; gets ``step()`` per update.
            A list has one for each stage.
        stages: Number of stages, or the names of the modules to cut before.
        schedule: ``sequential``, ``1f1b``, ``greedy`` or ``lockstep``.
        backward: ``own``, ``stashed``, or with ``lockstep`` ``newest``.
        executor: ``inline``, ``threads`` or ``auto``, which is ``inline``.
        devices: Where stages compute: one device for all, or one per stage. The module's tensors
            move there, and back when the pipeline is closed. None: wherever the module is.
        compile: ``"auto"`` or False.
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
        self._settle(partition(module, stages).names[1:], executor)
        self._num_samples = self._num_learned = 0
        self._is_closed = False
        self.steps: list[int] = []

    def _settle(self, cuts: Sequence[str], executor: str) -> None:
        """Build the stages."""
        assembly = assemble(self._module, cuts, executor, self._options, self._initial)
        self._stages: list[Stage] = assembly.stages
        self._flow = Flow(assembly, clip_norm=self._options.clip_norm)
        self._admission = Admission(
            self._options.loss,
            input_device=self._stages[0].lane.device,
            output_device=self._stages[-1].lane.device,
            has_state=bool(self._options.state),
            predict=lambda row: self._flow.peek([row], [None])[0],
        )

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
        status = "broken" if self._flow.failure else "closed" if self._is_closed else "open"
        count = len(self._stages)
        devices = ", ".join(dict.fromkeys(str(stage.lane.device) for stage in self._stages))
        return (
            f"<Pipeline {status}: {count} stage{'s' * (count > 1)}, {self._options.schedule}, "
            f"{self._options.backward}, {self._flow.assembly.executor.name} on {devices}, "
            f"{self._num_samples} samples, updates {self.counters['updates']}>"
        )

    @property
    def module(self) -> nn.Module:
        """The caller's own module; its weights are current after a drain."""
        return self._module

    @property
    def counters(self) -> dict[str, Any]:
        """What happened so far.

        ``samples`` taken in and those of them to be ``learned``; per stage ``updates`` made and
        samples ``skipped``; streams whose recurrent state was ``forgotten``.
        """
        return {
            "samples": self._num_samples,
            "learned": self._num_learned,
            "updates": [stage.updates.made for stage in self._stages],
            "skipped": [stage.updates.skipped for stage in self._stages],
            "forgotten": max((stage.states.forgotten for stage in self._stages), default=0),
        }

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
        self._check_usable()
        batch = self._admission.admit(inputs, targets, learn, weights, keys)
        samples = self._number(batch)
        self.steps = []
        if not samples:
            return self._no_outputs(inputs)
        outputs = self._flow.send(samples, batch.inputs)
        self.steps = [output.steps for output in outputs]
        return trees.stack_samples([output.value for output in outputs])

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
        self._check_usable()
        count = checks.count(inputs, "inputs")
        checks.raise_first(checks.find_not_finite(inputs, "inputs"))
        streams = self._admission.keys(keys, count)
        if count == 0:
            return self._no_outputs(inputs)
        rows = trees.split_samples(self._admission.own(inputs), count)
        return trees.stack_samples(self._flow.peek(rows, streams))

    def drain(self) -> None:
        """Apply every gradient in flight, in schedule order; the next sample enters at slot 0."""
        self._check_usable()
        self._flow.drain()

    @contextmanager
    def timeline(self) -> Iterator[Timeline]:
        """Record what each stage does, from a drain to a drain.

        >>> with pipeline.timeline() as timeline:  # doctest: +SKIP
        ...     pipeline.process(inputs, targets)
        >>> Path("timeline.svg").write_text(timeline.svg())  # doctest: +SKIP
        """
        self.drain()
        timeline = Timeline(len(self._stages))
        self._flow.watch(timeline.events.append)
        try:
            yield timeline
            self.drain()
        finally:
            self._flow.watch(None)

    def close(self) -> None:
        """Drain and take no more samples; closing again does nothing."""
        if self._is_closed:
            return
        try:
            if self._flow.failure is None:
                self.drain()
        finally:
            self._abandon()

    def state_dict(self) -> dict[str, Any]:
        """Drain, and return copies of all that a later pipeline needs to continue.

        Returns:
            ``module`` and ``optimizer`` under the names of the caller's module, ``counters``, and
            what else goes on: ``schedulers`` and ``random`` states per stage, ``accumulated``
            gradients, ``recurrent`` states, and the ``cuts``.
        """
        if self._flow.failure is not None:
            raise self._flow.failure
        if not self._is_closed:
            self.drain()
        return {
            "module": saving.copy(dict(self._module.state_dict())),
            "counters": self.counters,
            "cuts": list(self._flow.assembly.cuts),
            **saving.save(self._stages),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Drain, and continue from what :meth:`state_dict` returned.

        The state may come from any number of stages, executor or device. Random states are taken
        over where the number of stages is the same.
        """
        self.drain()
        self._module.load_state_dict(state["module"])
        saving.load(self._stages, state)
        self._num_samples = state["counters"]["samples"]
        self._num_learned = state["counters"]["learned"]

    def _no_outputs(self, inputs: Any) -> Any:
        return trees.map_tensors(lambda t: t[:0].clone(), self._admission.output_of(inputs))

    def _check_usable(self) -> None:
        if self._flow.failure is not None:
            raise self._flow.failure
        if self._is_closed:
            msg = "pipeline: expected an open one, got one that was closed; build a new one"
            raise ClosedError(msg)

    def _abandon(self) -> None:
        self._flow.close()
        self._is_closed = True
        if self._options.devices is not None:
            move(self._module, self._module, self._home)

    def _number(self, batch: Batch) -> list[Sample]:
        first = self._num_samples
        self._num_samples += len(batch.inputs)
        self._num_learned += sum(batch.is_learned)
        rows = zip(batch.is_learned, batch.targets, batch.weights, batch.keys, strict=True)
        return [Sample(first + index, *row) for index, row in enumerate(rows)]
