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
from typing import Self

import torch
from torch import Tensor
from torch.fx import GraphModule

from streamflow.pipeline import torch_private
from streamflow.pipeline.capture import graphs
from streamflow.pipeline.capture.program import Layout, Program
from streamflow.pipeline.capture.tensor_spec import TensorSpec
from streamflow.pipeline.codegen import libraries, matvec
from streamflow.pipeline.codegen.stage_source import LoweredProgram, stage_code

_aten = torch.ops.aten
# The compiler is not asked for kernels where it is known to have none.
_LIBRARY_CALLS = (
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten.baddbmm.default,
    _aten.convolution.default,
)


@dataclass(frozen=True, slots=True)
class ProgramSpec:
    """A program without its tensors.

    Attributes:
        steps: What happens.
        layout: What it takes and returns.
        specs: The tensors that it takes.
    """

    steps: list[graphs.Step]
    layout: Layout
    specs: list[TensorSpec]

    @classmethod
    def of(cls, program: Program) -> Self:
        """Return what is needed to compile a program.

        Raises:
            Unsupported: It calls what has no name.
        """
        specs = [TensorSpec.of(tensor) for tensor in program.arguments]
        return cls(graphs.serialize(program.graph), program.layout, specs)

    def arguments(self) -> list[Tensor]:
        """Return tensors like those that it takes."""
        return [spec.empty().zero_() for spec in self.specs]


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be compiled.

    Attributes:
        programs: Of a stage, as its recording has them.
        folder: Where the code goes.
        num_threads: Threads that the code may use.
    """

    programs: list[ProgramSpec]
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


def _lowered(program: ProgramSpec) -> LoweredProgram:
    """Return a program in the compiler's operations.

    Raises:
        Unlisted: It is more than kernels.
    """
    layout, arguments = program.layout, program.arguments()
    graph, by_rows = joined(graphs.deserialize(program.steps), layout, arguments)
    for node in graph.graph.nodes:
        if node.target in _LIBRARY_CALLS:
            msg = f"it calls {node.target.overloadpacket}"
            raise torch_private.Unlisted(msg)
    return LoweredProgram(
        graph=torch_private.decompose(graph, arguments, {matvec.OUTER: matvec.LOOPS[matvec.OUTER]}),
        arguments=arguments,
        held=layout.held + layout.constants,
        learned=layout.written[: layout.learned],
        joined=by_rows,
        learns=layout.learns,
        is_checked=layout.is_checked,
    )


def source_of(request: Request) -> str:
    """Return C++ of a stage.

    Raises:
        Unlisted: A program is more than kernels.
        Unavailable: This version of torch cannot.
    """
    return stage_code([_lowered(program) for program in request.programs], request.num_threads)


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
    """Compile into the request's folder, which appears as a whole.

    Raises:
        OSError: It cannot be written.
        Exception: Whatever the compiler raises, where not even calls of libraries compile.
    """
    libraries.build(libraries.LINE)
    folder = request.folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        made = Path(place) / "code"
        fault, reason = torch_private.OUTER_FUSION.missing(), ""
        try:
            torch_private.build_library(source_of(request), made / libraries.STAGE)
        except Exception as error:  # this version of the compiler may write other code
            reason = str(error) if isinstance(error, torch_private.Unlisted) else told(error)
            fault = fault if isinstance(error, torch_private.Unlisted) else reason
            shutil.rmtree(made, ignore_errors=True)
            libraries.build(libraries.LIBRARY)
            for name, program in zip(libraries.NAMES, request.programs, strict=True):
                _compile_whole(program, made / name, request.num_threads)
        note = {"reason": reason, "fault": fault}
        (made / libraries.NOTE).write_text(json.dumps(note))
        with suppress(OSError):  # somebody else was faster
            made.rename(folder)
    if not folder.exists():
        msg = f"{folder} cannot be written"
        raise OSError(msg)


def _compile_whole(program: ProgramSpec, path: Path, num_threads: int) -> None:
    """Compile a program to code that takes and returns tensors."""
    arguments = program.arguments()
    function = in_place(graphs.deserialize(program.steps), program.layout)
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
        return told(error)
    return ""


def told(error: Exception) -> str:
    """Return an error in a line: of what a compiler has printed, the first error."""
    if isinstance(error, torch_private.Unavailable):
        return str(error)
    lines = str(error).strip().splitlines() or [""]
    line = next((line for line in lines if "error:" in line), lines[0])
    return f"{type(error).__name__}: {line}"


def _end_with_input() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.killpg(os.getpid(), signal.SIGKILL)  # with the compilers that it started
