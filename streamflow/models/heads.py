"""What a network's outputs and a record's target mean, for each task.

Shapes: N records, C classes or outputs.
"""

from __future__ import annotations

import math
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from streamflow.errors import StreamflowError
from streamflow.models.declaration import ModelOptions, Task
from streamflow.models.encoders import number_column, numbers
from streamflow.models.targets import Targets
from streamflow.records import MISSING

Predicted: TypeAlias = dict[str, list[Any]]
"""One column for each field of a prediction."""


class OutputError(StreamflowError, ValueError):
    """A network whose outputs do not fit the task."""


class Head(ABC):
    """Turns targets into tensors, and outputs into predictions."""

    def __init__(self) -> None:
        self.output_shape: tuple[int, ...] = ()

    def fit(self, output: Tensor) -> None:
        """Take note of the shape of the network's outputs, from the output (1, ...) of one record.

        Raises:
            OutputError: The task cannot have such outputs.
        """
        self.output_shape = tuple(output.shape[1:])

    def encode(self, values: Sequence[Any]) -> tuple[Targets, Mapping[int, str]]:
        """Return targets as the loss wants them, not known where there is a cause, and causes.

        Args:
            values: As they stand in the records, ``None`` or `MISSING` where there is none.
        """
        if (encoded := self._encode_all(values)) is not None:
            return Targets(encoded, np.ones(len(values), dtype=np.bool_)), {}
        targets = self._blank(len(values))
        causes: dict[int, str] = {}
        for index, value in enumerate(values):
            if value is None or value is MISSING:
                continue
            try:
                targets.values[index] = self._encode(value)
                targets.is_known[index] = True
            except (TypeError, ValueError, OverflowError) as error:
                causes[index] = str(error)
        return targets, causes

    @abstractmethod
    def plain(self, target: Any) -> Any:
        """Return a target that can be encoded as plain data which is scored in the same way."""

    def state(self) -> dict[str, Any]:
        """Return what `fit` found out."""
        return {"output_shape": list(self.output_shape)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `fit` found out in an earlier run."""
        self.output_shape = tuple(state["output_shape"])

    @abstractmethod
    def _encode(self, value: Any) -> Any:
        """Return one target, or raise ValueError with the cause."""

    @abstractmethod
    def _encode_all(self, values: Sequence[Any]) -> np.ndarray[Any, Any] | None:
        """Return all targets at once, as `_encode` does each, if they are of the usual kind."""

    @abstractmethod
    def _blank(self, count: int) -> Targets:
        """Return so many targets that are not known."""

    @abstractmethod
    def stack(self, targets: Targets) -> Tensor:
        """Return targets as the loss takes them, any that it takes where one is not known."""

    @abstractmethod
    def decode(self, outputs: Tensor) -> Predicted:
        """Return ``prediction`` and, for classifiers, ``scores`` of outputs (N, ...)."""


class RegressionHead(Head):
    """Numbers: one, or a list where the network has several outputs."""

    def __init__(self, target: str | None) -> None:
        super().__init__()
        self._target = target or "target"

    def _encode(self, value: Any) -> Any:
        array = numbers(value, self._target)
        if array.size != math.prod(self.output_shape):
            message = (
                f"expected {math.prod(self.output_shape)} numbers for {self._target}, "
                f"as many as the network's outputs, found {array.size}"
            )
            raise ValueError(message)
        return array.reshape(self.output_shape)

    def _encode_all(self, values: Sequence[Any]) -> np.ndarray[Any, Any] | None:
        if math.prod(self.output_shape) != 1 or (column := number_column(list(values))) is None:
            return None
        return column.reshape(len(column), *self.output_shape)

    def _blank(self, count: int) -> Targets:
        shape = (count, *self.output_shape)
        return Targets(np.zeros(shape, np.float32), np.zeros(count, np.bool_))

    def plain(self, target: Any) -> Any:
        """Return a number, or a list of them."""
        array = np.asarray(target, dtype=np.float64)
        return array.item() if array.size == 1 else array.ravel().tolist()

    def stack(self, targets: Targets) -> Tensor:
        """Return targets of the outputs' shape, float32."""
        return torch.from_numpy(targets.values.astype(np.float32))

    def decode(self, outputs: Tensor) -> Predicted:
        """Return numbers, or lists of them."""
        flat_NC = outputs.reshape(len(outputs), -1)
        return {"prediction": (flat_NC[:, 0] if flat_NC.shape[1] == 1 else flat_NC).tolist()}


class ClassHead(Head):
    """Class labels, and a probability for each class."""

    def __init__(self, classes: Sequence[str | int] | None) -> None:
        super().__init__()
        self.classes: Sequence[str | int] | None = None
        self._indices: dict[Any, int] = {}
        if classes is not None:
            self._name_classes(classes)

    def _encode(self, value: Any) -> int:
        try:
            return self._indices[value]
        except (KeyError, TypeError):
            expected = reprlib.repr(list(self.classes or ()))
            message = f"expected a class of {expected}, found {reprlib.repr(value)}"
            raise ValueError(message) from None

    def _encode_all(self, values: Sequence[Any]) -> np.ndarray[Any, Any] | None:
        try:
            return np.array(itemgetter(*values)(self._indices), dtype=np.int64).reshape(-1)
        except (KeyError, TypeError):
            return None

    def _blank(self, count: int) -> Targets:
        return Targets(np.zeros(count, np.int64), np.zeros(count, np.bool_))

    def plain(self, target: Any) -> Any:
        """Return the label as it was declared."""
        assert self.classes is not None
        return self.classes[self._indices[target]]

    def state(self) -> dict[str, Any]:
        """Return the shape of the outputs, and the labels in their order."""
        return {**super().state(), "classes": None if self.classes is None else list(self.classes)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over shape and labels."""
        super().restore(state)
        if state["classes"] is not None:
            self._name_classes(state["classes"])

    def _name_classes(self, labels: Sequence[str | int]) -> None:
        self.classes = labels
        self._indices = {label: index for index, label in enumerate(labels)}

    def _set_classes(self, count: int) -> None:
        """Number the classes if they have no labels."""
        if self.classes is None:
            self._name_classes(range(count))
        elif len(self.classes) != count:
            message = (
                f"expected as many outputs as classes, {len(self.classes)}, got {count}; "
                f"change the last layer or the classes"
            )
            raise OutputError(message)

    def _columns(self, scores_NC: Tensor) -> Predicted:
        assert self.classes is not None
        labels = list(self.classes)
        winners = [labels[index] for index in scores_NC.argmax(dim=1).tolist()]
        return {"prediction": winners, "scores": scores_NC.tolist()}


class BinaryHead(ClassHead):
    """Two classes from one output: a logit, or a probability of the second class."""

    def __init__(self, classes: Sequence[str | int] | None, *, is_logit: bool) -> None:
        super().__init__(classes)
        self._is_logit = is_logit

    def fit(self, output: Tensor) -> None:
        """Check that there is one output.

        Raises:
            OutputError: There are more, or not two classes for it.
        """
        super().fit(output)
        if output[0].numel() != 1:
            message = (
                f"expected one output for a binary task, got {output[0].numel()}; end the "
                f"network with one output, or use cross_entropy with one output for each class"
            )
            raise OutputError(message)
        self._set_classes(2)

    def stack(self, targets: Targets) -> Tensor:
        """Return 0 or 1 in the outputs' shape, float32."""
        return torch.from_numpy(targets.values).float().reshape(len(targets), *self.output_shape)

    def decode(self, outputs: Tensor) -> Predicted:
        """Return the likelier label and both probabilities."""
        second_N1 = outputs.reshape(len(outputs), 1)
        if self._is_logit:
            second_N1 = torch.sigmoid(second_N1)
        return self._columns(torch.cat([1 - second_N1, second_N1], dim=1))


class ClassificationHead(ClassHead):
    """One output for each class: logits, or logarithms of probabilities."""

    def __init__(self, classes: Sequence[str | int] | None, *, is_logarithm: bool) -> None:
        super().__init__(classes)
        self._is_logarithm = is_logarithm

    def fit(self, output: Tensor) -> None:
        """Check that there is one output for each class.

        Raises:
            OutputError: There are fewer than two, or not as many as classes.
        """
        super().fit(output)
        if output.dim() != 2 or output.shape[1] < 2:
            message = (
                f"expected one output for each of at least two classes, got the shape "
                f"{list(output.shape[1:])}; end the network with a Linear layer of that width"
            )
            raise OutputError(message)
        self._set_classes(output.shape[1])

    def stack(self, targets: Targets) -> Tensor:
        """Return class indices (N,)."""
        return torch.from_numpy(targets.values.copy())

    def decode(self, outputs: Tensor) -> Predicted:
        """Return the likeliest label and all probabilities."""
        return self._columns(outputs.exp() if self._is_logarithm else outputs.softmax(dim=1))


def make_head(model: ModelOptions) -> Head:
    """Return the head for a model's task."""
    task: Task | None = model.resolved_task
    if task == "classification":
        return ClassificationHead(model.classes, is_logarithm=model.loss_name == "nll_loss")
    if task == "binary":
        return BinaryHead(model.classes, is_logit=model.loss_name != "binary_cross_entropy")
    return RegressionHead(model.target)


def one_tensor(outputs: Any) -> Tensor:
    """Return what a network returned, if that is one tensor.

    Raises:
        OutputError: It is something else.
    """
    if not isinstance(outputs, Tensor):
        message = (
            f"expected a network that returns one tensor, got {type(outputs).__name__}; "
            f"return the tensor that is the prediction"
        )
        raise OutputError(message)
    return outputs


def joined(parts: Sequence[Predicted]) -> Predicted:
    """Return the columns of several predictions as one."""
    names = parts[0] if parts else ()
    return {name: [entry for part in parts for entry in part[name]] for name in names}
