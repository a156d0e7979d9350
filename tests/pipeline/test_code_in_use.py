"""Which code networks learn by: the fast one wherever there is one, and a warning where not."""

import json
import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.learning import Encoder, Recurrent, Window, perceptron, with_dropout
from streamflow.pipeline import Pipeline, torch_private
from streamflow.pipeline.codegen import libraries

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("cache")]

sgd = partial(torch.optim.SGD, lr=0.001)


def learner(net: nn.Module, inputs: Tensor, targets: Tensor, state: tuple[str, ...]) -> Pipeline:
    pipeline = Pipeline(net, loss=F.mse_loss, optimizer=sgd, state=state, compile=True)
    for _ in range(3):
        pipeline.process(inputs, targets)
    return pipeline


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 2)
    )


# The networks of benchmarks/learning.py, smaller where compiling them would take long.
@pytest.mark.parametrize(
    ("make", "shape", "outputs", "state", "code"),
    [
        (partial(perceptron, 16, 32, 1), (16,), 1, (), "own kernels"),
        (partial(perceptron, 64, 64, 64, 64), (64,), 64, (), "own kernels"),
        (partial(with_dropout, 64, 64, 64, 64), (64,), 64, (), "own kernels"),
        (Recurrent, (16,), 1, ("h",), "own kernels"),
        (Window, (3, 8), 1, (), "own kernels"),
        (convolutions, (3, 4, 4), 2, (), "library calls"),
        pytest.param(Encoder, (4, 64), 1, (), "library calls", marks=pytest.mark.slow),
    ],
    ids=["mlp-16-32-1", "mlp-64x3", "dropout-64x3", "gru-32", "lstm-3-steps", "cnn", "transformer"],
)
def test_the_networks_of_the_benchmark_learn_by_the_code_that_they_should(
    make: Callable[[], nn.Module],
    shape: tuple[int, ...],
    outputs: int,
    state: tuple[str, ...],
    code: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch.manual_seed(0)
    with (
        caplog.at_level(logging.WARNING, "streamflow"),
        learner(make(), torch.randn(16, *shape), torch.randn(16, outputs), state) as pipeline,
    ):
        assert pipeline.learning == f"compiled: {code}"
    assert not caplog.records


def test_code_that_is_slower_than_it_should_be_is_told_whenever_it_is_loaded(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch_private.warn.cache_clear()
    torch.manual_seed(0)
    inputs, targets = torch.randn(16, 16), torch.randn(16, 1)
    before = set(cache.glob(f"*/{libraries.NOTE}"))
    net = nn.Sequential(nn.Linear(16, 3), nn.Sigmoid(), nn.Linear(3, 1))
    learner(net, inputs, targets, ()).close()
    (note,) = set(cache.glob(f"*/{libraries.NOTE}")) - before
    assert json.loads(note.read_text()) == {"reason": "", "fault": ""}
    note.write_text(json.dumps({"reason": "", "fault": "KeyError: 'buf0'"}))
    with caplog.at_level(logging.WARNING, "streamflow"):
        learner(net, inputs, targets, ()).close()
        learner(net, inputs, targets, ()).close()
    (record,) = caplog.records
    assert "slower than they should: KeyError: 'buf0'" in record.message
    assert f"remove {note.parent}" in record.message
    shutil.rmtree(note.parent)  # nobody else is to find it
