"""The pipeline: what a caller sees of stages, schedules and executors."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from streamflow.errors import ClosedError, SampleError, StageError
from streamflow.pipeline import checks, options, saving, trees
from streamflow.pipeline.admission import Admission, Batch
from streamflow.pipeline.inline import InlineExecutor
from streamflow.pipeline.messages import Activation, Arrival, Drain, Output, Peek, Result, Sample
from streamflow.pipeline.partition import partition
from streamflow.pipeline.randomness import Randomness
from streamflow.pipeline.schedule import orders
from streamflow.pipeline.stage import OptimizerFactory, Stage
from streamflow.pipeline.threads import ThreadsExecutor
from streamflow.pipeline.timeline import Record, Timeline


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
        optimizer: Called once per stage with the stage's parameters; gets ``step()`` per sample.
        stages: Number of stages, cut so that the largest has the fewest parameters, or the names
            of the modules to cut before.
        schedule: ``sequential``, ``1f1b``, ``greedy`` or ``lockstep``.
        backward: ``own``, ``stashed``, or with ``lockstep`` ``newest``.
        executor: ``inline``, ``threads`` or ``auto``, which is ``inline``.
        devices: None: wherever the module is.
        compile: ``"auto"`` or False.
        state: Names of buffers that are recurrent state.
        clip_norm: Largest norm of a gradient, per stage; with one stage of the whole network.
        allow_nonfinite: Learn from losses and gradients that are not finite. By default such a
            sample is predicted but causes no update in that stage and in those before it, and
            ``counters["skipped"]`` counts it.
        seed: Of dropout and other random operations, which have their own numbers per stage.

    Raises:
        OptionError: An option cannot work.
        PartitionError: The network cannot be cut as asked.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        loss: Callable[..., Tensor] | None = None,
        optimizer: OptimizerFactory | None = None,
        stages: int | Sequence[str] = 1,
        schedule: str = "1f1b",
        backward: str = "own",
        executor: str = "auto",
        devices: None = None,
        compile: str | bool = "auto",
        state: Sequence[str] = (),
        seed: int = 0,
        clip_norm: float | None = None,
        allow_nonfinite: bool = False,
    ) -> None:
        options.check_schedule(schedule, backward)
        options.check_stages(stages)
        options.check_executor(executor)
        options.check_compile(compile)
        options.check_learning(loss, optimizer)
        options.check_clip_norm(clip_norm)
        options.refuse("devices", devices, None)
        options.refuse("state", tuple(state), ())
        self._module = module
        self._loss = loss
        self._schedule, self._backward = schedule, backward
        self._device = _device(module)
        self._stages = self._build(
            stages, optimizer, seed, clip_norm=clip_norm, allow_nonfinite=allow_nonfinite
        )
        chosen = ThreadsExecutor if executor == "threads" else InlineExecutor
        self._executor: ThreadsExecutor | InlineExecutor = chosen(
            self._stages, orders(schedule, len(self._stages))
        )
        self._admission = Admission(loss, self._device, lambda row: self._peek([row])[0])
        self._num_samples = self._num_learned = 0
        self._has_gradients = self._is_closed = False
        self._failure: StageError | None = None
        self.steps: list[int] = []

    def _build(
        self,
        stages: int | Sequence[str],
        optimizer: OptimizerFactory | None,
        seed: int,
        **learning: Any,
    ) -> list[Stage]:
        cut = partition(self._module, stages)
        last = len(cut.modules) - 1
        return [
            Stage(
                module,
                index=index,
                name=name,
                lag=order.lag,
                may_keep=order.is_greedy,
                backward=self._backward,
                loss=self._loss if index == last else None,
                has_target=self._loss is not None and checks.takes_target(self._loss),
                optimizer=optimizer,
                randomness=Randomness(seed, index, self._device),
                **learning,
            )
            for index, (module, name, order) in enumerate(
                zip(cut.modules, cut.names, orders(self._schedule, last + 1), strict=True)
            )
        ]

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
        count = len(self._stages)
        return (
            f"<Pipeline {status}: {count} stage{'s' * (count > 1)}, {self._schedule}, "
            f"{self._backward}, {self._executor.name} on {self._device}, "
            f"{self._num_samples} samples, updates {self.counters['updates']}>"
        )

    @property
    def module(self) -> nn.Module:
        """The caller's own module; its weights are current after a drain."""
        return self._module

    @property
    def counters(self) -> dict[str, Any]:
        """Samples taken in and to be learned, and per stage updates made and samples skipped."""
        return {
            "samples": self._num_samples,
            "learned": self._num_learned,
            "updates": [stage.updates for stage in self._stages],
            "skipped": [stage.skipped for stage in self._stages],
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
            keys: The stream of each sample, for recurrent state.

        Returns:
            Outputs (n, ...) in input order, owned by the caller. Row i was computed with the
            weights after ``pipeline.steps[i]`` updates of stage 0.

        Raises:
            SampleError: A sample cannot enter; none has, and the pipeline is as it was.
            StageError: A stage raised; the pipeline is broken.
        """
        self._check_usable()
        options.refuse("keys", keys, None)
        samples = self._number(self._admission.admit(inputs, targets, learn, weights))
        self.steps = []
        if not samples:
            return self._no_outputs(inputs)
        results = self._exchange(samples, len(samples))
        outputs = [result for result in results if isinstance(result, Output)]
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

        Uses the weights, buffers and random numbers that the next forward would use, takes no slot
        in the schedule and writes nothing.

        Raises:
            SampleError: A sample does not fit the network; the pipeline is as it was.
        """
        self._check_usable()
        options.refuse("keys", keys, None)
        count = checks.count(inputs, "inputs")
        checks.raise_first(checks.find_not_finite(inputs, "inputs"))
        if count == 0:
            return self._no_outputs(inputs)
        rows = trees.split_samples(self._admission.own(inputs), count)
        return trees.stack_samples(self._peek(rows))

    def drain(self) -> None:
        """Apply every gradient in flight, in schedule order; the next sample enters at slot 0."""
        self._check_usable()
        if self._has_gradients:
            self._exchange([Drain()], len(self._stages))
            self._has_gradients = False

    @contextmanager
    def timeline(self) -> Iterator[Timeline]:
        """Record what each stage does, from a drain to a drain.

        >>> with pipeline.timeline() as timeline:  # doctest: +SKIP
        ...     pipeline.process(inputs, targets)
        >>> Path("timeline.svg").write_text(timeline.svg())  # doctest: +SKIP
        """
        self.drain()
        timeline = Timeline(len(self._stages))
        self._watch(timeline.events.append)
        try:
            yield timeline
            self.drain()
        finally:
            self._watch(None)

    def _watch(self, record: Record | None) -> None:
        for worker in self._executor.workers:
            worker.record = record

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
            ``random``, the random state of each stage.
        """
        if self._failure is not None:
            raise self._failure
        if not self._is_closed:
            self.drain()
        return {
            "module": saving.copy(dict(self._module.state_dict())),
            "optimizer": saving.save_optimizers(self._stages),
            "counters": self.counters,
            "random": [stage.randomness.state.clone() for stage in self._stages],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Drain, and continue from what :meth:`state_dict` returned.

        The state may come from any number of stages, executor or device. Random states are taken
        over where the number of stages is the same.
        """
        self.drain()
        self._module.load_state_dict(state["module"])
        saving.load_optimizers(self._stages, state["optimizer"])
        counters = state["counters"]
        self._num_samples, self._num_learned = counters["samples"], counters["learned"]
        updates, skipped = counters["updates"], counters["skipped"]
        random_states = state.get("random", [])
        if len(updates) != len(self._stages):
            count = len(self._stages)
            updates, skipped, random_states = [updates[0]] * count, [skipped[0]] * count, []
        for stage, made, lost in zip(self._stages, updates, skipped, strict=True):
            stage.updates, stage.skipped = made, lost
        for stage, random_state in zip(self._stages, random_states, strict=False):
            stage.randomness.state = random_state.clone()

    def _no_outputs(self, inputs: Any) -> Any:
        return trees.map_tensors(lambda t: t[:0].clone(), self._admission.output_of(inputs))

    def _check_usable(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._is_closed:
            msg = "pipeline: expected an open one, got one that was closed; build a new one"
            raise ClosedError(msg)

    def _abandon(self) -> None:
        self._executor.close()
        self._is_closed = True

    def _exchange(self, arrivals: Iterable[Arrival], count: int) -> list[Result]:
        """Send arrivals through the stages; whatever interrupts that breaks the pipeline."""
        try:
            for arrival in arrivals:
                self._executor.submit(arrival)
            return self._executor.collect(count)
        except BaseException as error:
            self._failure = error if isinstance(error, StageError) else _interrupted(error)
            self._executor.close()
            raise

    def _number(self, batch: Batch) -> list[Activation]:
        first = self._num_samples
        self._num_samples += len(batch.inputs)
        self._num_learned += sum(batch.is_learned)
        self._has_gradients = self._has_gradients or bool(batch.inputs)
        rows = zip(batch.inputs, batch.targets, batch.weights, batch.is_learned, strict=True)
        return [
            Activation(Sample(first + index, is_learned, target, weight), (values,))
            for index, (values, target, weight, is_learned) in enumerate(rows)
        ]

    def _peek(self, rows: Sequence[Any]) -> list[Any]:
        results = self._exchange([Peek((row,)) for row in rows], len(rows))
        return [_value(result, index) for index, result in enumerate(results)]


def _device(module: nn.Module) -> torch.device:
    tensor = next(module.parameters(), next(module.buffers(), None))
    return torch.device("cpu") if tensor is None else tensor.device


def _value(result: Result, index: int) -> Any:
    assert isinstance(result, Output)
    if result.error is not None:
        msg = (
            f"inputs: expected samples that the network takes, got {result.error}; "
            "compare shape and dtype"
        )
        raise SampleError(msg, index=index) from result.error
    return result.value


def _interrupted(error: BaseException) -> StageError:
    failure = StageError(
        f"pipeline: expected to finish the call, got {type(error).__name__}; "
        "build a new pipeline, this one is broken"
    )
    failure.__cause__ = error
    return failure
