"""All stages of a pipeline as compiled code, beside the eager ones that they take over from.

Theory of operation. Both work on the same parameters, buffers and optimizer's state, so that either
may go on at any time. Only samples in flight lie elsewhere: in objects (`InFlight`) where stages
are eager, and here in slots of rings, sample ``n`` in slot ``n % len(rings)``:

    take_over    objects -> rings, runner.place
    learn        prepare, work -> runner.run -> finish; gradients may stay in the rings
    hand_over    runner.numbers, rings -> objects; then the rings have nothing

The code knows nothing of learning rates, counts of steps and random numbers. A call gets the
factors of as many updates as it may make, one for every sample that it takes or finds in flight;
random numbers are drawn before, in the order in which eager stages draw them. Then ``finish`` moves
counters and schedules as far as updates were made.
"""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from streamflow.pipeline import trees
from streamflow.pipeline.capture import noise
from streamflow.pipeline.capture.held_tensors import Unsupported
from streamflow.pipeline.native.bound_stage import CompiledStage
from streamflow.pipeline.native.native import Native
from streamflow.pipeline.native.rings import Done, Rows, Work
from streamflow.pipeline.stages.messages import Gradient, Sample
from streamflow.pipeline.stages.stage import Held, InFlight
from streamflow.pipeline.torch_private import pytree


class CompiledStages:
    """Compiled stages in a row.

    Attributes:
        stages: First stage first.
        runner: Their code, once it is there.
    """

    def __init__(self, stages: Sequence[CompiledStage]) -> None:
        self.stages = stages
        self.runner: Native | None = None
        recording = stages[-1].recording
        self._structure = recording.structure
        self._outputs = [(spec.shape[1:], spec.dtype) for spec in recording.outputs]
        self._num_inputs = len(stages[0].recording.inputs)
        layout = recording.learn.layout
        self._num_labels = layout.others + layout.weights

    def __repr__(self) -> str:
        state = "nothing yet" if self.runner is None else "ready"
        count = len(self.stages)
        return f"<CompiledStages: {count} stage{'s' * (count > 1)}, {state}>"

    def prepare(self) -> None:
        """Take in what has changed since the last call; before a run of calls.

        Raises:
            Unsupported: The code no longer fits.
        """
        for stage in self.stages:
            stage.prepare()

    def release(self) -> None:
        """Expect that something else counts steps or replaces tensors."""
        for stage in self.stages:
            stage.release()

    def learn(
        self, samples: Sequence[Tensor], is_learned: Sequence[bool], *, threads: bool = False
    ) -> tuple[Any, list[int]]:
        """Predict samples in order and learn from them; gradients may stay in flight.

        Args:
            samples: Tensors of inputs, targets and weights (count, ...).
            is_learned: Which are learned.
            threads: Whether each stage has a thread.

        Returns:
            The outputs, and the updates that stage 0 had made before each.
        """
        made = self.stages[0].stage.updates.made
        work = [stage.work(len(is_learned) + self._most_held) for stage in self.stages]
        rows = self._rows(samples, self._draw(len(is_learned)), is_learned)
        done = self._run(work, rows, threads=threads)
        outputs: Any = rows.outputs[0]
        if not self._structure.is_leaf():
            outputs = pytree.tree_unflatten(rows.outputs, self._structure)
        return outputs, [made + step for step in done.steps]

    def rehearse(
        self, samples: Sequence[Tensor], is_learned: Sequence[bool], in_flight: InFlight
    ) -> tuple[list[Tensor] | None, float]:
        """Learn samples as stages would that have this in flight, but on copies of all.

        Returns:
            Outputs and what would be written, or None where nothing was learned; and the
            seconds that it took.
        """
        assert self.runner is not None
        self._load(in_flight)
        updates = len(is_learned) + self._most_held
        work = [stage.copy_of(stage.work(updates)) for stage in self.stages]
        rows = self._rows(samples, self._foresee(len(is_learned)), is_learned)
        start = time.perf_counter()
        done = self.runner.run(work, rows, threads=False)
        seconds = time.perf_counter() - start
        self.runner.place([0] * len(self.stages))
        if not done.made[-1]:
            return None, seconds
        written = [
            tensor
            for stage, own in zip(self.stages, work, strict=True)
            for tensor in stage.written(own.learn)
        ]
        return [*rows.outputs, *written], seconds

    def written(self) -> list[Tensor]:
        """Return what is written as it is now."""
        return [tensor for stage in self.stages for tensor in stage.written()]

    def take_over(self, in_flight: InFlight) -> None:
        """Have this in flight.

        Raises:
            Unsupported: The gradients are others than the code's.
        """
        self._load(in_flight)

    def hand_over(self, number: int) -> InFlight:
        """Give up what is in flight; ``number`` samples have entered the pipeline."""
        assert self.runner is not None
        numbers = self.runner.numbers()
        behind = [*(following.start for following in numbers[1:]), 0]
        in_flight = InFlight(
            [
                [self._held(index, n, number - own.stop + n) for n in own]
                for index, own in enumerate(numbers)
            ],
            [
                [self._gradient(index, n) for n in range(own.start, stop)]
                for index, (own, stop) in enumerate(zip(numbers, behind, strict=True))
            ],
        )
        self.runner.place([0] * len(self.stages))
        return in_flight

    def close(self) -> None:
        """End what runs the stages."""
        if self.runner is not None:
            self.runner.close()

    @property
    def _most_held(self) -> int:
        """Samples that a stage holds at most when it is at rest."""
        assert self.runner is not None
        return len(self.runner.rings[0])

    def _draw(self, count: int) -> list[Tensor]:
        """Draw the random numbers of the samples that come next; remember how."""
        assert self.runner is not None
        found: list[Tensor] = []
        for stage, rings in zip(self.stages, self.runner.rings, strict=True):
            noises = stage.recording.noises
            if noises:
                kept = len(rings) if len(self.stages) > 1 else 0
                draw = partial(noise.draw, noises, count, kept)
                drawn, states = stage.stage.randomness.draw(draw)
                found += drawn
                last = self.runner.numbers()[0].stop + count
                for n, state in enumerate(states, last - len(states)):
                    rings.states[n % len(rings)] = state
        return found

    def _foresee(self, count: int) -> list[Tensor]:
        """Draw the same, and leave it to be drawn again."""
        found: list[Tensor] = []
        for stage in self.stages:
            if stage.recording.noises:
                found += _replayed(stage, count, stage.stage.randomness.state)
        return found

    def _rows(
        self, samples: Sequence[Tensor], noises: Sequence[Tensor], is_learned: Sequence[bool]
    ) -> Rows:
        count = len(is_learned)
        outputs = [torch.empty((count, *shape), dtype=dtype) for shape, dtype in self._outputs]
        inputs, labels = samples[: self._num_inputs], samples[self._num_inputs :]
        if True not in is_learned:
            labels = [torch.empty(0)] * self._num_labels
        return Rows(inputs, noises, labels, outputs, bytes(is_learned), count)

    def _run(self, work: Sequence[Work], rows: Rows, *, threads: bool) -> Done:
        assert self.runner is not None
        done = self.runner.run(work, rows, threads=threads)
        for stage, made, skipped in zip(self.stages, done.made, done.skipped, strict=True):
            stage.finish(made, skipped)
        return done

    def _load(self, in_flight: InFlight) -> None:
        """Copy what is in flight."""
        assert self.runner is not None
        counts = [len(held) for held in in_flight.held]
        self.runner.place(counts)
        for index, (held, gradients) in enumerate(
            zip(in_flight.held, in_flight.gradients, strict=True)
        ):
            rings = self.runner.rings[index]
            numbers = range(counts[0] - counts[index], counts[0])
            for n, sample in zip(numbers, held, strict=True):
                buffers = sample.buffers or {}
                names = self.stages[index].recording.snapshots
                _fill(rings.inputs, n, trees.tensors(sample.values))
                _fill(rings.snapshots, n, [buffers[name] for name in names])
                if rings.noises:
                    assert sample.random is not None
                    drawn = _replayed(self.stages[index], 1, sample.random)
                    _fill(rings.noises, n, [tensor[0] for tensor in drawn])
                    rings.states[n % len(rings)] = sample.random
            for n, gradient in zip(numbers, gradients, strict=False):
                rings.is_empty[n % len(rings)] = gradient.values is None
                if gradient.values is not None:
                    self._check_reached(index, gradient.values)
                    _fill(rings.gradients, n, [g for g in gradient.values if g is not None])

    def _check_reached(self, index: int, gradients: Sequence[Tensor | None]) -> None:
        reached = self.stages[index].recording.reached
        if [gradient is not None for gradient in gradients] != reached:
            msg = "whether a gradient exists changes from sample to sample"
            raise Unsupported(msg)

    def _held(self, index: int, n: int, number: int) -> Held:
        assert self.runner is not None
        stage, rings = self.stages[index], self.runner.rings[index]
        names = stage.recording.snapshots
        values = pytree.tree_unflatten(_copies(rings.inputs, n), stage.recording.values)
        buffers = dict(zip(names, _copies(rings.snapshots, n), strict=True))
        random = rings.states[n % len(rings)]
        return stage.stage.recalled(Sample(number, True), values, buffers, random)

    def _gradient(self, index: int, n: int) -> Gradient:
        assert self.runner is not None
        rings = self.runner.rings[index]
        if rings.is_empty[n % len(rings)]:
            return Gradient(None)
        found = iter(_copies(rings.gradients, n))
        reached = self.stages[index].recording.reached
        return Gradient([next(found) if is_there else None for is_there in reached])


def _replayed(stage: CompiledStage, count: int, state: Tensor) -> list[Tensor]:
    """Draw the random numbers of so many samples again."""
    draw = partial(noise.draw, stage.recording.noises, count, 0)
    drawn: list[Tensor] = stage.stage.randomness.replay(draw, state)[0]
    return drawn


def _fill(rings: Sequence[Tensor], n: int, tensors: Sequence[Tensor]) -> None:
    for ring, tensor in zip(rings, tensors, strict=True):
        ring[n % len(ring)] = tensor.detach()


def _copies(rings: Sequence[Tensor], n: int) -> list[Tensor]:
    return [ring[n % len(ring)].clone() for ring in rings]
