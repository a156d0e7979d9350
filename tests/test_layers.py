"""The order of the house: what may import what, in both packages.

Imports inside of functions and for types only count as any other, since a reader meets them as any
other. ``docs/architecture.py`` reads the imports, and draws them.
"""

import subprocess
import sys
from collections.abc import Callable

import pytest

from docs.architecture import (
    Import,
    circles,
    edges_between,
    is_face,
    long_files,
    pipeline_floors,
    read_imports,
    read_modules,
)

MODULES = read_modules()
IMPORTS = read_imports(MODULES)

ORDER = {
    "streamflow": """
        distribution
        errors
        records
        contracts
        nodes
        codecs
        evaluation
        operators
        pipeline
        models
        graph
        config
        checkpoints
        runtime
        observe
        testing
        dataflow
        bench
        cli
        __main__
    """,
    "streamflow.pipeline": """
        trees schedule options reference torch_private
        stages
        checks saving admission
        network
        capture
        codegen
        native
        running
        routing
        planning
        pipeline
    """,
    "streamflow_connectors": """
        network
        replay
        memory
        files
        kafka redis http websocket zeromq
        demo
    """,
}
"""The folders and files of a package: each imports only of what stands above it.

What shares a line are alike: files may import each other there, folders may not.
"""

LONG_FILES = {
    "streamflow/pipeline/native/line.cpp",
    "streamflow/pipeline/pipeline.py",
    "streamflow/pipeline/torch_private.py",
}
"""What may have more than 400 lines: three at most, as most such files are two ideas."""


def floors_of(package: str) -> dict[str, int]:
    lines = ORDER[package].strip().splitlines()
    return {name: floor for floor, line in enumerate(lines) for name in line.split()}


def place(module: str, package: str) -> str:
    """Name the folder or file of the package that a module is in, none for the package itself."""
    return module.removeprefix(package).removeprefix(".").split(".")[0]


def within(name: str, *packages: str) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


def found(says: Callable[[Import], bool]) -> list[str]:
    return [str(one) for one in IMPORTS if says(one)]


FACES = {module for module, path in MODULES.items() if is_face(path)}
FOLDERS = {module for module, path in MODULES.items() if path.name == "__init__.py"} - set(ORDER)


def test_modules_import_each_other_in_no_circle() -> None:
    assert circles(edges_between(MODULES, [(one.source, one.target) for one in IMPORTS])) == []


@pytest.mark.parametrize("package", ORDER)
def test_every_folder_has_its_place(package: str) -> None:
    inside = {place(module, package) for module in MODULES if within(module, package)}
    assert floors_of(package).keys() == inside - {""}


@pytest.mark.parametrize("package", ORDER)
def test_imports_go_down_the_order(package: str) -> None:
    floors = floors_of(package)

    def climbs(one: Import) -> bool:
        if one.source in FACES or not (within(one.source, package) and within(one.target, package)):
            return False
        source, target = place(one.source, package), place(one.target, package)
        down = floors[source] - floors[target]
        is_beside = down == 0 and not within(f"{package}.{source}", *FOLDERS)
        return not (source == target or down > 0 or is_beside)

    assert found(climbs) == []


def test_nobody_imports_the_face_of_the_own_folder() -> None:
    assert found(lambda one: one.target in FACES and within(one.source, one.target)) == []


def test_only_a_face_is_above_the_order() -> None:
    assert set(ORDER) & MODULES.keys() <= FACES


def test_the_package_knows_no_connectors() -> None:
    assert not found(
        lambda one: within(one.source, "streamflow") and within(one.target, "streamflow_connectors")
    )


@pytest.mark.parametrize("folder", ["runtime", "operators", "config"])
def test_the_dataflow_knows_no_torch(folder: str) -> None:
    assert f"streamflow.{folder}" in MODULES
    assert not found(
        lambda one: (
            within(one.source, f"streamflow.{folder}")
            and within(one.target, "torch", "streamflow.pipeline")
        )
    )


def test_the_pipeline_stands_alone() -> None:
    allowed = ("torch", "streamflow.pipeline", "streamflow.errors", *sys.stdlib_module_names)
    assert not found(
        lambda one: within(one.source, "streamflow.pipeline") and not within(one.target, *allowed)
    )


def test_only_the_command_line_knows_the_bench() -> None:
    knowing = {one.source for one in IMPORTS if within(one.target, "streamflow.bench")}
    assert knowing
    assert all(within(module, "streamflow.bench", "streamflow.cli") for module in knowing)


@pytest.mark.parametrize("noun", ["records", "nodes", "graph", "errors", "codecs", "contracts"])
def test_nouns_import_neither_torch_nor_an_event_loop(noun: str) -> None:
    assert not found(
        lambda one: (
            within(one.source, f"streamflow.{noun}")
            and not one.is_late
            and within(one.target, "torch", "anyio", "asyncio", "trio")
        )
    )


@pytest.mark.parametrize("module", ["streamflow", "streamflow.config.reader"])
def test_importing_is_light(module: str) -> None:
    heavy = "{'torch', 'aiokafka', 'confluent_kafka'}"
    code = f"import sys, {module}; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_pipeline_has_at_most_ten_floors() -> None:
    assert pipeline_floors(MODULES, by_room=True) <= 10


def test_few_files_are_long() -> None:
    assert long_files() == LONG_FILES
    assert len(LONG_FILES) <= 3
