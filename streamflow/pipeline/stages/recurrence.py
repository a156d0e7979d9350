"""Recurrent state: buffers that live on from sample to sample, one set per stream."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from streamflow.errors import OptionError
from streamflow.pipeline import torch_private

Key = str | bytes | int | float | bool | None
"""The stream of a sample; None where a caller names none, which is a stream of its own."""

Set = dict[str, Tensor]


def initial_state(module: nn.Module, names: Sequence[str]) -> Set:
    """Copy the buffers that are recurrent state, as every stream begins with them.

    Raises:
        OptionError: There is no such buffer.
    """
    buffers = dict(module.named_buffers())
    for name in names:
        if name not in buffers:
            known = f"they are {', '.join(buffers)}" if buffers else "it has none"
            msg = (
                f"state: expected names of the network's buffers, got {name!r}; {known}; "
                "make one with register_buffer"
            )
            raise OptionError(msg)
    return {name: buffers[name].detach().clone() for name in names}


class States:
    """The recurrent state of one stage.

    Before a forward the buffers take the values of the sample's stream, and afterwards its set
    takes over what the forward left in them, cut off its graph. The stream that was not seen for
    the longest is forgotten where there are more than ``limit``.

    Attributes:
        forgotten: Streams that had to make room.
    """

    def __init__(self, stage: nn.Module, whole: nn.Module, initial: Set, limit: int) -> None:
        own = {name for name, _ in stage.named_buffers()}
        self._names = [name for name in initial if name in own]
        self.bind(stage, whole)
        device = {name: stage.get_buffer(name).device for name in self._names}
        self.initial = {name: initial[name].to(device[name]) for name in self._names}
        self._limit = limit
        self._sets: OrderedDict[Key, Set] = OrderedDict()
        self.forgotten = 0

    def __len__(self) -> int:
        return len(self._names)

    def bind(self, stage: nn.Module, whole: nn.Module) -> None:
        """Use the buffers of a stage."""
        # Where the stage was traced through the owner of a buffer it has an owner of its own.
        self._places = {
            name: [_owner(module, name) for module in (stage, whole)] for name in self._names
        }

    def enter(self, key: Key) -> None:
        """Put the values of a stream into the buffers."""
        found = self._sets.get(key)
        if found is None:
            found = self._sets[key] = _clone(self.initial)
            if len(self._sets) > self._limit:
                self._sets.popitem(last=False)
                self.forgotten += 1
        self._sets.move_to_end(key)
        for name, tensor in found.items():
            self._put(name, tensor)

    def leave(self, key: Key) -> None:
        """Take over what the forward of a sample left in the buffers."""
        for name, places in self._places.items():
            owner, buffer = places[0]
            tensor = torch_private.buffers_of(owner)[buffer]
            assert tensor is not None
            self._sets[key][name] = tensor.detach()
            self._put(name, tensor.detach())

    def of(self, key: Key) -> Set:
        """Return copies of the values that the next sample of a stream would see."""
        return _clone(self._sets.get(key, self.initial))

    def save(self) -> list[tuple[Key, Set]]:
        """Return copies of all sets, the one not seen for the longest first."""
        return [(key, _clone(found)) for key, found in self._sets.items()]

    def load(self, initial: Set, sets: Sequence[tuple[Key, Set]]) -> None:
        """Replace all sets."""
        self.initial = {name: self._moved(name, initial[name]) for name in self._names}
        self._sets = OrderedDict(
            (key, {name: self._moved(name, found[name]) for name in self._names})
            for key, found in sets
        )

    def _moved(self, name: str, tensor: Tensor) -> Tensor:
        return tensor.to(self.initial[name].device, copy=True)

    def _put(self, name: str, tensor: Tensor) -> None:
        for owner, buffer in self._places[name]:
            torch_private.buffers_of(owner)[buffer] = tensor


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, buffer = name.rpartition(".")
    return module.get_submodule(path), buffer


def _clone(found: Set) -> Set:
    return {name: tensor.clone() for name, tensor in found.items()}


def as_keys(keys: Any, count: int) -> list[Key]:
    """Return one key per sample.

    Raises:
        TypeError: A key is of another type than those that can be saved.
    """
    if keys is None:
        return [None] * count
    found = keys.tolist() if hasattr(keys, "tolist") else list(keys)
    for key in found:
        if not isinstance(key, Key):
            msg = f"expected str, bytes, int, float, bool or None, got {type(key).__name__}"
            raise TypeError(msg)
    return found
