"""Private names of torch: who knows them, and what happens without one."""

import ast
import copy
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from streamflow.pipeline import Pipeline, torch_private
from streamflow.pipeline.torch_private import NAMES, Name

ROOT = Path(torch_private.__file__).parents[2]
FILES = sorted((ROOT / "streamflow").rglob("*.py"))
OF_TENSORS_AND_MODULES = {*dir(Tensor), *dir(nn.GRU(1, 1)), *dir(nn.Parameter)}
OF_OTHERS = {
    *dir(fx.Node),
    *dir(fx.Graph),
    *dir(fx.GraphModule),
    *dir(torch.optim.SGD([torch.zeros(1)])),
    *dir(torch.ops.aten.add.Tensor),
}


def is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def private_names(path: Path) -> Iterator[str]:
    """Yield private names that are imported, or looked up in something but self."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    aliases = {"torch"}
    own = set(re.findall(r"self\.(_\w+)", path.read_text(encoding="utf-8")))
    of_torch = OF_TENSORS_AND_MODULES | (OF_OTHERS - own)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            assert node.module is not None
            yield from filter(is_private, node.module.split("."))
            yield from (alias.name for alias in node.names if is_private(alias.name))
            aliases |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            parts = [alias.name for alias in node.names if alias.name.split(".")[0] == "torch"]
            yield from (part for name in parts for part in name.split(".") if is_private(part))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            root = ast.unparse(node.value)
            is_own = root in ("self", "cls") or root.startswith(("self.", "cls."))
            if root.split(".")[0] in aliases or (node.attr in of_torch and not is_own):
                yield f"{root}.{node.attr}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant) and is_private(str(name.value)):
                yield str(name.value)


def test_only_one_file_knows_private_names_of_torch() -> None:
    found = {str(path.relative_to(ROOT)): sorted(private_names(path)) for path in FILES}
    known = found.pop("streamflow/pipeline/torch_private.py")
    assert len(known) > 10
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize("name", NAMES, ids=str)
def test_every_name_is_there_in_the_versions_that_are_known(name: Name) -> None:
    assert name.missing() == ""


# Hides one name from those that look it up by its path: torch itself goes on having it.
HIDING = """
import sys, types
from importlib import import_module

class Hiding(types.ModuleType):
    def __init__(self, whole, hidden):
        super().__init__("hiding")
        self.__dict__.update(whole=whole, hidden=hidden)

    def __getattr__(self, name):
        first, _, rest = self.__dict__["hidden"].partition(".")
        found = getattr(self.__dict__["whole"], name)
        if name != first or not sys._getframe(1).f_code.co_filename.endswith("pkgutil.py"):
            return found
        if not rest:
            raise AttributeError(name)
        return Hiding(found, rest)

def hide(path):
    module, _, name = path.partition(":")
    sys.modules[module] = Hiding(import_module(module), name)
"""
PROGRAM = """
import logging, sys
from tests.pipeline.test_torch_private import compare
logging.basicConfig(stream=sys.stdout, format="warning: %(message)s")
print(compare(sys.argv[1]))
"""


class Images(nn.Module):
    """A convolution, which is a library's."""

    def __init__(self) -> None:
        super().__init__()
        self.filter, self.head = nn.Conv1d(1, 2, 2), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.filter(x[:, None]).flatten(1))
        return y


def compare(kind: str) -> str:
    """Learn the same compiled, where that can be, and eagerly; return how."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = Images() if kind == "library calls" else nn.Linear(4, 2)
    plain = copy.deepcopy(net)
    inputs, targets = torch.randn(40, 4), torch.randn(40, 2)
    adam = partial(torch.optim.Adam, lr=0.01)
    options: dict[str, Any] = {"loss": F.mse_loss, "optimizer": adam}
    with (
        Pipeline(net, **options, compile=True) as pipe,
        Pipeline(plain, **options, compile=False) as other,
    ):
        for first in range(0, 40, 10):
            found = pipe.process(inputs[first : first + 10], targets[first : first + 10])
            wanted = other.process(inputs[first : first + 10], targets[first : first + 10])
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
        torch.testing.assert_close(pipe.infer(inputs), other.infer(inputs), rtol=0, atol=1e-4)
        return pipe.learning


def without(name: Name, folder: Path, kind: str) -> list[str]:
    """Return what a process prints that compares, and whose compiler lacks a name, too."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(f"{HIDING}\nhide({name.path!r})\n", encoding="utf-8")
    paths = os.pathsep.join([str(folder), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, kind],
        env={**os.environ, "PYTHONPATH": paths, "TORCHINDUCTOR_CACHE_DIR": str(folder / "code")},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


CASES = [
    pytest.param(name, marks=() if name is torch_private.FAKE_TENSORS else pytest.mark.slow)
    for name in NAMES
    if name not in (torch_private.ADD_TO_ALL, torch_private.ASSERT)
]


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("name", CASES, ids=str)
def test_without_a_name_learning_is_slower_and_the_same_and_a_warning_says_so(
    name: Name, tmp_path: Path
) -> None:
    kind = "library calls" if name is torch_private.COMPILE_WHOLE else "own kernels"
    *warnings, learning = without(name, tmp_path / "without", kind)
    told = [line for line in warnings if f"torch {torch.__version__} has no {name}, " in line]
    assert len(told) == 1 + (name is torch_private.DISPATCH)  # of learning, and of predicting
    assert f"so {name.without}; install torch {torch_private.KNOWN}" in told[0]
    if name.without.startswith("networks"):
        assert learning.startswith("eager: "), learning
    elif name is torch_private.OUTER_FUSION:
        assert learning == "compiled: own kernels"
    else:
        assert learning == "compiled: library calls"


def test_without_a_call_for_all_tensors_they_are_added_to_one_by_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    torch_private.warn.cache_clear()
    monkeypatch.delattr(torch, "_foreach_add_")
    tensors = [torch.zeros(()), torch.ones(2)]
    with caplog.at_level(logging.WARNING):
        torch_private.add_to_all(tensors, 2)
        torch_private.add_to_all(tensors, 1)
    assert [tensor.tolist() for tensor in tensors] == [3.0, [4.0, 4.0]]
    (record,) = caplog.records
    assert "has no torch._foreach_add_, which counts steps" in record.message


class Asserting(nn.Module):
    """Asserts something about a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        assert x.sum() < 1e9
        y: Tensor = self.second(x)
        return y


def test_without_assertions_in_a_trace_a_network_with_one_is_not_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(torch, "_assert")
    message = "torch._assert, which keeps an assertion in a trace, so networks with one are not cut"
    with pytest.raises(ValueError, match=message), Pipeline(Asserting(), stages=2) as pipe:
        pipe.process(torch.zeros(1, 2))
    with Pipeline(Asserting()) as pipe:
        assert pipe.process(torch.zeros(1, 2)).shape == (1, 2)
