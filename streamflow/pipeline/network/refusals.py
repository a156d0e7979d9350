"""What a trace of a network would lose or freeze, found while its code runs to be traced."""

import contextlib
import random
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from streamflow.errors import PartitionError
from streamflow.pipeline.network.watching import Attributes, has_hooks
from streamflow.pipeline.torch_private import watching

_DEVICES = ("cpu", "cuda")


@contextlib.contextmanager
def refusing(module: nn.Module) -> Iterator[None]:
    """Raise where the code changes more than tensors, or draws what a trace would draw once.

    Raises:
        PartitionError: It does, or the network has hooks; it is as it was before.
    """
    check_no_hooks(module, "")
    attributes, numbers = Attributes(module), random.getstate()
    written = ""
    try:
        with watching(_no_draws), _draws() as drawn:
            yield
    finally:
        written = attributes.set_back()
    if written:
        msg = f"a write to attribute {written}, which a trace would do once"
        raise PartitionError(msg)
    if drawn:
        random.setstate(numbers)
        msg = "Python's random numbers, which a trace would draw once"
        raise PartitionError(msg)


def check_no_hooks(module: nn.Module, name: str) -> None:
    """Check a module that is traced, whose hooks would run only while it is.

    Raises:
        PartitionError: It has hooks.
    """
    if has_hooks(module):
        where = f"of {name!r}" if name else "of the network itself"
        msg = f"hooks {where}, which a trace would lose"
        raise PartitionError(msg)


def casts() -> list[bool]:
    """Return where autocast is on."""
    return [torch.is_autocast_enabled(device) for device in _DEVICES]


def check_modes(before: list[bool]) -> None:
    """Check the modes of torch in which the code calls something.

    Args:
        before: What :func:`casts` said before the code ran.

    Raises:
        PartitionError: They are those of a block within the code.
    """
    if not torch.is_grad_enabled():
        msg = "no_grad, which a trace would lose"
        raise PartitionError(msg)
    if casts() != before:
        msg = "autocast, which a trace would lose"
        raise PartitionError(msg)


def _no_draws(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Refuse random numbers that are drawn while the code is traced and would stay the same."""
    if torch.Tag.nondeterministic_seeded in func.tags:
        msg = "random numbers, which a trace would draw once"
        raise PartitionError(msg)
    return func(*args, **kwargs)


@contextlib.contextmanager
def _draws() -> Iterator[list[str]]:
    """Give a list that fills with what this thread draws from Python's generator.

    Whether the generator has moved would not tell: other threads draw, too, such as for the time
    until they try again to connect.
    """
    drawn: list[str] = []
    generator = getattr(random.random, "__self__", None)

    def watch(frame: Any, event: str, called: Any) -> None:
        if event == "c_call" and getattr(called, "__self__", None) is generator:
            drawn.append(called.__name__)

    outer = sys.getprofile()
    sys.setprofile(watch)
    try:
        yield drawn
    finally:
        sys.setprofile(outer)
