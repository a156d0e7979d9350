"""How a network is called: which arguments, and which of them are tensors."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from streamflow.pipeline import trees
from streamflow.pipeline.torch_private import pytree


class CallSignature:
    """The structure of the arguments of a call, and those that are no tensors.

    Args:
        spec: The structure of the positional and the named arguments.
        constants: One entry per leaf: None for a tensor, else the leaf's type and value.
    """

    __slots__ = ("_hash", "constants", "spec")

    def __init__(
        self, spec: pytree.TreeSpec, constants: tuple[tuple[type, Any] | None, ...]
    ) -> None:
        self.spec = spec
        self.constants = constants
        self._hash = hash((spec.num_leaves, constants))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, CallSignature)
            and self.constants == other.constants
            and self.spec == other.spec
        )

    def __repr__(self) -> str:
        return f"<CallSignature {self.spec} with {self.constants}>"


def signature_of(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[CallSignature, tuple[Tensor, ...]]:
    """Take the tensors out of the arguments of a call."""
    leaves, spec = trees.flatten((args, kwargs))
    constants = tuple(None if isinstance(x, Tensor) else (type(x), x) for x in leaves)
    return CallSignature(spec, constants), tuple(x for x in leaves if isinstance(x, Tensor))


def required(module: nn.Module) -> list[str]:
    """Name the arguments that every call gives by place or by name.

    A network whose arguments all have defaults is taken to need the first.
    """
    named = [p for p in _parameters(module) if p.kind is p.POSITIONAL_OR_KEYWORD]
    return [p.name for p in named if p.default is p.empty] or [p.name for p in named[:1]]


def usual_signature(module: nn.Module) -> CallSignature:
    """Return that of calls which give tensors for all that must be given, and nothing else."""
    parameters = _parameters(module)
    count = len(required(module)) or any(p.kind is p.VAR_POSITIONAL for p in parameters)
    keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    tensor = torch.empty(0)
    return signature_of((tensor,) * count, dict.fromkeys(keywords, tensor))[0]


def takes_any_number(module: nn.Module) -> bool:
    """Say whether a network takes any number of arguments, by place or by name."""
    return any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in _parameters(module))


def defaults(module: nn.Module) -> dict[str, Any]:
    """Return the arguments that have a default, and which."""
    return {p.name: p.default for p in _parameters(module) if p.default is not p.empty}


def _parameters(module: nn.Module) -> list[inspect.Parameter]:
    return list(inspect.signature(module.forward).parameters.values())
