"""C++ of a stage: what the compiler makes of its programs, at addresses that never change.

Theory of operation. The compiler turns a program into calls of kernels on buffers. These calls are
listed once, on stand-ins, and each pointer is known by where it lies: in what the stage holds, in a
row of a sample, or in memory of the stage. So a program is a list of calls:

    learn(h, r, o, m)       kernel0(h[0], r[1], m + 128)
                            kernel1(...)
                            copy outputs to o; say whether all is finite

The listing is of the Python module that the compiler would run
(:func:`~streamflow.pipeline.torch_private.list_calls`): its kernels become functions, its calls
lines (``_Listing``), and where it calls something else the program is left to libraries
(``Unlisted``). Buffers that it makes on the way get places in the stage's memory, which lasts, so
that nothing is allocated when a sample is learned.

A weight matrix is updated when it is read the next time
(:mod:`~streamflow.pipeline.codegen.matvec`), and at the end by ``flush``: a flag in the stage's
memory says that an update waits. What else is learned is written by the kernels, and taken back
where something was not finite.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from streamflow.pipeline import torch_private
from streamflow.pipeline.codegen import matvec
from streamflow.pipeline.codegen.matvec_source import ROW_CODE, update_code
from streamflow.pipeline.torch_private import Unlisted

_FLAG = "inductor_cpu_integer_div_error_flag = "
# A flag that all kernels of a process share is no good to stages in threads; where it is not set,
# what it stands for is raised at once, which threads of a kernel could not do.
_REPLACED = {
    "#include <torch/csrc/inductor/cpp_prefix.h>": "",
    'extern "C"': "static",
    f"{_FLAG}&inductor_cpu_integer_div_error;": "",
    f"{_FLAG}nullptr;": "",
}
_ALIGNED = 64
_TYPES = {torch.float32: "float", torch.float64: "double"}


@dataclass(frozen=True, slots=True)
class LoweredProgram:
    """A program to be written down.

    Attributes:
        graph: Takes the arguments, writes some, returns outputs, and where something is learned
            what must be finite.
        arguments: Stand-ins.
        held: How many of them the stage holds; the others are rows.
        learned: Those that are parameters or what the optimizer keeps of them, and are written.
        joined: Those of them that row operations write.
        learns: Whether its last result says if all is finite.
        is_checked: Whether that matters.
    """

    graph: GraphModule
    arguments: Sequence[Tensor]
    held: int
    learned: tuple[int, ...] = ()
    joined: frozenset[int] = frozenset()
    learns: bool = False
    is_checked: bool = False


class _Memory:
    """The memory of a stage, of which parts are taken one after another."""

    def __init__(self) -> None:
        self.size = 0

    def take(self, size: int) -> str:
        """Return the place of so many bytes."""
        place, self.size = f"m + {self.size}", self.size + -(-size // _ALIGNED) * _ALIGNED
        return place


@dataclass(frozen=True, slots=True)
class _Update:
    """The update of a matrix that may wait.

    Attributes:
        name: Of the function that makes it.
        code: That function.
        kept: Where the vectors and factors lie that it is made from.
        given: What the function takes.
        flag: Whether it waits.
    """

    name: str
    code: str
    kept: list[str]
    given: str
    flag: str

    def apply(self) -> str:
        """Return what makes it."""
        return f"{self.name}<false>({self.given}, nullptr, nullptr); {self.flag} = 0;"

    def multiply(self, vector: str, result: str) -> str:
        """Return what makes it and multiplies by a vector on the way."""
        return f"{self.name}<true>({self.given}, {vector}, {result}); {self.flag} = 0;"


def _updates(program: LoweredProgram, memory: _Memory) -> dict[int, _Update]:
    """Return the updates of a program that wait when it ends, by the matrix's place."""
    given = [node for node in program.graph.graph.nodes if node.op == "placeholder"]
    places = {node: index for index, node in enumerate(given)}
    found: dict[int, _Update] = {}
    for node in program.graph.graph.find_nodes(op="call_function", target=matvec.UPDATE):
        weight, delta, x, states, scalars, code = node.args
        matrix = program.arguments[places[weight]]
        kind, name = _TYPES[matrix.dtype], f"update{len(found)}"
        kept = [memory.take(part.meta["val"].nbytes) for part in (delta, x, *scalars)]
        held = [f"({kind}*)(h[{places[part]}])" for part in (weight, *states)]
        found[places[weight]] = _Update(
            name,
            update_code(name, kind, matrix.shape, len(states), len(scalars), code),
            kept,
            ", ".join([*held, *(f"({kind}*)({place})" for place in kept)]),
            f"*(long*)({memory.take(8)})",
        )
    return found


@dataclass(slots=True)
class _Listing:
    """Lists the calls of one program as C++.

    Attributes:
        name: Of its function.
        program: What is listed.
        memory: Of the stage.
        updates: Those that may wait when it begins, by the matrix's place among the held.
        parts: Kernels.
        calls: Calls in order.
    """

    name: str
    program: LoweredProgram
    memory: _Memory
    updates: Mapping[int, _Update]
    parts: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    _known: dict[int, str] = field(default_factory=dict)
    _alive: list[Tensor] = field(default_factory=list)
    _places: dict[int, int] = field(default_factory=dict)
    _unsettled: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        held = self.program.held
        for index, tensor in enumerate(self.program.arguments):
            address = tensor.untyped_storage().data_ptr()
            self._known[address] = f"h[{index}]" if index < held else f"r[{index - held}]"
            self._places[address] = index
        self._unsettled = set(self.updates)

    def kernel(self, types: Sequence[str], source: str) -> Callable[..., None]:
        """Take in a kernel of the compiler's; return what takes in its calls."""
        name = f"{self.name}{len(self.parts)}"
        for old, new in _REPLACED.items():
            source = source.replace(old, new)
        self.parts.append(f"namespace {name} {{{source}}}")

        def called(*arguments: Any) -> None:
            self._settle(*(value for value in arguments if isinstance(value, Tensor)))
            given = [
                self._address(value, kind) if isinstance(value, Tensor) else repr(value)
                for value, kind in zip(arguments, types, strict=True)
            ]
            self.calls.append(f"{name}::kernel({', '.join(given)});")

        return called

    def operation(self, target: Any, arguments: Sequence[Any]) -> Any:
        """Take in a call of something that is no kernel."""
        if target is matvec.PRODUCT:
            return self._product(*arguments)
        if target is matvec.BELOW:
            return self._below(*arguments)
        if target is matvec.UPDATE:
            return self._update(*arguments)
        msg = f"it calls {target}"
        raise Unlisted(msg)

    def copy(self, index: int, output: Tensor) -> None:
        """Take in that an output is copied to where it belongs."""
        if not output.is_contiguous():
            msg = "an output does not lie in one piece"
            raise Unlisted(msg)
        self._settle(output)
        source = self._address(output, "char*")
        self.calls.append(f"std::memcpy(o[{index}], {source}, {output.nbytes});")

    def scalar(self, tensor: Tensor) -> str:
        """Return the expression of a number."""
        return f"*{self._address(tensor, _TYPES[tensor.dtype] + '*')}"

    def _waiting(self, tensor: Tensor) -> _Update | None:
        """Return the update of a matrix that may wait now, and take in that it is made."""
        place = self._places.get(tensor.untyped_storage().data_ptr())
        if place not in self._unsettled:
            return None
        self._unsettled.discard(place)
        return self.updates[place]

    def _settle(self, *tensors: Tensor) -> None:
        """Take in that tensors are read."""
        for tensor in tensors:
            update = self._waiting(tensor)
            if update is not None:
                self.calls.append(f"if ({update.flag}) {{ {update.apply()} }}")

    def _product(self, weight: Tensor, x: Tensor) -> Tensor:
        found = x.new_empty(1, weight.shape[0])
        self._settle(x)
        sizes = f"{_TYPES[x.dtype]}, {weight.shape[0]}, {weight.shape[1]}"
        matrix, vector, result = (self._pointer(tensor) for tensor in (weight, x, found))
        call = f"rows::product<{sizes}>({matrix}, {vector}, {result});"
        update = self._waiting(weight)
        if update is not None:
            call = f"if ({update.flag}) {{ {update.multiply(vector, result)} }} else {call}"
        self.calls.append(call)
        return found

    def _below(self, weight: Tensor, delta: Tensor) -> Tensor:
        found = delta.new_empty(1, weight.shape[1])
        self._settle(weight, delta)
        sizes = f"{_TYPES[delta.dtype]}, {weight.shape[0]}, {weight.shape[1]}"
        given = ", ".join(self._pointer(tensor) for tensor in (weight, delta, found))
        self.calls.append(f"rows::below<{sizes}>({given});")
        return found

    def _update(
        self,
        weight: Tensor,
        delta: Tensor,
        x: Tensor,
        states: list[Tensor],
        scalars: list[Tensor],
        code: str,
    ) -> Tensor:
        """Take in that an update is to wait: it keeps the vectors that it is made from."""
        check = x.new_empty(())
        self._settle(weight, delta, x, *scalars)
        update = self.updates[self._places[weight.untyped_storage().data_ptr()]]
        for tensor, place in zip((delta, x, *scalars), update.kept, strict=True):
            self.calls.append(f"std::memcpy({place}, {self._pointer(tensor)}, {tensor.nbytes});")
        kind = _TYPES[weight.dtype]
        vectors = ", ".join(self._pointer(tensor) for tensor in (delta, x, check))
        self.calls.append(f"rows::check<{kind}, {weight.shape[0]}, {weight.shape[1]}>({vectors});")
        return check

    def _pointer(self, tensor: Tensor) -> str:
        if not tensor.is_contiguous():
            msg = "a vector does not lie in one piece"
            raise Unlisted(msg)
        return self._address(tensor, f"{_TYPES[tensor.dtype]}*")

    def _address(self, tensor: Tensor, type_name: str) -> str:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._known[storage.data_ptr()] = self.memory.take(storage.nbytes())
            self._alive.append(tensor)
        offset = tensor.storage_offset() * tensor.element_size()
        return f"({type_name})({self._known[storage.data_ptr()]} + {offset})"


def stage_code(programs: Sequence[LoweredProgram], num_threads: int) -> str:
    """Return C++ of a stage: ``learn``, ``forward``, ``flush`` and ``memory_size``.

    Args:
        programs: Its backward and update, or all of a sample in the last stage; and its forward
            alone.
        num_threads: Threads that a kernel may use.

    Raises:
        Unlisted: A program is more than calls of kernels.
    """
    memory = _Memory()
    updates = _updates(programs[0], memory)
    named = zip(("learn", "forward"), programs, strict=True)
    listings = [_Listing(name, program, memory, updates) for name, program in named]
    functions = [_function(listing, num_threads) for listing in listings]
    flushed = (f"if ({update.flag}) {{ {update.apply()} }}" for update in updates.values())
    return _FORM.format(
        rows=ROW_CODE,
        parts="\n".join(part for listing in listings for part in listing.parts),
        updates="\n".join(update.code for update in updates.values()),
        functions="\n".join(functions),
        flushed="\n    ".join(flushed),
        size=memory.size,
    )


def _function(listing: _Listing, num_threads: int) -> str:
    program = listing.program
    results = torch_private.list_calls(
        program.graph, program.arguments, listing.kernel, listing.operation, num_threads
    )
    outputs = results[:-1] if program.learns else results
    for index, output in enumerate(outputs):
        listing.copy(index, output)
    kept = _kept(program, listing.memory) if program.is_checked else []
    is_finite = f"std::isfinite({listing.scalar(results[-1])})" if program.is_checked else "true"
    waits = [f"{update.flag} = 1;" for update in listing.updates.values() if program.learns]
    return _FUNCTION.format(
        name=listing.name,
        keep=" ".join(keep for keep, _ in kept),
        calls="\n    ".join(listing.calls),
        is_finite=is_finite,
        restore=" ".join(restore for _, restore in kept),
        waits=" ".join(waits),
    )


def _kept(program: LoweredProgram, memory: _Memory) -> list[tuple[str, str]]:
    """Return what keeps the values of what kernels learn, and what restores them."""
    found = []
    for index in program.learned:
        if index in program.joined:
            continue
        size = program.arguments[index].nbytes
        if size != program.arguments[index].untyped_storage().nbytes():
            msg = "a tensor that is written does not lie in one piece"
            raise Unlisted(msg)
        place = memory.take(size)
        keep = f"std::memcpy({place}, h[{index}], {size});"
        found.append((keep, f"std::memcpy(h[{index}], {place}, {size});"))
    return found


_FORM = """
#include <torch/csrc/inductor/cpp_prefix.h>
#include <algorithm>
#include <cmath>
#include <cstring>

{rows}

{parts}

{updates}

{functions}

extern "C" void flush(char* const* h, char* m) {{
    {flushed}
}}

extern "C" long memory_size() {{ return {size}; }}
"""

_FUNCTION = """
extern "C" bool {name}(char* const* h, char* const* r, char* const* o, char* m) {{
    {keep}
    {calls}
    if (!{is_finite}) {{
        {restore}
        return false;
    }}
    {waits}
    return true;
}}
"""
