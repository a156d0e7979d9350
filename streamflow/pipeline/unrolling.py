"""What a compiler process does: samples in a row as one function, compiled, one size after another.

Theory of operation. A call of K samples is K copies of the recorded graph, each of which takes what
the one before it returned. The caller's tensors are written in place at the end. Where samples must
be finite to be learned, a call of one sample keeps weights as they were if it was not. A longer
call keeps the old values of all, so that it can be undone and done again sample by sample:

    takes     held, backup of what is written, constants, factors (samples, groups, factors),
              inputs, targets and weights (samples, ...)
    returns   outputs (samples, ...), and a sum that is finite where everything was

    held ── sample 1 ── sample 2 ── … ── sample K ── held
      └──────────────────────────────────────────── backup

Run as a program it reads a request from its standard input and writes a line per size to its
standard output. It ends when its input does, and with the process that started it.
"""

import json
import os
import pickle
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.fx import GraphModule

from streamflow.pipeline import inductor
from streamflow.pipeline.recording import Layout

LIBRARY = "code.so"

Spec = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]
"""Shape, strides and dtype of a tensor."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be compiled.

    Attributes:
        graph: A sample, recorded.
        layout: What it takes and returns.
        specs: The tensors that it takes.
        folders: Where the code of each size goes, in the order in which they are wanted.
        num_threads: Threads that the code may use.
        is_urgent: Whether somebody waits for it.
    """

    graph: GraphModule
    layout: Layout
    specs: list[Spec]
    folders: dict[int, Path]
    num_threads: int
    is_urgent: bool = True


def spec_of(tensor: Tensor) -> Spec:
    """Describe a tensor."""
    return tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype


def in_a_row(graph: GraphModule, layout: Layout, count: int) -> Callable[..., list[Tensor]]:
    """Return the function that learns ``count`` samples, one after the other."""

    def learn(*tensors: Tensor) -> list[Tensor]:
        given = iter(tensors)
        held = _take(given, layout.held)
        backup = _take(given, num_backup(layout, count))
        constants = _take(given, layout.constants)
        factors = next(given)
        samples = _take(given, layout.inputs + layout.targets)
        weights = _take(given, layout.weights)
        now, outputs, losses = list(held), [], []
        for k in range(count):
            found = graph(
                *now,
                *constants,
                factors[k],
                *(tensor[k : k + 1] for tensor in samples),
                *(tensor[k] for tensor in weights),
            )
            for index, tensor in zip(layout.written, found, strict=False):
                now[index] = tensor
            outputs.append(found[len(layout.written) : -2])
            losses.append(found[-2].sum())
        if count == 1:
            sums = [*losses, found[-1]]
        else:
            sums = [*losses, *(now[index].sum() for index in layout.written[: layout.parameters])]
        total = sum(sums[1:], sums[0])
        if layout.is_checked and count == 1:
            for index in layout.written[: layout.learned]:
                now[index] = torch.where(total.isfinite(), now[index], held[index])
        for index, tensor in zip(layout.written, backup, strict=False):
            tensor.copy_(held[index])
        for index in layout.written:
            held[index].copy_(now[index])
        joined = [torch.cat(column).clone() for column in zip(*outputs, strict=True)]
        return [*joined, total] if layout.is_checked else joined

    return learn


def num_backup(layout: Layout, count: int) -> int:
    """Return how many old values a call of ``count`` samples keeps."""
    return len(layout.written) if layout.is_checked and count > 1 else 0


def _take(tensors: Iterator[Tensor], count: int) -> list[Tensor]:
    return [next(tensors) for _ in range(count)]


def specs_in_a_row(layout: Layout, specs: Sequence[Spec], count: int) -> list[Spec]:
    """Describe the tensors that :func:`in_a_row` takes."""
    kept = layout.held + layout.constants
    written = [specs[index] for index in layout.written[: num_backup(layout, count)]]
    factors, *samples = specs[kept:]
    return [
        *specs[: layout.held],
        *written,
        *specs[layout.held : kept],
        _contiguous((count, *factors[0]), factors[2]),
        *(_contiguous((count, *shape[1:]), dtype) for shape, _, dtype in _leading(samples, layout)),
    ]


def _leading(specs: Sequence[Spec], layout: Layout) -> Iterator[Spec]:
    """Give weights, which are scalars, a dimension of samples as all others have it."""
    count = layout.inputs + layout.targets
    yield from specs[:count]
    for shape, strides, dtype in specs[count:]:
        yield (1, *shape), (1, *strides), dtype


def _contiguous(shape: tuple[int, ...], dtype: torch.dtype) -> Spec:
    return shape, torch.empty(shape, device="meta").stride(), dtype


def compile_size(request: Request, count: int, folder: Path) -> None:
    """Compile calls of ``count`` samples into ``folder``, which appears as a whole."""
    specs = specs_in_a_row(request.layout, request.specs, count)
    arguments = [
        torch.empty_strided(shape, strides, dtype=dtype).zero_() for shape, strides, dtype in specs
    ]
    function = in_a_row(request.graph, request.layout, count)
    graph = inductor.unroll(function, arguments)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        made = Path(place) / "code"
        inductor.build(graph, arguments, made / LIBRARY, request.num_threads)
        try:
            made.rename(folder)
        except OSError:  # somebody else was faster
            if not (folder / LIBRARY).exists():
                raise


def main() -> None:
    """Serve one request."""
    length = int.from_bytes(sys.stdin.buffer.read(8), "big")
    request: Request = pickle.loads(sys.stdin.buffer.read(length))
    threading.Thread(target=_end_with_input, daemon=True).start()
    torch.set_num_threads(1)
    if not request.is_urgent and hasattr(os, "nice"):
        os.nice(10)
    with torch.no_grad():
        for count, folder in request.folders.items():
            _answer(count, _failure_of(request, count, folder))
    os._exit(0)  # at once, whatever the compiler has started


def _failure_of(request: Request, count: int, folder: Path) -> str:
    try:
        compile_size(request, count, folder)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _answer(count: int, failure: str) -> None:
    sys.stdout.write(json.dumps({"size": count, "failure": failure}) + "\n")
    sys.stdout.flush()


def _end_with_input() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.killpg(os.getpid(), signal.SIGKILL)  # with the compilers that it started
