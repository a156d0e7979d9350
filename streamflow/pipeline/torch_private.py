"""Every private name of torch's compiler that is used here, since they move between versions."""

import platform
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

aten = torch.ops.aten

# Where the compiler writes which operations a library calls through torch's dispatcher.
_OPERATIONS = "*.wrapper.json"


class LooksAtValues(Exception):
    """What is recorded does not depend on shapes alone; says where."""


def record(function: Callable[..., Any], arguments: Sequence[Tensor]) -> GraphModule:
    """Run ``function`` on stand-ins for tensors and write down what it does, derivatives included.

    Raises:
        LooksAtValues: It wants to know a value, or how many there are of a kind.
        Exception: Of any kind, where something has no stand-in.
    """
    from torch._decomp import get_decompositions
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
        FakeTensorMode,
    )
    from torch.fx.experimental.proxy_tensor import make_fx

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes = [mode.from_tensor(tensor) for tensor in arguments]
    # This operation writes running statistics without saying so.
    table: dict[Any, Callable[..., Any]] = dict(get_decompositions([aten.native_batch_norm]))
    is_enabled = torch._C._get_mkldnn_enabled()
    # Without this library the layers of an LSTM are what they consist of, as those of a GRU are.
    torch._C._set_mkldnn_enabled(False)
    try:
        with mode:
            return make_fx(function, decomposition_table=table)(*fakes)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise LooksAtValues(error.func) from error
    finally:
        torch._C._set_mkldnn_enabled(is_enabled)


def without_writes(graph: GraphModule, arguments: Sequence[Tensor]) -> GraphModule:
    """Return a graph that gives the same and writes into nothing."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.func import functionalize
    from torch.fx.experimental.proxy_tensor import make_fx

    mode = FakeTensorMode()
    fakes = [mode.from_tensor(tensor) for tensor in arguments]
    with mode:
        return make_fx(functionalize(graph, remove="mutations"))(*fakes)


def decompose(
    function: Callable[..., Any],
    arguments: Sequence[Tensor],
    others: Mapping[Any, Callable[..., Any]],
) -> GraphModule:
    """Record ``function``, which writes into its arguments only, taken apart for the compiler.

    ``others`` say how to take some operations apart.
    """
    import_module("torch._inductor.lowering")  # some decompositions take it for granted
    from torch._inductor.decomposition import select_decomp_table
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.func import functionalize
    from torch.fx.experimental.proxy_tensor import make_fx

    table: dict[Any, Callable[..., Any]] = {**select_decomp_table(), **others}
    mode = FakeTensorMode()
    fakes = [mode.from_tensor(tensor) for tensor in arguments]
    with mode:
        pure = functionalize(function, remove="mutations")
        return make_fx(pure, decomposition_table=table)(*fakes)


class Unlisted(Exception):  # no error: a way that is not taken
    """Why code is not a list of kernel calls."""


Kernel = Callable[[Sequence[str], str], Callable[..., None]]
"""Takes the types of a kernel's arguments and its source; returns what is called in its place."""

Operation = Callable[[Any, Sequence[Any]], Any]
"""Takes an operation and its arguments; returns its results."""


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
    """
    from torch._inductor.async_compile import AsyncCompile
    from torch.utils._python_dispatch import TorchDispatchMode

    class Listing(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            return operation(func, args)

    class Compile(AsyncCompile):
        def cpp_pybinding(self, argtypes: list[str], source_code: str) -> Any:
            return kernel(argtypes, source_code)

        def wait(self, scope: dict[str, Any]) -> None:
            pass

    code = _python(graph, arguments, num_threads)
    scope: dict[str, Any] = {"__name__": "streamflow_listing"}
    own = code.replace("async_compile = AsyncCompile()", "async_compile = Own()")
    scope["Own"] = Compile
    exec(compile(own, "<listing>", "exec"), scope)
    with Listing():  # type: ignore[no-untyped-call]
        return list(scope["call"](list(arguments)))


def _python(graph: GraphModule, arguments: Sequence[Tensor], num_threads: int) -> str:
    """Return the Python module that the compiler makes of a graph."""
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.graph import GraphLowering

    found: list[str] = []

    class Enough(Exception):
        pass

    def keep(code: str) -> None:
        found.append(code)
        raise Enough

    before = GraphLowering.__dict__["save_output_code"]
    GraphLowering.save_output_code = staticmethod(keep)
    _no_outer_fusion()
    try:
        with config.patch({"fx_graph_cache": False, **_settings(num_threads)}):
            compile_fx_inner(graph, list(arguments))
    except Exception:
        if not found:
            raise
    finally:
        GraphLowering.save_output_code = before
    return found[0]


def build_library(source: str, path: Path) -> None:
    """Compile C++ to a library at ``path``, which ends in ``.so``."""
    from torch._inductor.cpp_builder import CppBuilder, CppTorchDeviceOptions
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    path.parent.mkdir(parents=True, exist_ok=True)
    code = path.with_suffix(".cpp")
    code.write_text(source)
    options = CppTorchDeviceOptions(vec_isa=pick_vec_isa(), device_type="cpu")
    CppBuilder(path.stem, [str(code)], options, str(path.parent)).build()


def _settings(num_threads: int) -> dict[str, Any]:
    return {
        "compile_threads": 1,
        "cpp.threads": num_threads,
        "cpp.enable_floating_point_contract_flag": "fast",
    }


def _no_outer_fusion() -> None:
    """Loops that share only their outer part were slower fused, and some could not be made."""
    from torch._inductor.codegen.cpp import CppScheduling

    if hasattr(CppScheduling, "_get_outer_loop_fusion_depth"):
        CppScheduling._get_outer_loop_fusion_depth = _never  # type: ignore[method-assign]


def build(graph: GraphModule, arguments: Sequence[Tensor], path: Path, num_threads: int) -> None:
    """Compile a graph to a library at ``path``, which ends in ``.so``."""
    from torch._inductor.compile_fx import compile_fx_aot

    _no_outer_fusion()
    before = set(path.parent.glob(_OPERATIONS))
    compile_fx_aot(
        graph,
        list(arguments),
        config_patches={"aot_inductor.output_path": str(path), **_settings(num_threads)},
    )
    for found in set(path.parent.glob(_OPERATIONS)) - before:
        found.rename(path.with_suffix(".json"))  # where what loads the library looks for it


def cache_folder() -> Path:
    """Return where compiled code is kept between runs; ``TORCHINDUCTOR_CACHE_DIR`` moves it."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir()) / "streamflow"


def target() -> str:
    """Describe what compiled code depends on beside its source: it is made for this processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    kind = torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__}, {platform.platform()}, {kind}, {flags}"


def find_compiler() -> str | None:
    """Return the C++ compiler's command, or None where there is none."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        return str(get_cpp_compiler())
    except InvalidCxxCompiler:
        return None


def _never(*_: object) -> int:
    return 0
