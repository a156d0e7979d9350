"""Tensors and arrays as files in safetensors.

Neither torch nor numpy is imported before a state holds something of theirs, so that a graph
without models needs no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from safetensors import safe_open

if TYPE_CHECKING:
    import numpy as np
    import torch

Kind: TypeAlias = Literal["tensor", "array", "scalar"]

DTYPES = (
    *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
    *("float16", "bfloat16", "float32", "float64", "complex64"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
)
"""What safetensors can hold, by torch's and numpy's names."""


def kind_of(value: object) -> Kind | None:
    """Return what a value is; None if it is neither of numpy nor of torch."""
    if (torch := sys.modules.get("torch")) and isinstance(value, torch.Tensor):
        return "tensor"
    if numpy := sys.modules.get("numpy"):
        if isinstance(value, numpy.ndarray):
            return "array"
        if isinstance(value, numpy.generic):
            return "scalar"
    return None


def objection(value: Any, kind: Kind) -> tuple[str, str, str] | None:
    """Return what was expected, what was found, and what to do, if a value cannot be saved."""
    dtype = str(value.dtype).removeprefix("torch.") if kind == "tensor" else value.dtype.name
    if kind == "scalar":
        if value.dtype.kind in "biuf" and dtype in DTYPES:
            return None
        return "a number of at most 64 bits", f"a numpy {dtype}", "convert it to a plain value"
    if dtype not in DTYPES:
        cure = "convert it, or keep a list"
        return f"{kind}s of numbers that safetensors holds", f"the dtype {dtype}", cure
    if kind == "array":
        name = type(value).__name__
        return None if name == "ndarray" else ("plain arrays", f"a {name}", "convert it")
    if type(value).__name__ not in ("Tensor", "Parameter"):
        return "plain tensors", f"a {type(value).__name__}", "convert it"
    if str(value.layout) != "torch.strided" or value.is_meta:
        layout = "one without data" if value.is_meta else f"the layout {value.layout}"
        return "dense tensors", layout, "convert it with to_dense()"
    return None


def write(path: Path, named: Mapping[str, Any]) -> None:
    """Write tensors and arrays to a file.

    Copies only those that are not contiguous, lie on another device, or share memory.

    Raises:
        OSError, safetensors.SafetensorError: It cannot be written.
    """
    path.touch()
    mode = path.stat().st_mode & 0o777
    if any(kind_of(value) == "tensor" for value in named.values()):
        from safetensors.torch import save_file as save_tensors

        seen: set[int] = set()
        save_tensors({name: _dense(value, seen) for name, value in named.items()}, path)
    else:
        from safetensors.numpy import save_file as save_arrays

        save_arrays({name: _native(array) for name, array in named.items()}, path)
    path.chmod(mode)  # safetensors makes files that only their owner reads


def _dense(value: Any, seen: set[int]) -> torch.Tensor:
    """Return a value as a contiguous tensor on the CPU with memory of its own.

    Args:
        value: A tensor or an array.
        seen: Where the memory of the tensors before begins.
    """
    import torch

    if kind_of(value) == "array":
        array = _native(value)
        # Torch warns of memory that it may not write.
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    else:
        tensor = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
    memory = tensor.untyped_storage().data_ptr()
    if memory in seen:
        return tensor.clone()
    if memory:
        seen.add(memory)
    return tensor


def _native(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return an array in C order and this machine's byte order."""
    return array.astype(array.dtype.newbyteorder("="), order="C", copy=False)


@contextmanager
def reading(path: Path) -> Iterator[Callable[[str, str | None], Any]]:
    """Open a file; give what returns a tensor by name, or an array by name and dtype.

    They have memory of their own.

    Raises:
        OSError, safetensors.SafetensorError: It cannot be read.
    """
    opened: dict[str, Any] = {}
    with ExitStack() as stack:

        def load(name: str, dtype: str | None) -> Any:
            framework = "pt" if dtype is None else "np"
            if framework not in opened:
                opened[framework] = stack.enter_context(safe_open(path, framework=framework))
            value = opened[framework].get_tensor(name)
            # The value may still be the file itself, mapped into memory.
            return value.clone() if dtype is None else value.astype(dtype)

        yield load


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says about one of its tensors."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} ({', '.join(map(str, self.shape))})"


def headers(path: Path) -> dict[str, Header]:
    """Return dtype and shape of all tensors of a file by name, reading none, without torch.

    Raises:
        OSError, safetensors.SafetensorError: It cannot be read.
    """
    with safe_open(path, framework="np") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {
            name: Header(found.get_dtype(), tuple(found.get_shape()))
            for name, found in slices.items()
        }


def scalar(dtype: str, value: Any) -> Any:
    """Return a plain number as numpy's scalar of a dtype."""
    import numpy as np

    return np.dtype(dtype).type(value)
