"""Whether compiling works at all: the one test of compiled code within a quick run."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from streamflow.pipeline import Pipeline
from tests.pipeline.networks import stream

pytestmark = [
    pytest.mark.smoke,
    pytest.mark.timeout(300),
    pytest.mark.usefixtures("cache"),
]


def test_compiled_learning_is_eager_learning() -> None:
    size = stream(1, seed=0)[0].shape[1]
    net = nn.Sequential(nn.Linear(size, 8), nn.Tanh(), nn.Linear(8, size)).double()
    inputs, targets = stream(100, seed=0)
    optimizer = partial(torch.optim.AdamW, lr=0.01)
    outputs = []
    for compiled in (False, True):
        learned = copy.deepcopy(net)
        with Pipeline(learned, loss=F.mse_loss, optimizer=optimizer, compile=compiled) as pipe:
            outputs.append((pipe.process(inputs, targets), *learned.parameters()))
            assert pipe.learning.startswith("compiled" if compiled else "eager")
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=1e-10)
