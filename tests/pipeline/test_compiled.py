"""Compiled learning of a single stage from end to end."""

import copy
import logging
import os
import subprocess
import sys
import threading
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR

from streamflow.errors import StageError
from streamflow.pipeline import Pipeline
from streamflow.pipeline.native.line import CompiledStages
from streamflow.pipeline.native.native import Native, RaisedError
from streamflow.pipeline.routing import variants
from tests.pipeline.networks import chain, stream
from tests.pipeline.real_networks import CASES
from tests.pipeline.test_any_module import part_of
from tests.pipeline.test_states import KEYS, recurrent
from tests.pipeline.test_states import STATE as RECURRENT

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("cache")]

adam = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)
sgd = partial(torch.optim.SGD, lr=0.02, momentum=0.5)


def learner(net: nn.Module, **options: Any) -> Pipeline:
    return Pipeline(net, **{"loss": F.mse_loss, "optimizer": adam, "compile": True, **options})


def net_and_copy() -> tuple[nn.Sequential, nn.Sequential]:
    net = chain(["linear", "tanh", "scale", "linear"], 0)
    return net, copy.deepcopy(net)


def assert_close(actual: Any, wanted: Any, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, wanted, rtol=0, atol=tolerance)


def both(net: nn.Module, *calls: dict[str, Any], **options: Any) -> tuple[Pipeline, Pipeline]:
    """Process the same calls compiled and eagerly, and compare all that there is to see."""
    plain = copy.deepcopy(net)
    with learner(net, **options) as pipe, learner(plain, **options, compile=False) as wanted:
        for call in calls:
            assert_close(pipe.process(**call), wanted.process(**call))
            assert pipe.steps == wanted.steps
        assert pipe.learning.startswith("compiled"), pipe.learning
        state, wanted_state = pipe.state_dict(), wanted.state_dict()
    assert pipe.counters == wanted.counters
    assert state.keys() == wanted_state.keys()
    assert_close(state["module"], wanted_state["module"])
    for name, kept in wanted_state["optimizer"]["state"].items():
        assert_close(state["optimizer"]["state"][name], kept)
    for key in wanted_state.keys() - {"module", "optimizer"}:
        assert_close(_floats(state[key]), _floats(wanted_state[key]))
    return pipe, wanted


def _floats(tree: Any) -> list[Any]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def in_calls(inputs: Tensor, targets: Tensor, *bounds: int) -> list[dict[str, Any]]:
    parts = zip((0, *bounds), (*bounds, len(inputs)), strict=True)
    return [{"inputs": inputs[a:b], "targets": targets[a:b]} for a, b in parts]


def test_compiled_learning_is_eager_learning_to_rounding() -> None:
    inputs, targets = stream(120, seed=0)
    pipe, _ = both(net_and_copy()[0], *in_calls(inputs, targets, 30, 60, 61, 61, 68, 90))
    assert repr(pipe).endswith(f"updates [120], {pipe.learning}>")


def test_samples_that_are_not_learned_are_predicted_in_their_place() -> None:
    inputs, targets = stream(60, seed=1)
    learn = torch.tensor([n % 11 not in (3, 7) for n in range(60)])
    calls = in_calls(inputs, targets, 30)
    calls[0]["learn"], calls[1]["learn"] = learn[:30], learn[30:]
    both(net_and_copy()[0], *calls, {"inputs": inputs})


def test_what_is_not_finite_is_skipped_as_ever() -> None:
    inputs, targets = stream(80, seed=2)
    calls = in_calls(inputs, targets, 30, 60)
    targets[55] = 1e200  # its square is not finite
    pipe, _ = both(net_and_copy()[0], *calls)
    assert pipe.counters["skipped"] == [1]


def test_code_is_tried_until_some_samples_are_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []
    rehearse = CompiledStages.rehearse

    def watched(self: CompiledStages, *arguments: Any) -> Any:
        outputs, seconds = rehearse(self, *arguments)
        found.append(outputs)
        return outputs, seconds

    monkeypatch.setattr(CompiledStages, "rehearse", watched)
    inputs, targets = stream(60, seed=2)
    targets[2::3] = 1e200
    targets[1:25] = 1e200
    pipe, _ = both(net_and_copy()[0], *in_calls(inputs, targets, 10, 20, 40))
    assert [outputs is None for outputs in found] == [True, True, False]
    assert pipe.counters["skipped"] == [int((targets[:, 0] == 1e200).sum())]


def test_states_go_from_compiled_to_eager_and_back() -> None:
    inputs, targets = stream(60, seed=3)
    nets = [net_and_copy()[0] for _ in range(3)]
    with learner(nets[0], compile=False) as whole:
        whole.process(inputs, targets)
        wanted = whole.state_dict()
    with learner(nets[1]) as first:
        first.process(inputs[:20], targets[:20])
        state = first.state_dict()
    with learner(nets[2], compile=False) as second:
        second.load_state_dict(state)
        second.process(inputs[20:40], targets[20:40])
        state = second.state_dict()
    with learner(nets[0]) as third:
        third.load_state_dict(state)
        third.process(inputs[40:50], targets[40:50])
        third.load_state_dict(third.state_dict())
        third.process(inputs[50:], targets[50:])
        assert third.learning.startswith("compiled")
        found = third.state_dict()
    assert_close(found["module"], wanted["module"])
    assert_close(found["optimizer"]["state"], wanted["optimizer"]["state"])


def test_matrices_of_any_size_and_a_sample_that_fails_among_many() -> None:
    sizes = (3, 37, 18, 1, 3)
    torch.manual_seed(0)
    layers = [nn.Linear(a, b, dtype=torch.float64) for a, b in pairwise(sizes)]
    net = nn.Sequential(*[part for layer in layers for part in (layer, nn.Tanh())][:-1])
    inputs, targets = stream(120, seed=4)
    targets[70] = 1e200
    nesterov = partial(torch.optim.SGD, lr=0.02, momentum=0.5, nesterov=True, weight_decay=0.01)
    pipe, _ = both(net, *in_calls(inputs, targets, 30, 33, 60), optimizer=nesterov)
    assert pipe.counters["skipped"] == [1]
    assert pipe.learning == "compiled: own kernels"


def test_streams_with_keys_weights_clipping_and_a_schedule() -> None:
    count = 2 * len(KEYS)
    inputs, targets = stream(count, seed=0)
    weights = [1.0 + (n % 3) / 2 for n in range(count)]
    options = {
        "optimizer": sgd,
        "state": RECURRENT,
        "clip_norm": 0.5,
        "scheduler": partial(ExponentialLR, gamma=0.97),
        "max_keys": 2,
    }
    call: dict[str, Any] = {"inputs": inputs, "targets": targets, "weights": weights}
    first = {name: value[:6] for name, value in call.items()}
    pipe, _ = both(recurrent(), {**call, "keys": KEYS * 2}, {**first, "keys": ["a"] * 6}, **options)
    assert pipe.counters["forgotten"] > 0


def test_a_thousand_samples_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(1000, 16, generator=generator)
    targets = inputs[:, :1].sin()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))
    plain = copy.deepcopy(net)
    with learner(net, optimizer=sgd) as pipe, learner(plain, optimizer=sgd, compile=False) as other:
        parts = zip(torch.split(inputs, 25), torch.split(targets, 25), strict=True)
        found = torch.cat([pipe.process(*part) for part in parts])
        wanted = other.process(inputs, targets)
        assert pipe.learning.startswith("compiled")
    assert_close(found, wanted, 1e-4)
    assert_close(net.state_dict(), plain.state_dict(), 1e-4)


def test_an_encoder_that_people_build() -> None:
    case = CASES["encoder"]
    inputs, targets = case.stream(6)
    parts = [
        {"inputs": part_of(inputs, slice(n, n + 2)), "targets": part_of(targets, slice(n, n + 2))}
        for n in (0, 2, 4)
    ]
    net, other = case.network(), case.network()
    options = {"loss": case.loss, "optimizer": sgd}
    with learner(net, **options) as pipe, learner(other, **options, compile=False) as wanted:
        for part in parts:
            assert_close(pipe.process(**part), wanted.process(**part))
        # Torch 2.11 takes the attention of an encoder in float64 for one in float32.
        is_torn = torch.__version__.startswith("2.11")
        assert pipe.learning.startswith("eager: compiled code raises" if is_torn else "compiled")
    assert_close(net.state_dict(), other.state_dict())


class Sequences(nn.Module):
    """Recurrent layers of torch's own, over two steps, under a mask that the forward makes."""

    def __init__(self) -> None:
        super().__init__()
        options: dict[str, Any] = {"batch_first": True, "dtype": torch.float64}
        self.lstm, self.gru = nn.LSTM(3, 4, **options), nn.GRU(4, 3, **options)
        self.head = nn.Linear(3, 3, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        steps = x[:, None] * torch.ones(2, 3, dtype=x.dtype).tril() + torch.arange(2)[:, None]
        y: Tensor = self.head(self.gru(self.lstm(steps)[0])[0][:, -1])
        return y


def test_recurrent_layers_over_a_window() -> None:
    torch.manual_seed(0)
    inputs, targets = stream(30, seed=5)
    both(Sequences(), *in_calls(inputs, targets, 10, 20), optimizer=sgd)


class Bags(nn.Module):
    """Operations that compiled code leaves to torch itself, and random numbers between them."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(5, 4)
        self.head = nn.utils.parametrizations.weight_norm(nn.Linear(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(F.dropout(self.bag(x), 0.2))
        return y


def test_operations_that_the_compiler_has_no_code_for() -> None:
    torch.manual_seed(0)
    inputs, targets = torch.randint(5, (12, 3)), torch.randn(12, 1)
    net, plain = Bags(), Bags()
    plain.load_state_dict(net.state_dict())
    options: dict[str, Any] = {"optimizer": sgd, "seed": 1}
    with learner(net, **options) as pipe:
        with learner(plain, **options, compile=False) as other:
            for call in in_calls(inputs, targets, 4, 8):
                assert_close(pipe.process(**call), other.process(**call), 1e-5)
        assert pipe.learning == "compiled: library calls"


def test_a_forward_of_very_many_operations_is_not_recorded() -> None:
    inputs, targets = stream(2, seed=0)
    net = nn.Sequential(*chain(["linear"], 0), *[nn.Tanh() for _ in range(1001)])
    with learner(net) as pipe:
        pipe.process(inputs, targets)
        pipe.process(inputs, targets)
        assert pipe.learning == "eager: a forward has more than 1000 operations"


class Tempered(nn.Module):
    """Divides by an attribute that somebody changes while it learns."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = 1.0
        self.table = nn.Embedding(5, 3, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.table(x) / self.temperature  # type: ignore[no-any-return]


def tempered() -> tuple[Tempered, Tempered, dict[str, Any]]:
    torch.manual_seed(0)
    net = Tempered()
    return net, copy.deepcopy(net), {"loss": F.cross_entropy, "optimizer": sgd}


def test_attributes_of_modules_may_change() -> None:
    net, plain, options = tempered()
    tokens, labels = torch.arange(6) % 5, torch.arange(6) % 3
    with learner(net, **options) as pipe, learner(plain, **options, compile=False) as wanted:
        for temperature in (1.0, 2.0, 1.0):
            net.temperature = plain.temperature = temperature
            for n in range(6):
                row = tokens[n : n + 1], labels[n : n + 1]
                assert_close(pipe.process(*row), wanted.process(*row))
            assert pipe.learning.startswith("compiled")
    assert_close(net.state_dict(), plain.state_dict())


@pytest.mark.parametrize(("bad", "number"), [([5], 6), ([0, 1, 5, 2], 8)])
def test_an_error_inside_compiled_code_breaks_the_pipeline(bad: list[int], number: int) -> None:
    net, _, options = tempered()
    tokens, labels = torch.arange(6) % 5, torch.arange(6) % 3
    with learner(net, **options) as pipe:
        for n in range(6):
            pipe.process(tokens[n : n + 1], labels[n : n + 1])
        assert pipe.learning.startswith("compiled")
        where = rf"stage 0 .*, sample {number}: expected compiled code"
        with pytest.raises(StageError, match=where):
            pipe.process(torch.tensor(bad), labels[: len(bad)])
        with pytest.raises(StageError):
            pipe.process(tokens[:1], labels[:1])
    assert not [thread for thread in threading.enumerate() if "compiler" in thread.name]


def test_code_that_raises_when_it_is_tried_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any, **__: Any) -> None:
        message = "this version of a library takes something else"
        raise RaisedError(message, 0, 0)

    inputs, targets = stream(30, seed=0)
    net, plain = net_and_copy()
    monkeypatch.setattr(Native, "run", run)
    with learner(net) as pipe, learner(plain, compile=False) as wanted:
        assert torch.equal(pipe.process(inputs, targets), wanted.process(inputs, targets))
        why = "compiled code raises: this version of a library takes something else"
        assert pipe.learning == f"eager: {why}"


def test_it_switches_over_in_the_middle_of_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "Patience", lambda: variants.AT_ONCE)
    inputs, targets = stream(400, seed=5)
    net, plain = net_and_copy()
    with learner(net, compile="auto") as pipe, learner(plain, compile=False) as wanted:
        assert pipe.learning == "eager so far"
        found = [pipe.process(inputs[:3], targets[:3])]
        for first in range(3, 393, 10):  # until the process that compiles, if any, is ready
            found.append(pipe.process(inputs[first : first + 10], targets[first : first + 10]))
            for way in pipe._router._variants._found.values():  # type: ignore[union-attr]
                way.compiler.wait()
        assert pipe.learning.startswith("compiled") or "not faster" in pipe.learning
        assert_close(torch.cat(found), wanted.process(inputs[:393], targets[:393]))
    assert_close(net.state_dict(), plain.state_dict())


def test_nothing_is_compiled_for_a_short_stream() -> None:
    inputs, targets = stream(20, seed=5)
    with learner(net_and_copy()[0], compile="auto") as pipe:
        pipe.process(inputs, targets)
        assert pipe.learning == "eager so far"
        assert not [thread for thread in threading.enumerate() if "compiler" in thread.name]


def test_closing_ends_what_compiles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(variants, "Patience", lambda: variants.AT_ONCE)
    inputs, targets = stream(20, seed=5)
    with learner(net_and_copy()[0], compile="auto") as pipe:
        pipe.process(inputs, targets)
        assert pipe.learning == "eager while it compiles"
        (thread,) = [t for t in threading.enumerate() if t.name == "streamflow compiler"]
        pipe.process(inputs, targets)
        assert thread.daemon
    assert not thread.is_alive()


SCRIPT = """
import logging, sys, torch
from tests.pipeline.test_compiled import learner, net_and_copy, stream
logging.basicConfig(stream=sys.stdout, format="%(message)s")
inputs, targets = stream(30, seed=0)
with learner(net_and_copy()[0]) as pipe:
    pipe.process(inputs, targets)
    print(pipe.learning)
"""


def outcome(**environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
    )
    return done.stdout


def test_without_a_compiler_learning_is_eager_and_says_why(tmp_path: Path) -> None:
    lines = outcome(CXX="/nowhere/g++", TORCHINDUCTOR_CACHE_DIR=str(tmp_path)).splitlines()
    reason = "no C++ compiler; apt install g++"
    assert lines == [f"0 learns eagerly: {reason}", f"eager: {reason}"]


def test_another_process_finds_the_code_and_needs_no_compiler(cache: Path) -> None:
    inputs, targets = stream(30, seed=0)
    with learner(net_and_copy()[0]) as pipe:
        pipe.process(inputs, targets)
    environment = {"CXX": "/nowhere/g++", "TORCHINDUCTOR_CACHE_DIR": str(cache.parent)}
    assert outcome(**environment).strip() == "compiled: own kernels"


def test_what_is_not_compiled_says_why(caplog: pytest.LogCaptureFixture) -> None:
    inputs, targets = stream(5, seed=0)
    net = net_and_copy()[0]
    rprop = partial(torch.optim.Rprop, lr=0.01)
    with caplog.at_level(logging.WARNING), learner(net, optimizer=rprop) as pipe:
        pipe.process(inputs, targets)
        pipe.process(inputs, targets)
    reason = "Rprop is not among the optimizers that are compiled"
    assert pipe.learning == f"eager: {reason}"
    assert [record.message for record in caplog.records] == [f"0 learns eagerly: {reason}"]
    for other, options, why in (
        (net, {"compile": False}, "compile is False"),
        (net, {"stages": ["1"], "backward": "stashed"}, "weights are stashed"),
        (
            net,
            {"stages": ["1"], "schedule": "sequential", "clip_norm": 1, "clip_over": "network"},
            "gradients are clipped by their norm over all stages",
        ),
        (net, {"accumulate": 2}, "gradients are accumulated"),
    ):
        with learner(other, **options) as pipe:
            pipe.process(inputs, targets)
            assert pipe.learning == f"eager: {why}"
