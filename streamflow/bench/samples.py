"""Random samples as a model's network and loss take them.

Targets are random, too: a network that has learned all there is has gradients too small to be
computed at normal speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from streamflow.models.heads import ClassHead, Head
from streamflow.models.model import Model
from streamflow.models.shapes import fitted_head, random_inputs

Array = np.ndarray[Any, Any]

MOST_WAITING = 256
_MOST_BYTES = 2**24
_FEWEST_WAITING = 32


@dataclass(frozen=True, slots=True)
class Waiting:
    """Samples that wait to be learned: arrays, which go from process to process as they are.

    Attributes:
        inputs: (n, ...), float32.
        targets: (n, ...) as the loss takes them; None where it takes none.
    """

    inputs: Array
    targets: Array | None

    def __len__(self) -> int:
        return len(self.inputs)


def draw(model: Model, network: nn.Module, folder: Path, asked: Sequence[int] | None) -> Waiting:
    """Draw as many samples as are learned in turn.

    Args:
        model: The declaration.
        network: Its network.
        folder: Where its callables lie.
        asked: Shape of one input, where neither declaration nor network tells it.

    Raises:
        StreamflowError: The shape is not known, or does not fit.
    """
    first = random_inputs(model, network, asked)
    count = min(max(_MOST_BYTES // first.nbytes, _FEWEST_WAITING), MOST_WAITING)
    inputs = random_inputs(model, network, asked, count=count).numpy()
    head = fitted_head(model, folder, first)
    if not (model.learn and model.target):
        return Waiting(inputs, None)
    encoded, _ = head.encode(_targets(head, count, model.seed))
    return Waiting(inputs, head.stack(encoded).numpy())


def _targets(head: Head, count: int, seed: int) -> list[Any]:
    """Return random classes, or standard-normal numbers."""
    random = np.random.default_rng(seed)
    if isinstance(head, ClassHead):
        assert head.classes is not None
        return [head.classes[index] for index in random.integers(len(head.classes), size=count)]
    return list(random.standard_normal((count, *head.output_shape)))
