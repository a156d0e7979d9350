"""What a compiler process does: a recorded sample becomes code that learns samples in a row.

A sample that is nothing but kernels of the compiler becomes a C++ loop around them
(:mod:`~streamflow.pipeline.native`). One that calls libraries (convolutions, products of matrices)
becomes code of one sample: it takes held, constants, factors, inputs, targets and weights, writes
into held, and returns outputs and a sum that is finite where everything was.

Run as a program it reads a request from its standard input and writes a line about what came of it
to its standard output. It ends when its input does, and with the process that started it.
"""

import json
import os
import pickle
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.fx import GraphModule

from streamflow.pipeline import inductor, native, rows
from streamflow.pipeline.recording import Layout

SINGLE = "code.so"
"""Where code of one sample lies in its folder."""

_aten = torch.ops.aten
# The compiler is not asked for kernels where it is known to have none.
_LIBRARY_CALLS = (
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten.baddbmm.default,
    _aten.convolution.default,
)

Spec = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]
"""Shape, strides and dtype of a tensor."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be compiled.

    Attributes:
        graph: A sample, recorded.
        layout: What it takes and returns.
        specs: The tensors that it takes.
        folder: Where the code goes.
        num_threads: Threads that the code may use.
        is_urgent: Whether somebody waits for it.
    """

    graph: GraphModule
    layout: Layout
    specs: list[Spec]
    folder: Path
    num_threads: int
    is_urgent: bool = True


def spec_of(tensor: Tensor) -> Spec:
    """Describe a tensor."""
    return tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype


def one_sample(graph: GraphModule, layout: Layout) -> Callable[..., list[Tensor]]:
    """Return the function that learns a sample in place, but for weights if it is not finite."""
    results = _results(graph, layout)

    def learn(*tensors: Tensor) -> list[Tensor]:
        found = results(*tensors)
        total = found[-1]
        for place, index in enumerate(layout.written):
            value = found[place]
            if layout.is_checked and place < layout.learned:
                value = torch.where(total.isfinite(), value, tensors[index])
            tensors[index].copy_(value)
        return found[len(layout.written) :]

    return learn


def _results(graph: GraphModule, layout: Layout) -> Callable[..., list[Tensor]]:
    """Return the function from a sample to new values, outputs and the sum of all checks."""

    def learn(*tensors: Tensor) -> list[Tensor]:
        *found, loss, check = graph(*tensors)
        places = len(layout.written)
        outputs = [tensor.clone(memory_format=torch.contiguous_format) for tensor in found[places:]]
        return [*found[:places], *outputs, loss.sum() + check]

    return learn


def joined(
    graph: GraphModule, layout: Layout, arguments: Sequence[Tensor]
) -> tuple[GraphModule, frozenset[int]]:
    """Return what learns a sample in place, row by row; and the arguments that rows write."""
    found = inductor.decompose(_results(graph, layout), arguments, rows.DECOMPOSITIONS)
    by_rows = rows.fuse(found, layout.written, layout.kept)
    _write(found, layout.written, by_rows)
    return found, by_rows


def _native_source(request: Request, arguments: Sequence[Tensor]) -> str:
    """Return C++ that learns samples in a row.

    Raises:
        Unlisted: A sample is more than kernels.
    """
    layout = request.layout
    graph, by_rows = joined(request.graph, layout, arguments)
    if any(node.target in _LIBRARY_CALLS for node in graph.graph.nodes):
        msg = "it calls libraries"
        raise inductor.Unlisted(msg)
    graph = inductor.decompose(graph, arguments, {rows.OUTER: rows.LOOPS[rows.OUTER]})
    shape = native.Shape(
        held=layout.held + layout.constants,
        written=layout.written,
        learned=layout.learned,
        joined=by_rows,
        is_checked=layout.is_checked,
    )
    return native.source(graph, arguments, shape, request.num_threads)


def _write(graph: GraphModule, written: Sequence[int], by_rows: frozenset[int]) -> None:
    """Let a graph write new values where they belong, and return only what else it returns."""
    given = [node for node in graph.graph.nodes if node.op == "placeholder"]
    (result,) = graph.graph.find_nodes(op="output")
    values = list(result.args[0])
    with graph.graph.inserting_before(result):
        for index, value in zip(written, values, strict=False):
            if index not in by_rows:
                copy = torch.ops.aten.copy_.default
                graph.graph.call_function(copy, (given[index], value))
    result.args = (values[len(written) :],)
    graph.recompile()


def compile_request(request: Request) -> None:
    """Compile into the request's folder, which appears as a whole."""
    arguments = [
        torch.empty_strided(shape, strides, dtype=dtype).zero_()
        for shape, strides, dtype in request.specs
    ]
    folder = request.folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        made = Path(place) / "code"
        try:
            source = _native_source(request, arguments)
            inductor.build_library(source, made / native.LIBRARY)
        except Exception:  # it calls libraries, or this version of the compiler writes other code
            shutil.rmtree(made, ignore_errors=True)
            _compile_one(request, arguments, made / SINGLE)
        try:
            made.rename(folder)
        except OSError:  # somebody else was faster
            if not folder.exists():
                raise


def _compile_one(request: Request, arguments: Sequence[Tensor], path: Path) -> None:
    function = one_sample(request.graph, request.layout)
    graph = inductor.decompose(function, arguments, rows.DECOMPOSITIONS)
    graph = inductor.decompose(graph, arguments, rows.LOOPS)
    inductor.build(graph, arguments, path, request.num_threads)


def main() -> None:
    """Serve one request."""
    length = int.from_bytes(sys.stdin.buffer.read(8), "big")
    request: Request = pickle.loads(sys.stdin.buffer.read(length))
    threading.Thread(target=_end_with_input, daemon=True).start()
    torch.set_num_threads(1)
    if not request.is_urgent and hasattr(os, "nice"):
        os.nice(10)
    with torch.no_grad():
        failure = _failure_of(request)
    sys.stdout.write(json.dumps({"failure": failure}) + "\n")
    sys.stdout.flush()
    os._exit(0)  # at once, whatever the compiler has started


def _failure_of(request: Request) -> str:
    try:
        compile_request(request)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _end_with_input() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.killpg(os.getpid(), signal.SIGKILL)  # with the compilers that it started
