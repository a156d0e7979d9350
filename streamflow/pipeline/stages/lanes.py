"""Where stages compute: a device each, and on CUDA a stream each, so that stages overlap.

Values leave a stage with an event of its stream, and the next stage's stream waits for it: the host
never does. On the CPU all of this is nothing.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from streamflow.errors import OptionError
from streamflow.pipeline import torch_private, trees
from streamflow.pipeline.options import Device

Ready = torch.cuda.Event | None
"""When values can be read; None where they can be at once."""


class Lane:
    """The device and stream of one stage; entered around everything that it computes.

    Attributes:
        device: The device.
        is_host: Whether it computes as its caller does, so that nothing is entered or awaited.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.is_host = device.type != "cuda"
        self._stream: torch.cuda.Stream | None = None
        if not self.is_host:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __repr__(self) -> str:
        return f"<Lane on {self.device}>"

    def enter(self) -> AbstractContextManager[Any]:
        """Return a context in which torch computes here."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def ready(self) -> Ready:
        """Return when everything that was started here until now is done."""
        return None if self._stream is None else self._stream.record_event()

    def bring(self, values: Any, ready: Ready) -> Any:
        """Return values of another lane for use here; called inside :meth:`enter`."""
        if ready is not None and self._stream is None:
            ready.synchronize()
        elif ready is not None and self._stream is not None:
            self._stream.wait_event(ready)

        def bring(tensor: Tensor) -> Tensor:
            if tensor.device != self.device:
                return tensor.to(self.device, non_blocking=self._stream is not None)
            if self._stream is not None:
                # The allocator must not reuse the memory while this stream still reads it.
                tensor.record_stream(self._stream)
            return tensor

        return values if self._stream is None and ready is None else _each(bring, values)


def _each(function: Any, values: Any) -> Any:
    if isinstance(values, list):  # gradients, some of them missing
        return [None if value is None else function(value) for value in values]
    return trees.map_tensors(function, values)


def now(device: torch.device) -> Ready:
    """Return when what the caller's stream has started until now is done."""
    return None if device.type != "cuda" else torch.cuda.current_stream(device).record_event()


def await_here(values: Any, ready: Ready) -> None:
    """Let the caller's stream wait for values that a lane computes."""
    if ready is None:
        return
    for tensor in trees.tensors(values):
        stream = torch.cuda.current_stream(tensor.device)
        stream.wait_event(ready)
        tensor.record_stream(stream)


def own(tree: Any, device: torch.device) -> Any:
    """Copy what a caller may change to a device; out of pinned memory where that is faster."""

    def copy(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        if device.type == "cuda" and tensor.device.type == "cpu":
            return tensor.pin_memory().to(device, non_blocking=True)
        return tensor.to(device, copy=True)

    return trees.map_tensors(copy, tree)


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a module's first tensor."""
    tensor = next(module.parameters(), next(module.buffers(), None))
    return torch.device("cpu") if tensor is None else tensor.device


def spread(devices: Device | Sequence[Device] | None, num_stages: int) -> list[torch.device | None]:
    """Return the device of every stage, None where it stays where it is.

    Raises:
        OptionError: There is no such device here.
    """
    if devices is None:
        return [None] * num_stages
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        return [_device(device) for device in devices]
    return [_device(devices)] * num_stages


def _device(name: Device) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        count = torch.cuda.device_count()
        msg = (
            f"devices: expected devices of this machine, got {name!r}: {error}; "
            f"there {'is' if count == 1 else 'are'} cpu and {count} of cuda"
        )
        raise OptionError(msg) from error


def move(stage: nn.Module, whole: nn.Module, device: torch.device) -> None:
    """Move the tensors of a stage, which stay those of the whole network."""
    for parameter in stage.parameters():
        parameter.data = parameter.data.to(device)
    for name, buffer in list(stage.named_buffers()):
        moved = buffer.to(device)
        path, _, key = name.rpartition(".")
        for module in (stage, whole):
            torch_private.buffers_of(module.get_submodule(path))[key] = moved
