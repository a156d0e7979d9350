"""Every private name of torch that is used here, since they move between versions.

Those that are looked up have a line each: what they are for, and what happens without them. Whoever
meets :class:`Unavailable` goes on without: our own kernels give way to calls of libraries, compiled
code to eager learning, a call for all to a loop. What objects of torch keep in themselves stands at
the end: torch does not work without it either.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from logging import getLogger
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functionalize
from torch.fx import GraphModule

# Where packages register what can be flattened; nothing in torch flattens without.
from torch.utils import _pytree as pytree

__all__ = ["pytree"]

KNOWN = "2.11 to 2.15"
"""Versions of torch whose private names are as they are expected here."""

aten = torch.ops.aten

# Where the compiler writes which operations a library calls through torch's dispatcher.
_OPERATIONS = "*.wrapper.json"
# Names of errors: something wants to know a value, or how many there are of a kind.
_LOOKING = ("DataDependentOutputException", "DynamicOutputShapeException")

Operation = Callable[[Any, Sequence[Any]], Any]
"""Takes an operation and its arguments; returns its results."""


class Unavailable(Exception):  # no error: a way that is not taken
    """This version of torch lacks a private name; says which, and what happens."""


@dataclass(frozen=True, slots=True)
class Name:
    """A private name of torch.

    Attributes:
        path: Its module, and behind a colon where it is in that.
        purpose: What it does for us.
        without: What happens without it.
    """

    path: str
    purpose: str
    without: str

    def __str__(self) -> str:
        return self.path.replace(":", ".")

    def get(self) -> Any:
        """Return what has the name.

        Raises:
            Unavailable: Nothing has.
        """
        try:
            return resolve_name(self.path)
        except (ImportError, AttributeError) as error:
            msg = (
                f"torch {torch.__version__} has no {self}, which {self.purpose}, so "
                f"{self.without}; install torch {KNOWN}"
            )
            raise Unavailable(msg) from error

    def missing(self) -> str:
        """Say what happens as nothing has the name; nothing where something has."""
        try:
            self.get()
        except Unavailable as error:
            return str(error)
        return ""

    @contextmanager
    def replaced(self, value: Any) -> Iterator[None]:
        """Let something else have the name for a while."""
        self.get()
        parent, _, name = str(self).rpartition(".")
        owner = resolve_name(parent)
        before = vars(owner)[name]
        setattr(owner, name, value)
        try:
            yield
        finally:
            setattr(owner, name, before)


EAGER = "networks learn eagerly"
_LIBRARY_CALLS = "compiled code calls libraries, which is many times slower"

FAKE_TENSORS = Name(
    "torch._subclasses.fake_tensor:FakeTensorMode", "stands in for tensors in a recording", EAGER
)
BATCH_NORM = Name("torch._decomp:get_decompositions", "takes batch norms apart", EAGER)
DISPATCH = Name(
    "torch.utils._python_dispatch:TorchDispatchMode",
    "sees every operation",
    "networks learn eagerly, predict sample by sample, and are cut between layers only",
)
# Some decompositions take for granted that this module is there.
LOWERINGS = Name("torch._inductor.lowering:lowerings", "belongs to decompositions", EAGER)
DECOMPOSITIONS = Name(
    "torch._inductor.decomposition:select_decomp_table", "takes operations apart", EAGER
)
COMPILE = Name("torch._inductor.compile_fx:compile_fx_inner", "writes kernels", _LIBRARY_CALLS)
CONFIG = Name("torch._inductor.config:patch", "has settings of kernels", _LIBRARY_CALLS)
WRITTEN_CODE = Name(
    "torch._inductor.graph:GraphLowering.save_output_code", "is given kernels", _LIBRARY_CALLS
)
ASYNC_COMPILE = Name(
    "torch._inductor.async_compile:AsyncCompile", "is called with kernels", _LIBRARY_CALLS
)
# Loops that share only their outer part were slower fused, and some could not be made:
# https://github.com/pytorch/pytorch/pull/121625, https://github.com/pytorch/pytorch/issues/144186
OUTER_FUSION = Name(
    "torch._inductor.codegen.cpp:CppScheduling._get_outer_loop_fusion_depth",
    "says which loops are fused",
    "loops are fused that are slower so",
)
COMPILE_WHOLE = Name(
    "torch._inductor.compile_fx:compile_fx_aot",
    "compiles what calls libraries",
    "networks that call libraries learn eagerly",
)
BUILDER = Name("torch._inductor.cpp_builder:CppBuilder", "calls the C++ compiler", EAGER)
BUILD_OPTIONS = Name(
    "torch._inductor.cpp_builder:CppTorchDeviceOptions", "has options of the C++ compiler", EAGER
)
VECTORS = Name("torch._inductor.cpu_vec_isa:pick_vec_isa", "knows the processor", EAGER)
ADD_TO_ALL = Name("torch:_foreach_add_", "counts steps", "steps are counted one by one")
ASSERT = Name("torch:_assert", "keeps an assertion in a trace", "networks with one are not cut")

NAMES = tuple(value for value in vars().values() if isinstance(value, Name))


def why_eager() -> str:
    """Say why nothing can be compiled for want of a name; nothing where it can."""
    needed = (name.missing() for name in NAMES if name.without is EAGER)
    return next(filter(None, needed), "")


@cache
def warn(message: str) -> None:
    """Log a warning, once in a process."""
    getLogger("streamflow").warning(message)


class LooksAtValues(Exception):
    """What is recorded does not depend on shapes alone; says where."""


def watching(
    handle: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any],
) -> AbstractContextManager[Any]:
    """Return what lets ``handle`` take the place of every operation while it is entered.

    Raises:
        Unavailable: This version of torch has nothing like that.
    """
    dispatch = DISPATCH.get()

    class Handler:
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            return handle(func, args, kwargs or {})

    # Torch wraps a method that a mode itself has so that its first call imports the compiler, and
    # all are slower: https://github.com/pytorch/pytorch/issues/188077
    class Mode(Handler, dispatch):  # type: ignore[misc, valid-type]
        pass

    mode: AbstractContextManager[Any] = Mode()
    return mode


def record(function: Callable[..., Any], arguments: Sequence[Tensor]) -> GraphModule:
    """Run ``function`` on stand-ins for tensors and write down what it does, derivatives included.

    Raises:
        LooksAtValues: It wants to know a value, or how many there are of a kind.
        Unavailable: This version of torch cannot.
        Exception: Of any kind, where something has no stand-in.
    """
    # This operation writes running statistics without saying so.
    table = BATCH_NORM.get()([aten.native_batch_norm])
    mkldnn: Any = torch.backends.mkldnn
    is_enabled = mkldnn.enabled
    # Without this library the layers of an LSTM are what they consist of, as those of a GRU are.
    mkldnn.enabled = False
    try:
        return _traced(function, arguments, table, allow_non_fake_inputs=True)
    except Exception as error:
        if type(error).__name__ in _LOOKING:
            raise LooksAtValues(getattr(error, "func", error)) from error
        raise
    finally:
        mkldnn.enabled = is_enabled


def without_writes(graph: GraphModule, arguments: Sequence[Tensor]) -> GraphModule:
    """Return a graph that gives the same and writes into nothing."""
    return _traced(functionalize(graph, remove="mutations"), arguments, {})


def decompose(
    function: Callable[..., Any],
    arguments: Sequence[Tensor],
    others: Mapping[Any, Callable[..., Any]],
) -> GraphModule:
    """Record ``function``, which writes into its arguments only, taken apart for the compiler.

    ``others`` say how to take some operations apart.

    Raises:
        Unavailable: This version of torch cannot.
    """
    LOWERINGS.get()
    table = {**DECOMPOSITIONS.get()(), **others}
    return _traced(functionalize(function, remove="mutations"), arguments, table)


def _traced(
    function: Callable[..., Any],
    arguments: Sequence[Tensor],
    table: Mapping[Any, Callable[..., Any]],
    **options: Any,
) -> GraphModule:
    from torch.fx.experimental.proxy_tensor import make_fx

    mode = FAKE_TENSORS.get()(**options)
    fakes = [mode.from_tensor(tensor) for tensor in arguments]
    with mode:
        return make_fx(function, decomposition_table=dict(table))(*fakes)


class Unlisted(Exception):  # no error: a way that is not taken
    """Why code is not a list of kernel calls."""


Kernel = Callable[[Sequence[str], str], Callable[..., None]]
"""Takes the types of a kernel's arguments and its source; returns what is called in its place."""


def list_calls(
    graph: GraphModule,
    arguments: Sequence[Tensor],
    kernel: Kernel,
    operation: Operation,
    num_threads: int,
) -> list[Tensor]:
    """Turn a graph into calls of C++ kernels, and go through them once without running any.

    Returns:
        The tensors that the graph returns, which hold nothing.

    Raises:
        Unavailable: This version of torch cannot.
    """

    class Compile(ASYNC_COMPILE.get()):  # type: ignore[misc]
        def cpp_pybinding(self, argtypes: list[str], source_code: str) -> Any:
            return kernel(argtypes, source_code)

        def wait(self, scope: dict[str, Any]) -> None:
            pass

    code = _python(graph, arguments, num_threads)
    scope: dict[str, Any] = {"__name__": "streamflow_listing"}
    with ASYNC_COMPILE.replaced(Compile):
        exec(compile(code, "<listing>", "exec"), scope)
    with watching(lambda func, args, _: operation(func, args)):
        return list(scope["call"](list(arguments)))


def _python(graph: GraphModule, arguments: Sequence[Tensor], num_threads: int) -> str:
    """Return the Python module that the compiler makes of a graph."""
    found: list[str] = []

    class Enough(Exception):
        pass

    def keep(code: str) -> None:
        found.append(code)
        raise Enough

    settings = CONFIG.get()({"fx_graph_cache": False, **_settings(num_threads)})
    try:
        with WRITTEN_CODE.replaced(staticmethod(keep)), _no_outer_fusion(), settings:
            COMPILE.get()(graph, list(arguments))
    except Exception:
        if not found:
            raise
    return found[0]


def _settings(num_threads: int) -> dict[str, Any]:
    return {
        "compile_threads": 1,
        "cpp.threads": num_threads,
        "cpp.enable_floating_point_contract_flag": "fast",
    }


def _no_outer_fusion() -> AbstractContextManager[None]:
    return nullcontext() if OUTER_FUSION.missing() else OUTER_FUSION.replaced(lambda *_: 0)


def build_library(source: str, path: Path) -> None:
    """Compile C++ to a library at ``path``, which ends in ``.so``.

    Raises:
        Unavailable: This version of torch cannot.
        Exception: Of any kind, where the compiler fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    code = path.with_suffix(".cpp")
    code.write_text(source)
    options = BUILD_OPTIONS.get()(vec_isa=VECTORS.get()(), device_type="cpu")
    BUILDER.get()(path.stem, [str(code)], options, str(path.parent)).build()


def build(graph: GraphModule, arguments: Sequence[Tensor], path: Path, num_threads: int) -> None:
    """Compile a graph to a library at ``path``, which ends in ``.so``.

    Raises:
        Unavailable: This version of torch cannot.
        Exception: Of any kind, where the compiler fails.
    """
    before = set(path.parent.glob(_OPERATIONS))
    settings = {"aot_inductor.output_path": str(path), **_settings(num_threads)}
    with _no_outer_fusion():
        COMPILE_WHOLE.get()(graph, list(arguments), config_patches=settings)
    for found in set(path.parent.glob(_OPERATIONS)) - before:
        found.rename(path.with_suffix(".json"))  # where what loads the library looks for it


def add_to_all(tensors: list[Tensor], number: int) -> None:
    """Add a number to every tensor in place."""
    try:
        torch._foreach_add_(tensors, number)
    except AttributeError:
        warn(ADD_TO_ALL.missing())
        for tensor in tensors:
            tensor.add_(number)


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Attributes of a module: what is called beside its forward; nothing public lists them."""

FLAT_WEIGHTS = ("_flat_weights", "_flat_weight_refs")
"""Attributes of torch's recurrent layers: their parameters once more."""


def children_of(module: nn.Module) -> dict[str, nn.Module | None]:
    """Return the modules of a module, to be written.

    Public names leave out what is None, or there twice.
    """
    return module._modules


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """Return the parameters of a module itself, likewise."""
    return module._parameters


def buffers_of(module: nn.Module) -> dict[str, Tensor | None]:
    """Return the buffers of a module itself, likewise."""
    return module._buffers


def hooks_of(parameter: nn.Parameter) -> Any:
    """Return what is called with gradients of a parameter, None where nothing is."""
    return parameter._backward_hooks


def compiles_itself(module: nn.Module) -> bool:
    """Say whether a module was given to ``torch.compile``, which no public name tells."""
    return "_orig_mod" in module._modules or module._compiled_call_impl is not None


def version_of(tensor: Tensor) -> int:
    """Return how often a tensor was written, which no public name tells."""
    return tensor._version


def schema_of(operation: Any) -> Any:
    """Return what an operation takes and writes, None where it is none of torch's."""
    return getattr(operation, "_schema", None)


def is_own_step(optimizer: torch.optim.Optimizer) -> bool:
    """Say whether a step is what the optimizer's class says; a scheduler may wrap it."""
    hooks = (*optimizer._optimizer_step_pre_hooks, *optimizer._optimizer_step_post_hooks)
    is_replaced = "step" in vars(optimizer) and not hasattr(optimizer.step, "_wrapped_by_lr_sched")
    return not hooks and not is_replaced
