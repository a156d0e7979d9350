"""A network's code as a list of calls, recorded by ``torch.fx`` for one kind of call.

A trace holds what the code did with tensors while it ran once. What it would lose or freeze is
refused: contexts such as ``no_grad``, writes to attributes, hooks, Python's random numbers.
Tensors that the code makes are recorded as calls, so that they are made anew for every sample.
"""

import contextlib
import inspect
import linecache
import operator
import random
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import Attribute

from streamflow.errors import PartitionError
from streamflow.pipeline import torch_private, trees
from streamflow.pipeline.torch_private import pytree, watching

# Tracing patches ``nn.Module`` for the whole process.
_TRACING = threading.Lock()
_DEVICES = ("cpu", "cuda")
_FACTORIES = (
    "arange",
    "as_tensor",
    "empty",
    "eye",
    "full",
    "linspace",
    "logspace",
    "normal",
    "ones",
    "rand",
    "randint",
    "randn",
    "randperm",
    "tensor",
    "tril_indices",
    "triu_indices",
    "zeros",
)
_IN_PLACE = (
    operator.iadd,
    operator.iand,
    operator.ifloordiv,
    operator.imatmul,
    operator.imod,
    operator.imul,
    operator.ior,
    operator.ipow,
    operator.isub,
    operator.itruediv,
    operator.ixor,
)

IsLeaf = Callable[[nn.Module, str], bool]


class Kind:
    """How a network is called: the structure of its arguments, and those that are no tensors.

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
            isinstance(other, Kind)
            and self.constants == other.constants
            and self.spec == other.spec
        )

    def __repr__(self) -> str:
        return f"<Kind {self.spec} with {self.constants}>"


@dataclass(frozen=True, slots=True)
class Trace:
    """A network as a list of calls.

    Attributes:
        graph: The calls.
        starts: Modules in the order of their first calls, with the number of nodes before it.
        constants: Tensors that the graph takes from attributes which the network does not have.
    """

    graph: fx.Graph
    starts: dict[str, int]
    constants: dict[str, Tensor]


def kind_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Kind, tuple[Tensor, ...]]:
    """Take the tensors out of the arguments of a call."""
    leaves, spec = trees.flatten((args, kwargs))
    constants = tuple(None if isinstance(x, Tensor) else (type(x), x) for x in leaves)
    return Kind(spec, constants), tuple(x for x in leaves if isinstance(x, Tensor))


def required(module: nn.Module) -> list[str]:
    """Name the arguments that every call gives by place or by name.

    A network whose arguments all have defaults is taken to need the first.
    """
    parameters = inspect.signature(module.forward).parameters.values()
    named = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    return [p.name for p in named if p.default is p.empty] or [p.name for p in named[:1]]


def usual_kind(module: nn.Module) -> Kind:
    """Return the kind of calls that give tensors for all that must be given, and nothing else."""
    parameters = inspect.signature(module.forward).parameters.values()
    count = len(required(module)) or any(p.kind is p.VAR_POSITIONAL for p in parameters)
    keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    tensor = torch.empty(0)
    return kind_of((tensor,) * count, dict.fromkeys(keywords, tensor))[0]


def trace(module: nn.Module, is_leaf: IsLeaf, kind: Kind | None = None) -> Trace:
    """Record what a network does in calls of one kind, by default the usual one.

    Raises:
        PartitionError: The network cannot be traced, or a trace would be something else.
    """
    if kind is not None:
        return _trace(module, is_leaf, kind)
    try:
        return _trace(module, is_leaf, usual_kind(module))
    except PartitionError:
        parameters = inspect.signature(module.forward).parameters.values()
        if all(p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
            raise
        return _trace(module, is_leaf, None)


def _trace(module: nn.Module, is_leaf: IsLeaf, kind: Kind | None) -> Trace:
    """Trace calls of one kind, or of any number of arguments beside the defaults."""
    with _TRACING:
        tracer = _Tracer(module, is_leaf, kind)
        try:
            with _unchanged(module), torch.enable_grad(), watching(_no_draws), _recording(tracer):
                graph = tracer.trace(module, concrete_args=_defaults(module))
        except Exception as error:
            msg = (
                f"stages: expected {type(module).__name__} to be traceable around the cuts, got "
                f"{error}{_place(error)}; move that into a module without a cut inside, which is "
                "not traced"
            )
            raise PartitionError(msg) from error
    return Trace(graph, tracer.starts, tracer.constants)


@contextlib.contextmanager
def _recording(tracer: fx.Tracer) -> Iterator[None]:
    """Record that a tensor is made instead of making it; sizes may be known only later."""
    thread, originals = threading.get_ident(), {name: getattr(torch, name) for name in _FACTORIES}

    def recorded(function: Callable[..., Any]) -> Callable[..., Any]:
        def record(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread:
                return function(*args, **kwargs)
            return tracer.create_proxy("call_function", function, args, kwargs)

        return record

    try:
        for name, function in originals.items():
            setattr(torch, name, recorded(function))
        yield
    finally:
        for name, function in originals.items():
            setattr(torch, name, function)


class _InPlace(fx.Proxy):
    """Records operators that write into their operand as such; a plain proxy would rebind."""

    def __getattr__(self, k: str) -> Any:
        # Code asks a parameter for its type to convert to it; that is no use of the parameter.
        if self.node.op == "get_attr" and k in ("dtype", "shape", "ndim"):
            assert isinstance(self.tracer, _Tracer)
            return getattr(self.tracer.tensors[str(self.node.target)], k)
        return _Attribute(self, k)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})


class _Attribute(Attribute, _InPlace):
    __getattr__ = _InPlace.__getattr__


def _record_in_place(function: Callable[[Any, Any], Any]) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    def record(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return record


for _operator in _IN_PLACE:
    setattr(_InPlace, f"__{_operator.__name__}__", _record_in_place(_operator))


class _Tracer(fx.Tracer):
    # Otherwise code that writes a buffer would write it while it is traced.
    proxy_buffer_attributes = True

    def __init__(self, module: nn.Module, is_leaf: IsLeaf, kind: Kind | None) -> None:
        super().__init__()
        self.tensors: dict[str, Tensor] = {
            **dict(module.named_parameters(remove_duplicate=False)),
            **dict(module.named_buffers(remove_duplicate=False)),
        }
        self.starts: dict[str, int] = {}
        self.constants: dict[str, Tensor] = {}
        self._is_leaf = is_leaf
        self._kind = kind
        self._thread = threading.get_ident()
        self._casts = _casts()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self._is_leaf(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _InPlace(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if not torch.is_grad_enabled():
            msg = "no_grad, which a trace would lose"
            raise PartitionError(msg)
        if _casts() != self._casts:
            msg = "autocast, which a trace would lose"
            raise PartitionError(msg)
        return super().create_node(*args, **kwargs)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor) and not isinstance(a, nn.Parameter):
            return self._constant(a)
        return super().create_arg(a)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Record what an ``assert`` asserts; torch's own way knows other versions' bytecode."""
        frame = sys._getframe(2)
        if (
            linecache.getline(frame.f_code.co_filename, frame.f_lineno)
            .lstrip()
            .startswith("assert ")
        ):
            self.create_proxy(
                "call_function", torch_private.ASSERT.get(), (obj, "assertion failed"), {}
            )
            return True
        return super().to_bool(obj)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        name = self.path_of_module(m)
        self.starts.setdefault(name, len(self.graph.nodes))
        if not self._is_leaf(m, name):
            check_no_hooks(m, name)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        if self._kind is None:
            return super().create_args_for_root(root_fn, is_module, concrete_args)
        leaves = [
            self.create_proxy("placeholder", f"input_{place}", (), {})
            if constant is None
            else constant[1]
            for place, constant in enumerate(self._kind.constants)
        ]
        args, kwargs = pytree.tree_unflatten(leaves, self._kind.spec)
        return lambda root: root_fn(root, *args, **kwargs), [self.root]

    def _constant(self, tensor: Tensor) -> fx.Node:
        if tensor.requires_grad:
            msg = "a tensor computed from parameters that the code did not take from an attribute"
            raise PartitionError(msg)
        for name, known in self.tensors.items():
            if known is tensor:
                return self.create_node("get_attr", name, (), {})
        # Unique over all traces of a network, whose stages keep the constants of all of them.
        name = f"_constant_{id(tensor)}"
        self.constants[name] = tensor
        return self.create_node("get_attr", name, (), {})


def _no_draws(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Refuse random numbers that are drawn while the code is traced and would stay the same."""
    if torch.Tag.nondeterministic_seeded in func.tags:
        msg = "random numbers, which a trace would draw once"
        raise PartitionError(msg)
    return func(*args, **kwargs)


def check_no_hooks(module: nn.Module, name: str) -> None:
    """Raise where a module that is traced has hooks, which would run only while it is."""
    if any(getattr(module, hooks) for hooks in torch_private.HOOKS):
        where = f"of {name!r}" if name else "of the network itself"
        msg = f"hooks {where}, which a trace would lose"
        raise PartitionError(msg)


@contextlib.contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """Raise where the code changes more than tensors, which a trace would do only once."""
    check_no_hooks(module, "")
    before, numbers = _attributes(module), random.getstate()
    try:
        with _draws() as drawn:
            yield
    finally:
        after = _attributes(module)
        changed = [place for place in after if not _is_same(before.get(place), after[place])]
        for part, key in changed:
            if (part, key) in before:
                vars(part)[key] = before[part, key][0]
            else:
                del vars(part)[key]
    if changed:
        part, key = changed[0]
        msg = f"a write to attribute {key!r} of {type(part).__name__}, which a trace would do once"
        raise PartitionError(msg)
    if drawn:
        random.setstate(numbers)
        msg = "Python's random numbers, which a trace would draw once"
        raise PartitionError(msg)


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


_Content = tuple[Any, list[Any]]


def _attributes(module: nn.Module) -> dict[tuple[nn.Module, str], _Content]:
    return {
        (part, key): (value, _items(value))
        for part in module.modules()
        for key, value in vars(part).items()
    }


def _items(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return list(value) if isinstance(value, list | set) else []


def _is_same(before: _Content | None, after: _Content) -> bool:
    return (
        before is not None
        and before[0] is after[0]
        and len(before[1]) == len(after[1])
        and all(old is new for old, new in zip(before[1], after[1], strict=True))
    )


def _defaults(module: nn.Module) -> dict[str, Any]:
    parameters = inspect.signature(module.forward).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _casts() -> list[bool]:
    return [torch.is_autocast_enabled(device) for device in _DEVICES]


def _place(error: Exception) -> str:
    """Say which line of the network's code it was: the last that is no library's."""
    ours = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]), contextlib.__file__)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(ours) and frame.line
    ]
    if not frames:
        return ""
    return f" at {frames[-1].filename}:{frames[-1].lineno} ({frames[-1].line.strip()})"  # type: ignore[union-attr]
