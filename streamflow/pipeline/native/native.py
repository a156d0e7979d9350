"""Compiled stages and what runs them outside the interpreter; ``line.cpp`` says how."""

import ctypes
import os
import weakref
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from streamflow.pipeline.capture.program import Program
from streamflow.pipeline.capture.recording import Recording
from streamflow.pipeline.capture.tensor_spec import TensorSpec
from streamflow.pipeline.codegen import libraries
from streamflow.pipeline.native.rings import Done, Rings, Rows, Work
from streamflow.pipeline.schedule import Order

_ALIGNED = 64
_MESSAGE = 1000
# Numbers of torch's own, which have stayed the same since they exist.
_DTYPES = {
    torch.uint8: 0,
    torch.int8: 1,
    torch.int16: 2,
    torch.int32: 3,
    torch.int64: 4,
    torch.float16: 5,
    torch.float32: 6,
    torch.float64: 7,
    torch.bool: 11,
    torch.bfloat16: 15,
}


class _Places(ctypes.Structure):
    _fields_ = (("first", ctypes.c_void_p), ("size", ctypes.c_long))


class _StageOptions(ctypes.Structure):
    _fields_ = (
        ("learn", ctypes.c_void_p),
        ("forward", ctypes.c_void_p),
        ("flush", ctypes.c_void_p),
        ("memory", ctypes.c_void_p),
        ("lag", ctypes.c_long),
        ("is_greedy", ctypes.c_long),
        ("is_newest", ctypes.c_long),
        ("num_inputs", ctypes.c_long),
        ("inputs", ctypes.c_void_p),
        ("num_noises", ctypes.c_long),
        ("noises", ctypes.c_void_p),
        ("num_snapshots", ctypes.c_long),
        ("snapshots", ctypes.c_void_p),
        ("written", ctypes.c_void_p),
        ("num_gradients", ctypes.c_long),
        ("gradients", ctypes.c_void_p),
        ("is_empty", ctypes.c_void_p),
        ("num_slots", ctypes.c_long),
    )


class _StageCall(ctypes.Structure):
    _fields_ = (
        ("learn_held", ctypes.c_void_p),
        ("forward_held", ctypes.c_void_p),
        ("noises", ctypes.c_void_p),
        ("factors", _Places),
        ("made", ctypes.c_long),
        ("skipped", ctypes.c_long),
    )


class _Call(ctypes.Structure):
    _fields_ = (
        ("stages", ctypes.c_void_p),
        ("count", ctypes.c_long),
        ("inputs", ctypes.c_void_p),
        ("labels", ctypes.c_void_p),
        ("num_labels", ctypes.c_long),
        ("outputs", ctypes.c_void_p),
        ("num_outputs", ctypes.c_long),
        ("is_learned", ctypes.c_char_p),
        ("steps", ctypes.c_void_p),
        ("failed", ctypes.c_long),
        ("number", ctypes.c_long),
        ("message", ctypes.c_char * _MESSAGE),
    )


class RaisedError(RuntimeError):
    """Code of a stage raised.

    Attributes:
        stage: Which.
        number: At which sample, counted from the first of the call.
    """

    def __init__(self, message: str, stage: int, number: int) -> None:
        super().__init__(message)
        self.stage, self.number = stage, number


class _LibraryCode:
    """A stage that calls libraries.

    Attributes:
        library: Has its functions.
        memory: What they take as memory.
    """

    def __init__(self, recording: Recording, folder: Path) -> None:
        self.library = _load(libraries.LIBRARY)
        self.library.library_open.restype = ctypes.c_void_p
        self.library.library_close.argtypes = (ctypes.c_void_p,)
        self.library.library_limit.argtypes = (ctypes.c_void_p, ctypes.c_long)
        message = ctypes.create_string_buffer(_MESSAGE)
        given: list[object] = []
        for name, program in zip(libraries.NAMES, recording.programs, strict=True):
            given += os.fsencode(folder / name), _numbers(program)
        self.memory = self.library.library_open(*given, message, ctypes.c_long(_MESSAGE))
        if not self.memory:
            raise RuntimeError(message.value.decode(errors="replace"))
        self._limit = 0
        weakref.finalize(self, self.library.library_close, self.memory)

    def limit(self, num_threads: int) -> None:
        """Let libraries use so many threads; 0 for as many as ever."""
        if num_threads != self._limit:
            self._limit = num_threads
            self.library.library_limit(self.memory, num_threads)


class _Bound:
    """What a stage works on, as the library takes it.

    Attributes:
        call: For the library.
        work: What it says.
    """

    def __init__(self, call: _StageCall) -> None:
        self.call = call
        self.work: Work | None = None
        self._held: list[Tensor] | None = None
        self._addresses: object = None

    def bind(self, work: Work) -> None:
        call, factors = self.call, work.factors
        if work.learn is not self._held:
            self._held = work.learn
            self._addresses = held = _addresses(work.learn), _addresses(work.forward)
            call.learn_held, call.forward_held = map(ctypes.addressof, held)
        call.factors.first = factors.data_ptr()
        call.factors.size = factors[0].nbytes if len(factors) > 1 else 0
        self.work = work


class Native:
    """Runs compiled stages; while it does, the interpreter serves others.

    Attributes:
        rings: Of each stage.

    Args:
        recordings: Of the stages.
        orders: Theirs.
        paths: Their code.
        is_newest: Whether gradients are taken at the newest sample's input.
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        orders: Sequence[Order],
        paths: Sequence[Path],
        *,
        is_newest: bool,
    ) -> None:
        self._line = _load_line()
        count = max(order.lag for order in orders) + 2
        self.rings = [Rings(recording, count) for recording in recordings]
        self._alive: list[object] = []
        self._library_codes: list[_LibraryCode] = []
        options = (_StageOptions * len(recordings))()
        for stage, recording, order, path, rings in zip(
            options, recordings, orders, paths, self.rings, strict=True
        ):
            self._fill(stage, recording, order, path, rings)
            stage.is_newest = is_newest
        self._handle = ctypes.c_void_p(self._line.line_open(options, len(options)))
        if not self._handle:
            raise MemoryError
        self._close = weakref.finalize(self, _close, self._line, self._handle, os.getpid())
        last = recordings[-1]
        calls = (_StageCall * len(recordings))()
        self._calls = [_Bound(call) for call in calls]
        inputs, labels, outputs = (
            _as_places(sizes)
            for sizes in (_sizes(recordings[0].inputs), _label_sizes(last), _sizes(last.outputs))
        )
        noises = [
            _as_places(_sizes([noise.spec for noise in recording.noises]))
            for recording in recordings
        ]
        for call, own in zip(calls, noises, strict=True):
            call.noises = ctypes.addressof(own)
        self._rows = [*inputs, *(place for own in noises for place in own), *labels, *outputs]
        self._alive += [calls, inputs, noises, labels, outputs]
        self._steps = (ctypes.c_long * 1)()
        self._call = _Call(
            stages=ctypes.addressof(calls),
            inputs=ctypes.addressof(inputs),
            labels=ctypes.addressof(labels),
            num_labels=len(labels),
            outputs=ctypes.addressof(outputs),
            num_outputs=len(outputs),
            steps=ctypes.addressof(self._steps),
        )
        self._call_at = ctypes.byref(self._call)

    def __repr__(self) -> str:
        return f"<Native: {len(self.rings)} stages>"

    def run(self, work: Sequence[Work], rows: Rows, *, threads: bool) -> Done:
        """Run samples in order until every stage is at rest.

        Args:
            work: Of each stage.
            rows: The samples.
            threads: Give every stage a thread of its own, instead of one to all of them.

        Raises:
            RaisedError: A stage raised.
        """
        call, count = self._call, rows.count
        for stage, own in zip(self._calls, work, strict=True):
            if own is not stage.work:
                stage.bind(own)
            stage.call.made = stage.call.skipped = 0
        tensors = (*rows.inputs, *rows.noises, *rows.labels, *rows.outputs)
        for place, tensor in zip(self._rows, tensors, strict=True):
            place.first = tensor.data_ptr()
        if count > len(self._steps):
            self._steps = (ctypes.c_long * count)()
            call.steps = ctypes.addressof(self._steps)
        call.count, call.is_learned = count, rows.is_learned
        for code in self._library_codes:
            code.limit(max(torch.get_num_threads() // len(self.rings), 1) if threads else 0)
        self._line.line_run(self._handle, self._call_at, threads)
        if call.failed >= 0:
            message = call.message.decode(errors="replace")
            raise RaisedError(message, call.failed, call.number)
        return Done(
            self._steps[:count],
            [stage.call.made for stage in self._calls],
            [stage.call.skipped for stage in self._calls],
        )

    def place(self, held: Sequence[int]) -> None:
        """Begin with so many samples held by each stage; number 0 is the oldest of the first."""
        self._line.line_place(self._handle, (ctypes.c_long * len(held))(*held))

    def numbers(self) -> list[range]:
        """Return the numbers of the samples that each stage holds; modulo slots they say where."""
        return [
            range(
                self._line.line_backwarded(self._handle, index),
                self._line.line_forwarded(self._handle, index),
            )
            for index in range(len(self.rings))
        ]

    def close(self) -> None:
        """End the threads."""
        self._close()

    def _fill(
        self,
        stage: _StageOptions,
        recording: Recording,
        order: Order,
        path: Path,
        rings: Rings,
    ) -> None:
        if path.name == libraries.STAGE:
            library = ctypes.CDLL(os.fspath(path))
            library.memory_size.restype = ctypes.c_long
            memory = torch.zeros(library.memory_size() + _ALIGNED, dtype=torch.uint8)
            stage.memory = memory.data_ptr() + -memory.data_ptr() % _ALIGNED
            self._alive += [library, memory]
        else:
            code = _LibraryCode(recording, path.parent)
            library, stage.memory = code.library, code.memory
            self._library_codes.append(code)
        written = (ctypes.c_long * len(recording.snapshots))(*recording.snapshots.values())
        parts = rings.inputs, rings.noises, rings.snapshots, rings.gradients
        places = [_places(part) for part in parts]
        self._alive += [written, *places]
        stage.learn, stage.forward = _function(library.learn), _function(library.forward)
        stage.flush = _function(library.flush)
        stage.lag, stage.is_greedy = order.lag, order.is_greedy
        counts, firsts = map(len, places), map(ctypes.addressof, places)
        stage.num_inputs, stage.num_noises, stage.num_snapshots, stage.num_gradients = counts
        stage.inputs, stage.noises, stage.snapshots, stage.gradients = firsts
        stage.written = ctypes.addressof(written)
        stage.is_empty, stage.num_slots = rings.is_empty.data_ptr(), len(rings)


def _load(name: str) -> ctypes.CDLL:
    path = libraries.find(name)
    assert path is not None
    return ctypes.CDLL(os.fspath(path))


def _close(line: ctypes.CDLL, handle: ctypes.c_void_p, pid: int) -> None:
    if os.getpid() == pid:  # a process that was forked off has none of the threads to wait for
        line.line_close(handle)


def _load_line() -> ctypes.CDLL:
    library = _load(libraries.LINE)
    handle, number = ctypes.c_void_p, ctypes.c_long
    library.line_open.restype = handle
    library.line_open.argtypes = (handle, number)
    library.line_close.argtypes = (handle,)
    library.line_run.argtypes = (handle, handle, ctypes.c_bool)
    library.line_place.argtypes = (handle, handle)
    for function in (library.line_forwarded, library.line_backwarded):
        function.restype, function.argtypes = number, (handle, number)
    return library


def _numbers(program: Program) -> ctypes.Array[ctypes.c_long]:
    """Describe a program and its arguments."""
    layout = program.layout
    held = layout.held + layout.constants
    numbers = [held, layout.learns, layout.is_checked, len(program.arguments)]
    for tensor in program.arguments:
        numbers += [_DTYPES[tensor.dtype], tensor.dim(), *tensor.shape, *tensor.stride()]
    return (ctypes.c_long * len(numbers))(*numbers)


def _function(function: object) -> int | None:
    return ctypes.cast(function, ctypes.c_void_p).value  # type: ignore[arg-type]


def _sizes(specs: Sequence[TensorSpec]) -> list[int]:
    return [spec.num_bytes for spec in specs]


def _label_sizes(recording: Recording) -> list[int]:
    """Return the bytes of a sample's targets and weights."""
    layout, arguments = recording.learn.layout, recording.learn.arguments
    count = layout.others + layout.weights
    return [tensor.nbytes for tensor in arguments[len(arguments) - count :]]


def _as_places(sizes: Sequence[int]) -> ctypes.Array[_Places]:
    return (_Places * len(sizes))(*[_Places(None, size) for size in sizes])


def _places(rings: Sequence[Tensor]) -> ctypes.Array[_Places]:
    return (_Places * len(rings))(*[_Places(ring.data_ptr(), ring[0].nbytes) for ring in rings])


def _addresses(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*[tensor.data_ptr() for tensor in tensors])
