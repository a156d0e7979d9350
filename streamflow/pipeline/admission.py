"""What happens to samples before they enter: checked, copied and cut into single ones."""

import math
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from streamflow.errors import OptionError, SampleError
from streamflow.pipeline import checks, trees
from streamflow.pipeline.stages import lanes
from streamflow.pipeline.stages.messages import Sample
from streamflow.pipeline.stages.recurrence import Key, as_keys

Predict = Callable[[Any], Any]
Loss = Callable[[Sample, Any], Tensor]


class AdmittedBatch:
    """Samples that may enter, all tensors (n, ...).

    Attributes:
        inputs: As the network takes them.
        targets: As the loss takes them, or None.
        weights: Factor of each sample's loss (n,), or None.
        is_learned: Which samples cause updates.
        keys: The stream of each.
        count: How many they are.
        number: Samples that entered the pipeline before these.
    """

    def __init__(
        self,
        inputs: Any,
        targets: Any,
        weights: Tensor | None,
        is_learned: list[bool],
        keys: list[Key],
    ) -> None:
        self.inputs, self.targets, self.weights = inputs, targets, weights
        self.is_learned, self.keys = is_learned, keys
        self.count = len(is_learned)
        self._tensors: list[Tensor] | None = None
        self.number = 0

    def samples(self, first: int, stop: int) -> list[tuple[Sample, Any]]:
        """Return some samples, each with its inputs."""
        return [
            (Sample(self.number + index, is_learned, label, factor, key), row)
            for index, (row, label, factor, is_learned, key) in enumerate(
                self._parts[first:stop], first
            )
        ]

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors of inputs, targets and weights."""
        if self._tensors is None:  # a cached property takes a lock, which a call would feel
            weights = [] if self.weights is None else [self.weights]
            targets = [] if self.targets is None else trees.tensors(self.targets)
            self._tensors = [*trees.tensors(self.inputs), *targets, *weights]
        return self._tensors

    @cached_property
    def _parts(self) -> list[tuple[Any, Any, Tensor | None, bool, Key]]:
        """Inputs, target, weight and so on of each sample."""
        count = self.count
        nothing = [None] * count
        labels = nothing if self.targets is None else trees.split_samples(self.targets, count)
        factors = nothing if self.weights is None else self.weights.unbind()
        rows = trees.split_samples(self.inputs, count)
        return list(zip(rows, labels, factors, self.is_learned, self.keys, strict=True))

    def count_quiet(self, first: int) -> int:
        """Count the samples from here that are not learned."""
        with suppress(ValueError):
            return self.is_learned.index(True, first) - first
        return self.count - first

    def run_length(self, first: int, most: int, shared: int | None) -> int:
        """Count the samples from here that a call takes: of one stream, up to so many.

        Args:
            first: Where the call begins.
            most: Samples of a call.
            shared: So many in a row that are not learned are left to a forward that they share.
        """
        stop = min(first + most, self.count)
        if shared is not None:
            place = bytes(self.is_learned[first:stop]).find(bytes(shared))
            stop = stop if place < 0 else first + place
        keys = self.keys[first:stop]
        if keys.count(self.keys[first]) == len(keys):
            return len(keys)
        return next(place for place, key in enumerate(keys) if key != keys[0])


class Admission:
    """Lets in what network and loss take; shows them one sample of each new kind first.

    Args:
        loss: The loss as the caller gave it.
        input_device: Where the first stage runs.
        output_device: Where the last stage runs.
        has_state: Whether the network carries recurrent state.
        predict: Predicts one sample without a trace.
    """

    def __init__(
        self,
        loss: Callable[..., Tensor] | None,
        *,
        input_device: torch.device,
        output_device: torch.device,
        has_state: bool,
        predict: Predict,
    ) -> None:
        self.has_target = loss is not None and checks.takes_target(loss)
        self._loss = loss
        self._ignored_class = checks.classification(loss)
        self._input_device, self._output_device = input_device, output_device
        self._has_state = has_state
        self._predict = predict
        self._outputs: dict[Any, Any] = {}
        self._fitting: set[Any] = set()
        self._usual: Any = None
        self._usual_inputs: Any = None

    def admit(
        self, inputs: Any, targets: Any, learn: Any, weights: Any, keys: Any
    ) -> AdmittedBatch:
        """Check all samples of a call.

        Raises:
            SampleError: A sample cannot enter; its index is that of the first one.
        """
        if learn is None and weights is None and keys is None and self._is_usual(inputs, targets):
            count = len(inputs)
            labels = None if targets is None else targets.clone()
            return AdmittedBatch(
                inputs.clone(), labels, None, [labels is not None] * count, [None] * count
            )
        count = checks.count(inputs, "inputs")
        mask = self._mask(targets, learn, count)
        checks.raise_first(
            checks.find_not_finite(inputs, "inputs"),
            checks.find_not_finite(targets, "targets", mask),
            checks.find_not_finite(weights, "weights", mask),
        )
        factors = self._factors(weights, count)
        streams = self.keys(keys, count)
        if count:
            self._check_fit(inputs, targets, mask)
        labels = None if targets is None else self._labels(targets)
        return AdmittedBatch(self.own(inputs), labels, factors, mask.tolist(), streams)

    def _is_usual(self, inputs: Any, targets: Any) -> bool:
        """Say whether there is nothing to check: plain, finite tensors of a kind known to fit."""
        return (
            type(inputs) is Tensor
            and inputs.device == self._input_device
            and not inputs.requires_grad
            and self._is_usual_kind(inputs, targets)
            and math.isfinite(inputs.sum())
        )

    def _is_usual_kind(self, inputs: Tensor, targets: Any) -> bool:
        if targets is None:
            return bool(self._usual_inputs == (inputs.shape[1:], inputs.dtype, inputs.dim()))
        return (
            type(targets) is Tensor
            and self._usual == _kind(inputs, targets)
            and len(inputs) == len(targets)
            and targets.device == self._output_device
            and not targets.requires_grad
            and math.isfinite(targets if targets.numel() == 1 else targets.sum())
        )

    def own(self, inputs: Any) -> Any:
        """Copy what the caller may change while samples are in flight to the first stage."""
        return lanes.own(inputs, self._input_device)

    def _labels(self, targets: Any) -> Any:
        return lanes.own(targets, self._output_device)

    def keys(self, keys: Any, count: int) -> list[Key]:
        """Return the stream of each sample.

        Raises:
            OptionError: The network has no recurrent state, or a key is of another type.
            SampleError: There is not one per sample.
        """
        if keys is not None and not self._has_state:
            msg = "keys: expected none without recurrent state, got some; name its buffers in state"
            raise OptionError(msg)
        try:
            streams = as_keys(keys, count)
        except TypeError as error:
            msg = f"keys: {error}; convert them"
            raise OptionError(msg) from error
        checks.check_count(len(streams), count, "keys")
        return streams

    def output_of(self, inputs: Any) -> Any:
        """Return one output of the kind that such inputs give; its values mean nothing."""
        one = trees.map_tensors(lambda t: t[:1] if len(t) else t.new_zeros(1, *t.shape[1:]), inputs)
        kind = trees.shapes(one)
        if kind not in self._outputs:
            self._outputs[kind] = self._predict(self.own(one))
        return self._outputs[kind]

    def _mask(self, targets: Any, learn: Any, count: int) -> Tensor:
        if targets is not None and not self.has_target:
            got = "is None" if self._loss is None else "takes the output alone"
            msg = f"targets: expected none, as the loss {got}, got some; leave them out"
            raise OptionError(msg)
        can_learn = self._loss is not None and (targets is not None or not self.has_target)
        mask = checks.learn_mask(learn, count, can_learn)
        if not can_learn and bool(mask.any()):
            msg = "learn: expected targets for samples to learn from, got none; pass targets"
            raise SampleError(msg, index=int(mask.nonzero()[0, 0]))
        if targets is not None:
            checks.check_count(checks.count(targets, "targets"), count, "targets")
        return mask

    def _factors(self, weights: Any, count: int) -> Tensor | None:
        if weights is None:
            return None
        factors = torch.as_tensor(weights, device=self._output_device)
        checks.check_count(checks.count(factors, "weights"), count, "weights")
        return factors.detach().clone()

    def _check_fit(self, inputs: Any, targets: Any, mask: Tensor) -> None:
        output = self.output_of(inputs)
        cannot_learn = targets is None and (self._loss is None or self.has_target)
        if cannot_learn and type(inputs) is Tensor and not inputs.is_complex():
            self._usual_inputs = inputs.shape[1:], inputs.dtype, inputs.dim()
        if self._ignored_class is not None and isinstance(targets, Tensor):
            num_classes = trees.tensors(output)[0].shape[1]
            checks.raise_first(
                checks.find_bad_class(targets, mask, num_classes, self._ignored_class)
            )
        kind = (trees.shapes(_first(inputs)), trees.shapes(_first(targets)))
        if self._loss is None or kind in self._fitting or not mask.any():
            return
        index = int(mask.nonzero()[0, 0])
        target = trees.map_tensors(lambda t: t[index : index + 1], targets)
        self._check_loss(output, self._labels(target), index)
        self._fitting.add(kind)
        if type(inputs) is type(targets) is Tensor and self._ignored_class is None:
            self._usual = None if inputs.is_complex() else _kind(inputs, targets)

    def _check_loss(self, output: Any, target: Any, index: int) -> None:
        assert self._loss is not None
        leaves = trees.as_leaves(output)
        try:
            with torch.enable_grad():
                loss = self._loss(leaves, target) if self.has_target else self._loss(leaves)
        except Exception as error:
            msg = (
                f"targets: expected what the loss takes, got outputs of {_sizes(output)} and "
                f"targets of {_sizes(target)} in sample {index}: {error}; reshape or convert them"
            )
            raise SampleError(msg, index=index) from error
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            msg = f"loss: expected a scalar, got {got}; reduce it, for example with mean()"
            raise OptionError(msg)


def _kind(inputs: Tensor, targets: Tensor) -> Any:
    return inputs.shape[1:], inputs.dtype, targets.shape[1:], targets.dtype, inputs.dim()


def _first(tree: Any) -> Any:
    return trees.map_tensors(lambda t: t[:1], tree)


def _sizes(tree: Any) -> str:
    return ", ".join(f"{list(t.shape)} {t.dtype}" for t in trees.tensors(tree)) or "none"
