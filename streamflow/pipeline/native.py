"""Samples in a row as one C++ function: a loop around what the compiler makes of one sample.

Theory of operation. The compiler turns a sample into calls of kernels on buffers. These calls are
listed once, on stand-ins, and each pointer is known by where it lies: in an argument, or in memory
that all samples share. So a sample is a list of calls at addresses that are constant but for the
rows of inputs, targets, factors and outputs, and any number of samples is a loop:

    learn(held, rows, outputs, memory, count)   for k = 0 to count - 1:
                                                    kernel0(held[0], rows[1] + 64 * k, memory + 128)
                                                    kernel1(...)
                                                    copy outputs; stop if something is not finite

Where samples must be finite to be learned, weights have to be as they were if one is not, and
matrices are updated while its gradient is still on its way. Many samples keep the old values of all
that is written, go back to them if one fails, and learn those before it again. Few samples, and one
that failed, are learned carefully: matrices are updated after all else, and only what else is
learned is kept. What failed is passed over, and the loop ends behind it.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from streamflow.pipeline import inductor, rows
from streamflow.pipeline.inductor import Unlisted
from streamflow.pipeline.rowcode import ROW_CODE, update_code

LIBRARY = "native.so"

_MANY = 8
"""Samples from which on it pays to keep all old values."""

_PREFIX = "#include <torch/csrc/inductor/cpp_prefix.h>"
_ALIGNED = 64
_TYPES = {torch.float32: "float", torch.float64: "double"}
_MESSAGE = 1000


@dataclass(frozen=True, slots=True)
class Shape:
    """What the arguments of a sample are.

    Attributes:
        held: How many of them stay the same for all samples; the others are rows.
        written: Which of the held are written.
        learned: How many of these are parameters, or what the optimizer keeps of them.
        joined: Those that row operations write.
        is_checked: Whether the last result must be finite.
    """

    held: int
    written: tuple[int, ...]
    learned: int
    joined: frozenset[int]
    is_checked: bool


class _Memory:
    """Addresses of tensors as C++ expressions."""

    def __init__(self, arguments: Sequence[Tensor], shape: Shape) -> None:
        self.size = 0
        self._known: dict[int, str] = {}
        self._alive = list(arguments)
        for index, tensor in enumerate(arguments):
            if index < shape.held:
                place = f"h[{index}]"
            else:
                place = f"r[{index - shape.held}] + k * {size_of(tensor)}"
            self._known[tensor.untyped_storage().data_ptr()] = place

    def take(self, size: int) -> str:
        """Return memory of so many bytes."""
        place, self.size = f"m + {self.size}", self.size + -(-size // _ALIGNED) * _ALIGNED
        return place

    def address(self, tensor: Tensor, type_name: str) -> str:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._known[storage.data_ptr()] = self.take(storage.nbytes())
            self._alive.append(tensor)
        offset = tensor.storage_offset() * tensor.element_size()
        return f"({type_name})({self._known[storage.data_ptr()]} + {offset})"


def size_of(tensor: Tensor) -> int:
    """Return the bytes of a contiguous tensor."""
    return tensor.numel() * tensor.element_size()


@dataclass(slots=True)
class _Listing:
    """Lists the calls of a sample as C++.

    Attributes:
        parts: Functions, by name.
        calls: Calls in order.
        careful: What is called instead, where samples are learned carefully.
        late: What is called at the end then.
    """

    memory: _Memory
    parts: dict[str, str] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)

    def kernel(self, types: Sequence[str], source: str) -> Callable[..., None]:
        """Take in a kernel of the compiler's; return what takes in its calls."""
        name = f"k{len(self.parts)}"
        for old, new in (
            ("#include <torch/csrc/inductor/cpp_prefix.h>", ""),
            ('extern "C"', "static"),
        ):
            source = source.replace(old, new)
        self.parts[name] = f"namespace {name} {{{source}}}"

        def called(*arguments: Any) -> None:
            given = [
                self.memory.address(value, kind) if isinstance(value, Tensor) else repr(value)
                for value, kind in zip(arguments, types, strict=True)
            ]
            self.calls.append(f"{name}::kernel({', '.join(given)});")

        return called

    def operation(self, target: Any, arguments: Sequence[Any]) -> Any:
        """Take in a call of something that is no kernel."""
        if target is rows.PRODUCT:
            return self._vector("product", arguments[0], arguments[1], 0)
        if target is rows.BELOW:
            return self._vector("below", arguments[0], arguments[1], 1)
        if target is rows.UPDATE:
            return self._update(*arguments)
        msg = f"it calls {target}"
        raise Unlisted(msg)

    def _vector(self, name: str, weight: Tensor, x: Tensor, dim: int) -> Tensor:
        found = x.new_empty(1, weight.shape[dim])
        sizes = f"{_TYPES[x.dtype]}, {weight.shape[0]}, {weight.shape[1]}"
        given = ", ".join(self._pointer(tensor) for tensor in (weight, x, found))
        self.calls.append(f"rows::{name}<{sizes}>({given});")
        return found

    def _update(
        self,
        weight: Tensor,
        delta: Tensor,
        x: Tensor,
        states: list[Tensor],
        scalars: list[Tensor],
        products: list[Tensor],
        code: str,
        has_below: bool,
    ) -> tuple[Tensor, Tensor]:
        below, check = x.new_empty(1, weight.shape[1] if has_below else 0), x.new_empty(())
        kind = _TYPES[weight.dtype]
        name = f"u{len(self.parts)}"
        self.parts[name] = update_code(name, kind, weight.shape, len(states), len(scalars), code)
        held = [self._pointer(tensor) for tensor in (weight, *states)]
        vectors = [self._pointer(tensor) for tensor in (delta, x, *scalars)]
        saved, copies = [], []
        for tensor, pointer in zip((delta, x, *scalars), vectors, strict=True):
            place = self.memory.take(size_of(tensor))
            copies.append(f"std::memcpy({place}, {pointer}, {size_of(tensor)});")
            saved.append(f"({kind}*)({place})")
        target = self._pointer(below) if has_below else f"({kind}*)nullptr"
        sizes = f"{kind}, {weight.shape[0]}, {weight.shape[1]}"
        lower = f"rows::below<{sizes}>({held[0]}, {vectors[0]}, {target});" if has_below else ""
        flags = f"{name}<{str(has_below).lower()}>"
        self.calls.append(f"if constexpr (careful) {{ {' '.join(copies)} {lower} }}")
        self.calls.append(f"else {flags}({', '.join([*held, *vectors, target])});")
        self.calls.append(
            f"rows::check<{sizes}>({', '.join([*vectors[:2], self._pointer(check)])});"
        )
        null = f"({kind}*)nullptr"
        self.late.append(f"{name}<false>({', '.join([*held, *saved, null])});")
        return below, check

    def _pointer(self, tensor: Tensor) -> str:
        if not tensor.is_contiguous():
            msg = "a vector does not lie in one piece"
            raise Unlisted(msg)
        return self.memory.address(tensor, f"{_TYPES[tensor.dtype]}*")


def source(
    graph: torch.fx.GraphModule, arguments: Sequence[Tensor], shape: Shape, num_threads: int
) -> str:
    """Return C++ that learns samples in a row.

    Args:
        graph: A sample: takes the arguments, writes some, returns outputs and what is checked.
        arguments: Stand-ins.
        shape: What they are.
        num_threads: Threads that a kernel may use.

    Raises:
        Unlisted: A sample is more than calls of kernels.
    """
    listing = _Listing(_Memory(arguments, shape))
    results = inductor.list_calls(graph, arguments, listing.kernel, listing.operation, num_threads)
    *outputs, check = results
    memory = listing.memory
    copied = [
        f"std::memcpy(o[{index}] + k * {size_of(tensor)}, "
        f"{memory.address(tensor, 'char*')}, {size_of(tensor)});"
        for index, tensor in enumerate(outputs)
    ]
    if not all(tensor.is_contiguous() for tensor in outputs):
        msg = "an output does not lie in one piece"
        raise Unlisted(msg)
    test = f"std::isfinite(*{memory.address(check, _TYPES[check.dtype] + '*')})"
    learned = shape.written[: shape.learned]
    few = _kept(memory, [i for i in learned if i not in shape.joined], arguments)
    many = _kept(memory, shape.written, arguments)
    return _FORM.format(
        rows=ROW_CODE,
        parts="\n".join(listing.parts.values()),
        calls="\n    ".join([*listing.calls, *copied]),
        test=test if shape.is_checked else "true",
        late="\n        ".join(listing.late),
        is_checked=str(shape.is_checked).lower(),
        keep_few=" ".join(keep for keep, _ in few),
        restore_few=" ".join(restore for _, restore in few),
        keep_many=" ".join(keep for keep, _ in many),
        restore_many=" ".join(restore for _, restore in many),
        many=_MANY,
        size=memory.size,
        message=_MESSAGE,
    )


def _kept(
    memory: _Memory, indices: Sequence[int], arguments: Sequence[Tensor]
) -> list[tuple[str, str]]:
    """Return what keeps the values of arguments, and what restores them."""
    found = []
    for index in indices:
        size = size_of(arguments[index])
        if size != arguments[index].untyped_storage().nbytes():
            msg = "a tensor that is written does not lie in one piece"
            raise Unlisted(msg)
        place = memory.take(size)
        found.append(
            (
                f"std::memcpy({place}, h[{index}], {size});",
                f"std::memcpy(h[{index}], {place}, {size});",
            )
        )
    return found


_FORM = """
#include <torch/csrc/inductor/cpp_prefix.h>
#include <algorithm>
#include <cmath>
#include <cstring>
#include <exception>
#include <type_traits>

{rows}

{parts}

static void keep_few(char* const* h, char* m) {{ {keep_few} }}
static void restore_few(char* const* h, char* m) {{ {restore_few} }}
static void keep_many(char* const* h, char* m) {{ {keep_many} }}
static void restore_many(char* const* h, char* m) {{ {restore_many} }}

template <bool careful>
static bool step(char* const* h, char* const* r, char* const* o, char* m, long k) {{
    if constexpr (careful) keep_few(h, m);
    {calls}
    const bool is_finite = {test};
    if constexpr (careful) {{
        if (!is_finite) {{
            restore_few(h, m);
            return false;
        }}
        {late}
    }}
    return is_finite;
}}

static long learn_many(char* const* h, char* const* r, char* const* o, char* m, long count) {{
    long done = 0;
    if ({is_checked}) keep_many(h, m);
    while (done < count && step<false>(h, r, o, m, done)) ++done;
    if (done < count) {{
        restore_many(h, m);
        for (long k = 0; k < done; ++k) step<false>(h, r, o, m, k);
    }}
    return done;
}}

extern "C" long memory_size() {{ return {size}; }}

extern "C" long learn(char* const* h, char* const* r, char* const* o, char* m, long count,
                      long* skipped, char* message) {{
    try {{
        long done = 0;
        *skipped = 0;
        if (!{is_checked} || count >= {many}) {{
            done = learn_many(h, r, o, m, count);
            if (done < count) *skipped = !step<true>(h, r, o, m, done++);
            return done;
        }}
        while (done < count && !*skipped) *skipped = !step<true>(h, r, o, m, done++);
        return done;
    }} catch (const std::exception& error) {{
        std::strncpy(message, error.what(), {message} - 1);
        return -1;
    }}
}}
"""


class Native:
    """A library that learns samples in a row; while it does, the interpreter serves others."""

    takes = "all waiting samples"

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        library.memory_size.restype = library.learn.restype = ctypes.c_long
        self._learn = library.learn
        self._memory = torch.empty(library.memory_size() + _ALIGNED, dtype=torch.uint8)
        offset = -self._memory.data_ptr() % _ALIGNED
        self._address = ctypes.c_void_p(self._memory.data_ptr() + offset)
        self._skipped = ctypes.c_long()
        self._message = ctypes.create_string_buffer(_MESSAGE)
        self._held: list[Tensor] = []
        self._held_at = _addresses([])

    def learn(
        self, held: list[Tensor], rows: Sequence[Tensor], outputs: Sequence[Tensor], count: int
    ) -> tuple[int, bool]:
        """Learn samples in a row; see :class:`~streamflow.pipeline.routines.Routine`."""
        if held is not self._held:
            self._held, self._held_at = held, _addresses(held)
        done = self._learn(
            self._held_at,
            _addresses(rows),
            _addresses(outputs),
            self._address,
            ctypes.c_long(count),
            ctypes.byref(self._skipped),
            self._message,
        )
        if done < 0:
            raise RuntimeError(self._message.value.decode(errors="replace"))
        return done, bool(self._skipped.value)


def _addresses(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*[tensor.data_ptr() for tensor in tensors])
