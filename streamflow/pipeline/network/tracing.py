"""A network's code as a list of calls, recorded by ``torch.fx`` for one kind of call.

Theory of operation. The code runs once, with proxies (1) in place of its inputs, parameters and
buffers. What it does with a proxy becomes a node of a graph, and gives another proxy:

    def forward(self, x):                 placeholder   x
        y = self.a(x)                     call_module   a         (x)
        y += 1                            call_function iadd      (a, 1)         (2)
        z = torch.zeros(x.shape[0], 4)    call_function zeros     (getitem, 4)   (3)
        return self.b(y + z)              call_module   b         (add)          (4)

(1) They stand for values that are not there, so code that decides by one cannot go on.
(2) A plain proxy would bind ``y`` anew; who else holds the tensor would miss the write.
(3) Tensors that the code makes are made anew for every sample. A mode of torch, which holds in this
    thread only, sees them made. Before it does, torch refuses sizes that are known later, unless
    they are in a tuple; so five functions of torch are replaced for that while, and gather them.
(4) Modules that need not be opened are a single node; what they hold does not run.

What a graph would lose or freeze is refused (:mod:`~streamflow.pipeline.network.refusals`):
contexts such as ``no_grad``, writes to attributes, hooks, random numbers. While it traces, fx
replaces methods of ``nn.Module`` for the whole process, so one thread traces at a time, and calls
of other threads go their usual way.
"""

import contextlib
import linecache
import operator
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
from torch.overrides import TorchFunctionMode

from streamflow.errors import PartitionError
from streamflow.pipeline import torch_private
from streamflow.pipeline.network import refusals, signature
from streamflow.pipeline.network.signature import CallSignature

_TRACING = threading.Lock()
_FACTORIES = frozenset(
    (
        torch.arange,
        torch.as_tensor,
        torch.empty,
        torch.eye,
        torch.full,
        torch.linspace,
        torch.logspace,
        torch.normal,
        torch.ones,
        torch.rand,
        torch.randint,
        torch.randn,
        torch.randperm,
        torch.tensor,
        torch.tril_indices,
        torch.triu_indices,
        torch.zeros,
    )
)
_SIZED = (torch.empty, torch.ones, torch.rand, torch.randn, torch.zeros)
_IN_PLACE = ("add", "and", "floordiv", "matmul", "mod", "mul", "or", "pow", "sub", "truediv", "xor")

IsLeaf = Callable[[nn.Module, str], bool]


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


def trace(module: nn.Module, is_leaf: IsLeaf, call: CallSignature | None = None) -> Trace:
    """Record what a network does in calls of one kind, by default the usual one.

    Args:
        module: The network.
        is_leaf: Says of a module and its name whether it is a single call.
        call: How the network is called.

    Raises:
        PartitionError: The network cannot be traced, or a trace would be something else.
    """
    if call is not None:
        return _trace(module, is_leaf, call)
    try:
        return _trace(module, is_leaf, signature.usual_signature(module))
    except PartitionError:
        if not signature.takes_any_number(module):
            raise
        return _trace(module, is_leaf, None)


def _trace(module: nn.Module, is_leaf: IsLeaf, call: CallSignature | None) -> Trace:
    """Trace calls of one kind, or of any number of arguments beside the defaults."""
    with _TRACING:
        tracer = _Tracer(module, is_leaf, call)
        try:
            with (
                refusals.refusing(module),
                torch.enable_grad(),
                _sizes_in_tuples(),
                _Recording(tracer),
            ):
                graph = tracer.trace(module, concrete_args=signature.defaults(module))
        except Exception as error:
            msg = (
                f"stages: expected {type(module).__name__} to be traceable around the cuts, got "
                f"{error}{_place(error)}; move that into a module without a cut inside, which is "
                "not traced"
            )
            raise PartitionError(msg) from error
    return Trace(graph, tracer.starts, tracer.constants)


class _Recording(TorchFunctionMode):
    """Records that a tensor is made instead of making it."""

    def __init__(self, tracer: fx.Tracer) -> None:
        super().__init__()
        self._tracer = tracer

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in _FACTORIES:
            return self._tracer.create_proxy("call_function", func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _sizes_in_tuples() -> Iterator[None]:
    """Gather sizes that are given one by one and known later; torch takes those in a tuple only."""

    def gathering(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            is_known = len(args) == 1 or not any(isinstance(arg, fx.Proxy) for arg in args)
            return function(*args, **kwargs) if is_known else function(args, **kwargs)

        return call

    try:
        for function in _SIZED:
            setattr(torch, function.__name__, gathering(function))
        yield
    finally:
        for function in _SIZED:
            setattr(torch, function.__name__, function)


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


for _name in _IN_PLACE:
    setattr(_InPlace, f"__i{_name}__", _record_in_place(getattr(operator, f"i{_name}")))


class _Tracer(fx.Tracer):
    # Otherwise code that writes a buffer would write it while it is traced.
    proxy_buffer_attributes = True

    def __init__(self, module: nn.Module, is_leaf: IsLeaf, call: CallSignature | None) -> None:
        super().__init__()
        self.tensors: dict[str, Tensor] = {
            **dict(module.named_parameters(remove_duplicate=False)),
            **dict(module.named_buffers(remove_duplicate=False)),
        }
        self.starts: dict[str, int] = {}
        self.constants: dict[str, Tensor] = {}
        self._is_leaf = is_leaf
        self._call = call
        self._thread = threading.get_ident()
        self._casts = refusals.casts()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self._is_leaf(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _InPlace(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        refusals.check_modes(self._casts)
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
            refusals.check_no_hooks(m, name)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        if self._call is None:
            return super().create_args_for_root(root_fn, is_module, concrete_args)
        leaves = [
            self.create_proxy("placeholder", f"input_{place}", (), {})
            if constant is None
            else constant[1]
            for place, constant in enumerate(self._call.constants)
        ]
        args, kwargs = torch_private.pytree.tree_unflatten(leaves, self._call.spec)
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
