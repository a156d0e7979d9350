"""Which code networks learn by: the fast one wherever there is one, and a warning where not."""

import json
import logging
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.learning import NETWORKS, Network, perceptron
from streamflow.pipeline import Pipeline, torch_private
from streamflow.pipeline.capture.recorder import record
from streamflow.pipeline.codegen import libraries
from streamflow.pipeline.codegen.building import ProgramSpec, Request, source_of
from streamflow.pipeline.torch_private import Unlisted
from tests.pipeline.test_recording import Recorded

pytestmark = pytest.mark.timeout(300)

sgd = partial(torch.optim.SGD, lr=0.001)
OWN = ["mlp-16-32-1", "mlp-64x8", "mlp-256x8", "mlp-1024x8", "gru-32", "dropout-64x8"]


def written(network: Network) -> str:
    """Return C++ of a network as the compiler's process writes it."""
    stage = Recorded(network.make(), optimizer=sgd, state=network.state).stage
    inputs, targets = torch.randn(1, *network.shape), torch.randn(1, network.outputs)
    (recording,) = record([stage], inputs, targets, None, None)
    with torch.no_grad():
        return source_of(Request([*map(ProgramSpec.of, recording.programs)], Path(), 1))


@pytest.mark.parametrize("name", OWN)
def test_the_networks_of_the_benchmark_become_own_kernels(name: str) -> None:
    assert 'extern "C" bool learn(' in written(NETWORKS[name])


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("cnn", "aten.convolution"),
        ("transformer", "aten.mm|aten.addmm"),
        pytest.param("lstm-20-steps", "aten.mm|aten.addmm", marks=pytest.mark.slow),
    ],
)
def test_those_that_call_libraries_say_which(name: str, library: str) -> None:
    with pytest.raises(Unlisted, match=f"it calls ({library})"):
        written(NETWORKS[name])


def test_no_network_of_the_benchmark_is_forgotten() -> None:
    assert {*OWN, "cnn", "transformer", "lstm-20-steps"} == NETWORKS.keys()


def learned(net: nn.Module, inputs: Tensor, targets: Tensor) -> str:
    """Return how a network learns, compiled."""
    with Pipeline(net, loss=F.mse_loss, optimizer=sgd, compile=True) as pipeline:
        for _ in range(3):
            pipeline.process(inputs, targets)
        return pipeline.learning


def test_the_code_that_was_made_is_the_code_in_use(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = nn.Sequential(nn.Conv1d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(6, 1))
    with caplog.at_level(logging.WARNING, "streamflow"):
        vectors = torch.randn(16, 16), torch.randn(16, 1)
        assert learned(perceptron(16, 32, 1), *vectors) == "compiled: own kernels"
        rows = torch.randn(16, 1, 4), torch.randn(16, 1)
        assert learned(images, *rows) == "compiled: library calls"
    assert not caplog.records


def test_the_compiler_is_of_this_package_whatever_lies_in_the_current_folder(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "streamflow").mkdir()
    (tmp_path / "streamflow" / "__init__.py").write_text("raise ImportError('a stranger')")
    monkeypatch.chdir(tmp_path)
    net = perceptron(5, 3, 1)  # of nobody else, so that it is compiled here
    assert learned(net, torch.randn(16, 5), torch.randn(16, 1)) == "compiled: own kernels"


def test_code_that_is_slower_than_it_should_be_is_told_whenever_it_is_loaded(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # nobody else is to find it
    torch_private.warn.cache_clear()
    vectors = torch.randn(16, 7), torch.randn(16, 1)
    learned(nn.Linear(7, 1), *vectors)
    (note,) = libraries.cache_folder().glob(f"*/{libraries.NOTE}")
    assert json.loads(note.read_text()) == {"reason": "", "fault": ""}
    note.write_text(json.dumps({"reason": "", "fault": "KeyError: 'buf0'"}))
    with caplog.at_level(logging.WARNING, "streamflow"):
        learned(nn.Linear(7, 1), *vectors)
        learned(nn.Linear(7, 1), *vectors)
    (record,) = caplog.records
    assert "slower than they should: KeyError: 'buf0'" in record.message
    assert f"remove {note.parent}" in record.message
