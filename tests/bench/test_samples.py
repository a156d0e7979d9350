from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamflow.bench.samples import Waiting, draw
from streamflow.models.model import Model
from streamflow.models.network import build_network


def drawn(shape: tuple[int, ...] | None = None, **options: Any) -> Waiting:
    declared: dict[str, Any] = {"inputs": ["in"], "network": [{"Linear": [3, 2]}], "features": "x"}
    model = Model(**declared | options)
    return draw(model, build_network(model, Path()), Path(), shape)


def test_numbers_have_the_shape_of_the_outputs() -> None:
    waiting = drawn(target="y")
    assert (waiting.inputs.shape, waiting.inputs.dtype) == ((256, 3), np.float32)
    assert waiting.targets is not None
    assert (waiting.targets.shape, waiting.targets.dtype) == ((256, 2), np.float32)
    assert 0.9 < waiting.targets.std() < 1.1
    again = drawn(target="y")
    np.testing.assert_array_equal(waiting.inputs, again.inputs)
    np.testing.assert_array_equal(waiting.targets, again.targets)


def test_a_lazy_layer_takes_as_many_numbers_as_there_are_features() -> None:
    waiting = drawn(network=[{"LazyLinear": 2}], features=["a", "b", "c"], target="y")
    assert waiting.inputs.shape == (256, 3)


@pytest.mark.parametrize("classes", [None, ("up", "down")])
def test_classes_are_all_drawn(classes: tuple[str, ...] | None) -> None:
    waiting = drawn(target="y", task="classification", classes=classes)
    assert waiting.targets is not None
    assert waiting.targets.shape == (256,)
    assert set(waiting.targets) == {0, 1}


def test_what_is_not_learned_has_no_targets() -> None:
    assert drawn(learn=False).targets is None
    assert drawn(target="y", learn=False).targets is None


def test_of_large_samples_there_are_fewer() -> None:
    convolution: dict[str, Any] = {"network": [{"Conv2d": [3, 1, 3]}], "learn": False}
    assert len(drawn((3, 128, 128), **convolution)) == 2**24 // (3 * 128 * 128 * 4)
    assert len(drawn((3, 512, 512), **convolution)) == 32
