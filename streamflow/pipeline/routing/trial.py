"""Whether the rows of a batch come out of a network as if each were alone.

A network may look at the whole batch, write buffers, draw random numbers or count its calls. It is
tried on copies of what a forward may write:

- A few samples run by themselves and as rows of a batch, in order and in reverse order: equal to
  rounding.
- Every other row of the batch is replaced, by what is not a number where numbers are floats: the
  rows that are left must not change at all.
- Meanwhile no value is read that could decide which way the network takes, no random number drawn,
  and no buffer or parameter written.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from streamflow.pipeline import torch_private, trees
from streamflow.pipeline.stages.lanes import await_here, now
from streamflow.pipeline.stages.randomness import default_generator
from streamflow.pipeline.stages.stage import Stage, call

FEWEST = 4
"""Samples that share a forward; fewer cost as much by themselves."""

_MOST = 256
# Of the largest tensor inside the network: beyond it a batch saves little, and takes much memory.
_MOST_ELEMENTS = 2**22
_TRIED = 8
_ROUNDING = {
    torch.float64: 1e-8,
    torch.complex128: 1e-8,
    torch.float32: 1e-3,
    torch.complex64: 1e-3,
}
_COARSE = 0.05


class Unequal(Exception):
    """A batch is not the same as its rows; says why."""


class Failed(Exception):
    """A sample by itself fails."""


class Trial:
    """Runs a network on copies of its buffers, and raises where a batch could differ."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = stages
        self._watch = _Watch()
        self._watching = torch_private.watching(self._watch)

    def count_rows(self, inputs: Any, count: int) -> int:
        """Return how many samples may share a forward.

        Raises:
            Unequal: None may.
            Failed: A sample by itself fails.
        """
        self._run(rows(inputs, slice(0, 1)))
        most = min(_MOST, _MOST_ELEMENTS // max(1, self._watch.largest))
        if most < FEWEST:
            msg = "they are large"
            raise Unequal(msg)
        count = min(count, most)
        places = sorted({index * (count - 1) // (_TRIED - 1) for index in range(_TRIED)})
        alone = {index: self._run(rows(inputs, slice(index, index + 1))) for index in places}
        try:
            self._try_batches(inputs, count, alone)
        except Failed as error:
            msg = f"a batch fails: {error}"
            raise Unequal(msg) from error
        return most

    def _try_batches(self, inputs: Any, count: int, alone: dict[int, Any]) -> None:
        """Compare batches with some of their samples alone, by place, and with one another."""
        together = self._compare(rows(inputs, slice(0, count)), alone)
        self._compare(
            rows(inputs, torch.arange(count - 1, -1, -1)),
            {count - 1 - index: output for index, output in alone.items()},
        )
        for kept in (0, 1):
            outputs = self._run(_with_strange_neighbours(rows(inputs, slice(0, count)), kept))
            for index in alone:
                row = slice(index, index + 1)
                if index % 2 == kept and not _is_same(
                    rows(outputs, row), rows(together, row), exactly=True
                ):
                    msg = "the rows of a batch depend on one another"
                    raise Unequal(msg)

    def _compare(self, inputs: Any, wanted: dict[int, Any]) -> Any:
        """Run a batch whose rows should give certain outputs."""
        outputs = self._run(inputs)
        for index, output in wanted.items():
            row = rows(outputs, slice(index, index + 1))
            if not _is_same(row, output, exactly=False):
                msg = "a batch gives something else"
                raise Unequal(msg)
        return outputs

    def _run(self, inputs: Any) -> Any:
        values: Any = (inputs,)
        ready = now(self._stages[0].lane.device)
        for stage in self._stages:
            lane = stage.lane
            with lane.enter(), torch.no_grad(), _copied_buffers(stage):
                brought = trees.map_tensors(Tensor.clone, lane.bring(values, ready))
                values = self._run_watched(stage, brought)
                ready = lane.ready()
        await_here(values, ready)
        return values

    def _run_watched(self, stage: Stage, values: Any) -> Any:
        generator = default_generator(stage.lane.device)

        def run() -> Any:
            before = generator.get_state()
            with self._watching:
                outputs = call(stage.module, values, is_first=stage.index == 0)
            if not torch.equal(before, generator.get_state()):
                msg = "the network draws random numbers"
                raise Unequal(msg)
            return outputs

        try:
            outputs = stage.randomness.probe(run)
        except Unequal:
            raise
        except Exception as error:
            msg = f"{type(error).__name__}: {error}"
            raise Failed(msg) from error
        if self._watch.has_read:
            msg = "the way through the network may depend on values"
            raise Unequal(msg)
        return outputs


class _Watch:
    """What operations did.

    Attributes:
        largest: Elements of the largest result that has memory of its own.
        has_read: Whether a value or a number of values became known to Python.
    """

    def __init__(self) -> None:
        self.largest = 0
        self.has_read = False

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        if torch.Tag.data_dependent_output in func.tags or func is torch.ops.aten.nonzero.default:
            self.has_read = True
        if isinstance(result, Tensor) and not func.is_view:  # a weight's, most of all
            self.largest = max(self.largest, result.numel())
        return result


@contextmanager
def _copied_buffers(stage: Stage) -> Iterator[None]:
    """Lend a stage copies of its buffers, and see that nothing is written.

    Raises:
        Unequal: The forward writes a buffer or a parameter.
    """
    own = [
        (owner, key, torch_private.buffers_of(owner)[key]) for _, owner, key in stage.buffers.places
    ]
    copies = [None if buffer is None else buffer.detach().clone() for _, _, buffer in own]
    versions = [torch_private.version_of(parameter) for parameter in stage.parameters.values()]
    for (owner, key, _), copied in zip(own, copies, strict=True):
        torch_private.buffers_of(owner)[key] = copied
    try:
        yield
        left = [torch_private.buffers_of(owner)[key] for owner, key, _ in own]
        is_written = any(
            now is not copied or (copied is not None and torch_private.version_of(copied) > 0)
            for now, copied in zip(left, copies, strict=True)
        )
        if is_written or versions != [
            torch_private.version_of(p) for p in stage.parameters.values()
        ]:
            msg = "the forward writes buffers or parameters"
            raise Unequal(msg)
    finally:
        for owner, key, buffer in own:
            torch_private.buffers_of(owner)[key] = buffer


def rows(tree: Any, places: slice | Tensor) -> Any:
    """Return some rows of every tensor."""
    return trees.map_tensors(lambda tensor: tensor[places], tree)


def _with_strange_neighbours(inputs: Any, kept: int) -> Any:
    """Return inputs of which every other row, those of the other parity, is something else."""

    def replace(tensor: Tensor) -> Tensor:
        strange = _strange(tensor[1 - kept :: 2])
        replaced = tensor.clone()
        replaced[1 - kept :: 2] = strange
        return replaced

    return trees.map_tensors(replace, inputs)


def _strange(tensor: Tensor) -> Tensor:
    """Return what a dependent row must notice, but the network takes."""
    if trees.can_carry_gradient(tensor):
        return torch.full_like(tensor, float("nan"))
    if tensor.dtype is torch.bool:
        return ~tensor
    low, high = (tensor.min().clamp(max=0), tensor.max().clamp(min=1)) if tensor.numel() else (0, 1)
    return low + (tensor - low + 1) % (high - low + 1)


def _is_same(found: Any, wanted: Any, *, exactly: bool) -> bool:
    """Say whether outputs are the same to rounding, or to the last few bits."""
    if trees.shapes(found) != trees.shapes(wanted):
        return False
    return all(
        is_close(one.detach(), other.detach(), _rounding(other.dtype, exactly=exactly))
        for one, other in zip(trees.tensors(found), trees.tensors(wanted), strict=True)
    )


def _rounding(dtype: torch.dtype, *, exactly: bool) -> float:
    if exactly and (dtype.is_floating_point or dtype.is_complex):
        return 16 * torch.finfo(dtype).eps
    return _ROUNDING.get(dtype, _COARSE)


def is_close(found: Tensor, wanted: Tensor, rounding: float) -> bool:
    """Say whether tensors are the same, those of numbers to a part of the largest finite one."""
    if not trees.can_carry_gradient(wanted):
        return torch.equal(found, wanted)
    finite = wanted[wanted.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    return torch.allclose(found, wanted, rtol=rounding, atol=rounding * scale, equal_nan=True)
