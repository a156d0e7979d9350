"""Every private name of torch's compiler that is used here, since they move between versions.

At batch 1 a matrix product is a matrix times a vector. The compiler hands products to a BLAS
library, with which nothing fuses; taken apart into multiply and sum they become loops that fuse
with activations, gradients and updates.
"""

import platform
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

Routine = Callable[[list[Tensor]], list[Tensor]]
"""Compiled code: takes tensors, writes into some of them, returns others."""

aten = torch.ops.aten


def record(function: Callable[..., Any], arguments: Sequence[Tensor]) -> GraphModule:
    """Run ``function`` on stand-ins for tensors and write down what it does, derivatives included.

    Raises:
        Exception: Of any kind, where it looks at values, or at what has no stand-in.
    """
    from torch._decomp import get_decompositions
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes = [mode.from_tensor(tensor) for tensor in arguments]
    # This operation writes running statistics without saying so.
    table: dict[Any, Callable[..., Any]] = dict(get_decompositions([aten.native_batch_norm]))
    with mode:
        return make_fx(function, decomposition_table=table)(*fakes)


def without_writes(graph: GraphModule, arguments: Sequence[Tensor]) -> GraphModule:
    """Return a graph that gives the same and writes into nothing."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.func import functionalize
    from torch.fx.experimental.proxy_tensor import make_fx

    mode = FakeTensorMode()
    fakes = [mode.from_tensor(tensor) for tensor in arguments]
    with mode:
        return make_fx(functionalize(graph, remove="mutations"))(*fakes)


def unroll(function: Callable[..., Any], arguments: Sequence[Tensor]) -> GraphModule:
    """Record ``function``, which writes into its arguments only, products taken apart."""
    import_module("torch._inductor.lowering")  # some decompositions take it for granted
    from torch._inductor.decomposition import select_decomp_table
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.func import functionalize
    from torch.fx.experimental.proxy_tensor import make_fx

    table: dict[Any, Callable[..., Any]] = {
        **select_decomp_table(),
        aten.mm.default: _mm,
        aten.addmm.default: _addmm,
    }
    mode = FakeTensorMode()
    fakes = [mode.from_tensor(tensor) for tensor in arguments]
    with mode:
        pure = functionalize(function, remove="mutations")
        return make_fx(pure, decomposition_table=table)(*fakes)


def build(graph: GraphModule, arguments: Sequence[Tensor], path: Path, num_threads: int) -> None:
    """Compile a graph to a library at ``path``, which ends in ``.so``."""
    from torch._inductor.codegen.cpp import CppScheduling
    from torch._inductor.compile_fx import compile_fx_aot

    if hasattr(CppScheduling, "_get_outer_loop_fusion_depth"):
        # Loops that share only their outer part were slower fused, and some could not be made.
        CppScheduling._get_outer_loop_fusion_depth = _never  # type: ignore[method-assign]
    compile_fx_aot(
        graph,
        list(arguments),
        config_patches={
            "aot_inductor.output_path": str(path),
            "compile_threads": 1,
            "cpp.threads": num_threads,
            "cpp.enable_floating_point_contract_flag": "fast",
        },
    )


def load(path: Path) -> Routine:
    """Load a library that :func:`build` made."""
    runner = torch._C._aoti.AOTIModelContainerRunnerCpu(str(path), 1)
    run: Routine = runner.run
    return run


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


def _mm(a: Tensor, b: Tensor) -> Any:
    if a.shape[1] == 1:
        return a * b
    if a.shape[0] == 1:
        return (a.t() * b).sum(0, keepdim=True)
    if b.shape[1] == 1:
        return (a * b.t()).sum(1, keepdim=True)
    return NotImplemented


def _addmm(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    product = _mm(a, b)
    if product is NotImplemented:
        return NotImplemented
    return (c if beta == 1 else c * beta) + (product if alpha == 1 else product * alpha)
