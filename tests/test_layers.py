import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "streamflow").rglob("*.py"))
}


def imports(path: Path, *, anywhere: bool) -> Iterator[str]:
    """Yield imported modules; those inside functions and for types only if ``anywhere``."""
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from names
            if not MODULES.keys() >= set(names):  # else only modules of the package are meant
                yield node.module
        is_later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        is_typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if anywhere or not (is_later or is_typing):
            todo += ast.iter_child_nodes(node)


def imported(prefix: str, *, anywhere: bool = True) -> set[tuple[str, str]]:
    return {
        (module, name)
        for module, path in MODULES.items()
        if f"{module}.".startswith(f"{prefix}.")
        for name in imports(path, anywhere=anywhere)
    }


def within(name: str, *packages: str) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


def test_the_runtime_knows_no_torch() -> None:
    found = imported("streamflow.runtime")
    assert found
    assert not {pair for pair in found if within(pair[1], "torch", "streamflow.pipeline")}


def test_the_pipeline_stands_alone() -> None:
    allowed = ("torch", "streamflow.pipeline", "streamflow.errors", *sys.stdlib_module_names)
    found = imported("streamflow.pipeline")
    assert found
    assert not {pair for pair in found if not within(pair[1], *allowed)}


def test_the_package_knows_no_connectors() -> None:
    assert not {pair for pair in imported("streamflow") if within(pair[1], "streamflow_connectors")}


def test_only_the_command_line_knows_the_bench() -> None:
    found = {module for module, name in imported("streamflow") if within(name, "streamflow.bench")}
    assert found
    assert all(within(module, "streamflow.bench", "streamflow.cli") for module in found)


@pytest.mark.parametrize("noun", ["records", "nodes", "graph", "errors", "codecs"])
def test_nouns_import_neither_torch_nor_an_event_loop(noun: str) -> None:
    found = imported(f"streamflow.{noun}", anywhere=False)
    assert not {pair for pair in found if within(pair[1], "torch", "anyio", "asyncio", "trio")}


def test_there_is_no_import_cycle() -> None:
    edges = {
        module: {name for name in imports(path, anywhere=False) if name in MODULES} - {module}
        for module, path in MODULES.items()
    }
    TopologicalSorter(edges).prepare()


@pytest.mark.parametrize("module", ["streamflow", "streamflow.config.reader"])
def test_importing_is_light(module: str) -> None:
    heavy = "{'torch', 'aiokafka', 'confluent_kafka'}"
    code = f"import sys, {module}; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
