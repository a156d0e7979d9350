"""What code is made for: attributes of modules, and modes of torch, that a graph fixes."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from streamflow.pipeline.torch_private import (
    FLAT_WEIGHTS,
    HOOKS,
    buffers_of,
    children_of,
    hooks_of,
    parameters_of,
)

_OWN = {*vars(nn.Module()), FLAT_WEIGHTS[0]} - {"training"}
_SIMPLE = (int, float, str)

_Place = tuple[dict[str, Any], str, Any]


class Attributes:
    """The attributes of the modules of a network as they are now.

    Attributes:
        hooked: Name of a module with hooks, which a graph does not call; empty where none has any.
    """

    def __init__(self, *modules: nn.Module) -> None:
        named = [pair for root in modules for pair in root.named_modules()]
        self._parts = [part for _, part in named]
        self._all = [place for part in self._parts for place in _places(part)]
        buffers = {id(buffers_of(part)) for part in self._parts}  # which eager learning may replace
        self._watched = [place for place in self._all if id(place[0]) not in buffers]
        values = (value for _, _, value in self._watched)
        self._contents = [(v, v.copy()) for v in values if isinstance(v, list | dict | set)]
        self._hooks = [getattr(part, key) for part in self._parts for key in HOOKS]
        parameters = [
            p for part in self._parts for p in parameters_of(part).values() if p is not None
        ]
        self._gradients = [(parameter, parameter.requires_grad) for parameter in parameters]
        self._modes = _modes()
        hooked = (name or type(part).__name__ for name, part in named if _is_hooked(part))
        self.hooked = next(hooked, "")

    def are_the_same(self) -> bool:
        """Say whether nothing has changed, and no module has hooks."""
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

    def set_back(self) -> str:
        """Undo writes to attributes and buffers, new ones too; say which was first, if any was."""
        before = {(id(held), key): value for held, key, value in self._all}
        contents = {id(value): content for value, content in self._contents}
        written = []
        for part in self._parts:
            for held, key, value in list(_places(part)):
                known = before.get((id(held), key), _NOTHING)
                if value is known and _is_same(value, contents.get(id(value))):
                    continue
                written.append(f"{key!r} of {type(part).__name__}")
                if known is _NOTHING:
                    del held[key]
                else:
                    held[key] = known
        return next(iter(written), "")


_NOTHING = object()


def _is_same(value: Any, content: Any) -> bool:
    """Say whether a container holds what it did; anything else has no content."""
    if content is None or len(value) != len(content):
        return content is None
    items = [*value, *value.values()] if isinstance(value, dict) else list(value)
    before = [*content, *content.values()] if isinstance(content, dict) else list(content)
    return all(one is other for one, other in zip(items, before, strict=True))


def has_hooks(module: nn.Module) -> bool:
    """Say whether something is called beside the forward of a module itself."""
    return any(getattr(module, hooks) for hooks in HOOKS)


def _is_hooked(module: nn.Module) -> bool:
    own = (parameter for parameter in parameters_of(module).values() if parameter is not None)
    return has_hooks(module) or any(map(hooks_of, own))


def _places(part: nn.Module) -> Iterator[_Place]:
    attributes: dict[str, Any] = vars(part)
    yield from ((attributes, key, value) for key, value in attributes.items() if key not in _OWN)
    for held in (children_of(part), parameters_of(part), buffers_of(part)):
        yield from ((held, key, value) for key, value in held.items())


def _modes() -> tuple[Any, ...]:
    return torch.get_default_dtype(), torch.is_autocast_enabled("cpu")
