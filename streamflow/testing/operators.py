"""What every operator must do to go on from a checkpoint, as a check that raises AssertionError."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streamflow.checkpoints.trees import decode, encode
from streamflow.contracts import Context, Processed, Processor
from streamflow.errors import CheckpointError
from streamflow.nodes.declarations import Operator
from streamflow.records import Record
from streamflow.testing.connectors import make_batch


def check_operator(
    make: Callable[[], Operator],
    values: Sequence[Any],
    *,
    cuts: Iterable[int] | None = None,
    folder: Path | None = None,
) -> None:
    """Check that an operator goes on from its state as if it had never stopped.

    Its state is taken after some records, written as a checkpoint writes it, read, and restored in
    a processor that was just opened. Both then take the rest of the records: their outputs, the
    records they reject and their states at the end have to be the same to the last bit.

    Args:
        make: Declares the operator, each time anew.
        values: What it is given; a `Record` also brings its key, timestamp, headers and sender.
            Some that are rejected, or left out, make the check better.
        cuts: After how many records to take the state; by default after any number of them.
        folder: Where relative paths start.

    Raises:
        AssertionError: It does not.
    """
    context = Context("operator", folder or Path())
    for cut in range(len(values) + 1) if cuts is None else cuts:
        _check_cut(make, context, values, cut)


def _check_cut(
    make: Callable[[], Operator], context: Context, values: Sequence[Any], cut: int
) -> None:
    where = f"after {cut} of {len(values)} records: expected"
    with make().open(context) as processor:
        _process(processor, values[:cut], 0)
        state = processor.state()
        packed = _pack(state)
        again = _pack(processor.state()).bits
        assert again == packed.bits, f"{where} an equal state when asked again, found {again}"
        whole = _go_on(processor, values, cut)
        kept = _pack(state).bits
        assert kept == packed.bits, f"{where} a copy, found a state that changes as records go by"
    with make().open(context) as processor:
        unpacked = packed.unpack()
        processor.restore(unpacked)
        again = _pack(processor.state()).bits
        assert again == packed.bits, f"{where} the restored state, found another one: {again}"
        resumed = _go_on(processor, values, cut)
        kept = _pack(unpacked).bits
        assert kept == packed.bits, f"{where} restore to leave the state alone, found it changed"
    for expected, found in zip(whole, resumed, strict=True):
        assert found == expected, f"{where} {expected}, found {found} with the state restored"


def _process(processor: Processor, values: Sequence[Any], start: int) -> list[str]:
    return _told(processor.process(make_batch(values, start))) if values else []


def _go_on(processor: Processor, values: Sequence[Any], start: int) -> list[str]:
    """Return what becomes of the values from ``start``, the state after them, and what follows."""
    outputs = _process(processor, values[start:], start)
    return [*outputs, _pack(processor.state()).bits, *_told(processor.end())]


def _told(processed: Processed) -> list[str]:
    """Return output and rejected records as text that tells every bit."""
    good, rejected = processed.batch, processed.rejected
    batches = (good, rejected and rejected.batch)
    records = [record for batch in batches if batch for record in batch.records()]
    return [*map(_record_bits, records), repr(rejected and list(rejected.causes))]


def _record_bits(record: Record) -> str:
    parts = [record.value, record.key, record.timestamp_ms, record.headers, record.position]
    try:
        return _encoded(parts).bits
    except CheckpointError:  # records may hold anything
        return repr(record)


@dataclass(frozen=True, slots=True)
class _PackedState:
    """A tree as checkpoints hold it.

    Attributes:
        json: What JSON can hold of it.
        tensors: Copies of its tensors and arrays.
        bits: All of it as text.
    """

    json: str
    tensors: Mapping[str, Any]
    bits: str

    def unpack(self) -> Any:
        """Return the tree, made anew."""
        return decode(json.loads(self.json), lambda name, _: deepcopy(self.tensors[name]))


def _pack(state: Any) -> _PackedState:
    assert type(state) is dict, f"expected state() to return a dict, found {state!r}"
    try:
        return _encoded(state)
    except CheckpointError as error:
        raise AssertionError(str(error)) from error


def _encoded(tree: Any) -> _PackedState:
    encoded = encode(tree, where="state")
    text = json.dumps(encoded.json)
    tensors = {name: _copied(value) for name, value in encoded.tensors.items()}
    bits = [f"{name}: {_tensor_bits(value)}" for name, value in tensors.items()]
    return _PackedState(text, tensors, "; ".join([text, *bits]))


def _copied(value: Any) -> Any:
    return value.copy() if isinstance(value, np.ndarray) else value.detach().clone()


def _tensor_bits(value: Any) -> str:
    if isinstance(value, np.ndarray):
        content, dtype = value, value.dtype.str
    else:
        torch = sys.modules["torch"]  # whoever made a tensor has imported it
        content = value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        dtype = str(value.dtype)
    return f"{dtype} {tuple(value.shape)} {content.tobytes().hex()}"
