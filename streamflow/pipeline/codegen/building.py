"""What a compiler process does: programs of a stage become code.

Programs that are nothing but kernels of the compiler become C++ at fixed addresses
(:mod:`~streamflow.pipeline.codegen.stage_source`). Those that call libraries (convolutions,
products of matrices) become code that takes held, constants and rows as tensors, writes into held,
and returns outputs, and a number that is finite where everything was.

Run as a program it reads a job from its standard input and writes a line about what came of each
request to its standard output. It ends when its input does, and with the process that started it.
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
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.fx import GraphModule

from streamflow.pipeline import torch_private
from streamflow.pipeline.capture import graphs
from streamflow.pipeline.capture.program import Layout, Program
from streamflow.pipeline.codegen import libraries, matvec
from streamflow.pipeline.codegen.stage_source import Shape, stage_code

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
class Sketch:
    """A program without its tensors.

    Attributes:
        steps: What happens.
        layout: What it takes and returns.
        specs: The tensors that it takes.
    """

    steps: list[graphs.Step]
    layout: Layout
    specs: list[Spec]

    def arguments(self) -> list[Tensor]:
        """Return tensors like those that it takes."""
        return [
            torch.empty_strided(shape, strides, dtype=dtype).zero_()
            for shape, strides, dtype in self.specs
        ]


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be compiled.

    Attributes:
        programs: Of a stage, as its recording has them.
        folder: Where the code goes.
        num_threads: Threads that the code may use.
    """

    programs: list[Sketch]
    folder: Path
    num_threads: int


@dataclass(frozen=True, slots=True)
class Job:
    """What a process does.

    Attributes:
        requests: One after another.
        is_urgent: Whether somebody waits for it.
    """

    requests: list[Request]
    is_urgent: bool


def spec_of(tensor: Tensor) -> Spec:
    """Describe a tensor."""
    return tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype


def sketch(program: Program) -> Sketch:
    """Return what is needed to compile a program."""
    specs = [spec_of(tensor) for tensor in program.arguments]
    return Sketch(graphs.written(program.graph), program.layout, specs)


def in_place(graph: GraphModule, layout: Layout) -> Callable[..., list[Tensor]]:
    """Return the function that runs a sample in place, but for weights if it is not finite."""
    results = _results(graph, layout)

    def run(*tensors: Tensor) -> list[Tensor]:
        found = results(*tensors)
        total = found[-1]
        for place, index in enumerate(layout.written):
            value = found[place]
            if layout.is_checked and place < layout.learned:
                value = torch.where(total.isfinite(), value, tensors[index])
            tensors[index].copy_(value)
        return found[len(layout.written) :]

    return run


def _results(graph: GraphModule, layout: Layout) -> Callable[..., list[Tensor]]:
    """Return the function from a sample to new values, outputs, and what must be finite."""
    first, checks = len(layout.written), int(layout.learns)

    def run(*tensors: Tensor) -> list[Tensor]:
        found = graph(*tensors)
        stop = len(found) - checks
        outputs = [t.clone(memory_format=torch.contiguous_format) for t in found[first:stop]]
        return [*found[:first], *outputs, *found[stop:]]

    return run


def joined(
    graph: GraphModule, layout: Layout, arguments: Sequence[Tensor]
) -> tuple[GraphModule, frozenset[int]]:
    """Return what runs a sample in place, row by row; and the arguments that rows write."""
    found = torch_private.decompose(_results(graph, layout), arguments, matvec.DECOMPOSITIONS)
    by_rows = matvec.fuse(found, layout.written, layout.kept)
    _write(found, layout.written, by_rows)
    return found, by_rows


def _shape(program: Sketch) -> Shape:
    """Return a program in the compiler's operations.

    Raises:
        Unlisted: It is more than kernels.
    """
    layout, arguments = program.layout, program.arguments()
    graph, by_rows = joined(graphs.read(program.steps), layout, arguments)
    if any(node.target in _LIBRARY_CALLS for node in graph.graph.nodes):
        msg = "it calls libraries"
        raise torch_private.Unlisted(msg)
    return Shape(
        graph=torch_private.decompose(graph, arguments, {matvec.OUTER: matvec.LOOPS[matvec.OUTER]}),
        arguments=arguments,
        held=layout.held + layout.constants,
        learned=layout.written[: layout.learned],
        joined=by_rows,
        learns=layout.learns,
        is_checked=layout.is_checked,
    )


def _source(request: Request) -> str:
    """Return C++ of a stage.

    Raises:
        Unlisted: A program is more than kernels.
    """
    return stage_code([_shape(program) for program in request.programs], request.num_threads)


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
    libraries.build(libraries.LINE)
    folder = request.folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        made = Path(place) / "code"
        try:
            torch_private.build_library(_source(request), made / libraries.STAGE)
        except Exception:  # it calls libraries, or this version of the compiler writes other code
            shutil.rmtree(made, ignore_errors=True)
            libraries.build(libraries.LIBRARY)
            for name, program in zip(libraries.NAMES, request.programs, strict=True):
                _compile_whole(program, made / name, request.num_threads)
        with suppress(OSError):  # somebody else was faster
            made.rename(folder)
    if not folder.exists():
        msg = f"{folder} cannot be written"
        raise OSError(msg)


def _compile_whole(program: Sketch, path: Path, num_threads: int) -> None:
    """Compile a program to code that takes and returns tensors."""
    arguments = program.arguments()
    function = in_place(graphs.read(program.steps), program.layout)
    graph = torch_private.decompose(function, arguments, matvec.DECOMPOSITIONS)
    graph = torch_private.decompose(graph, arguments, matvec.LOOPS)
    torch_private.build(graph, arguments, path, num_threads)


def main() -> None:
    """Do one job."""
    length = int.from_bytes(sys.stdin.buffer.read(8), "big")
    job: Job = pickle.loads(sys.stdin.buffer.read(length))
    threading.Thread(target=_end_with_input, daemon=True).start()
    torch.set_num_threads(1)
    if not job.is_urgent and hasattr(os, "nice"):
        os.nice(10)
    with torch.no_grad():
        for request in job.requests:
            failure = _failure_of(request)
            sys.stdout.write(json.dumps({"failure": failure}) + "\n")
            sys.stdout.flush()
            if failure:
                break
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
