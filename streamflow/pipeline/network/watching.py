"""What code is made for: attributes of modules, and modes of torch, that a recorded graph fixes."""

from typing import Any

import torch
from torch import nn

from streamflow.pipeline import torch_private
from streamflow.pipeline.capture.held_tensors import Unsupported

_OWN = {*vars(nn.Module()), torch_private.FLAT_WEIGHTS[0]} - {"training"}
_SIMPLE = (int, float, str)


class Attributes:
    """The attributes of the modules of a network as they are now.

    Raises:
        Unsupported: A module has hooks, which a graph does not call.
    """

    def __init__(self, *modules: nn.Module) -> None:
        self._watched: list[tuple[dict[str, Any], str, Any]] = []
        self._contents: list[tuple[Any, Any]] = []
        self._hooks: list[Any] = []
        self._gradients: list[tuple[nn.Parameter, bool]] = []
        for root in modules:
            for name, part in root.named_modules():
                self._watch(name or type(part).__name__, part)
        self._modes = _modes()

    def _watch(self, name: str, part: nn.Module) -> None:
        attributes = vars(part)
        parameters = [p for p in torch_private.parameters_of(part).values() if p is not None]
        self._hooks += [attributes[key] for key in torch_private.HOOKS]
        self._gradients += [(parameter, parameter.requires_grad) for parameter in parameters]
        if any(self._hooks) or any(map(torch_private.hooks_of, parameters)):
            msg = f"{name} has hooks"
            raise Unsupported(msg)
        for held in (
            attributes,
            torch_private.children_of(part),
            torch_private.parameters_of(part),
        ):
            for key, value in held.items():
                if held is attributes and key in _OWN:
                    continue
                self._watched.append((held, key, value))
                if isinstance(value, list | dict | set):
                    self._contents.append((value, value.copy()))

    def are_the_same(self) -> bool:
        """Say whether nothing has changed."""
        for held, key, value in self._watched:
            now = held.get(key)
            if now is not value and not (type(now) in _SIMPLE and now == value):
                return False
        return not (
            any(self._hooks)
            or any(parameter.requires_grad is not flag for parameter, flag in self._gradients)
            or any(now != before for now, before in self._contents)
            or self._modes != _modes()
        )


def _modes() -> tuple[Any, ...]:
    return torch.get_default_dtype(), torch.is_autocast_enabled("cpu")
