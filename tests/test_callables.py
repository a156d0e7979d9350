import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamflow.errors import GraphError
from streamflow.nodes import Declaration
from streamflow.nodes.callables import CallableError, Named, resolve


class Calling(Declaration):
    function: Named


def double(value: int) -> int:
    return 2 * value


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    path, modules = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def test_names_are_found_beside_the_graph_and_on_the_path(folder: Path) -> None:
    text = "class Tools:\n    @staticmethod\n    def triple(value):\n        return 3 * value\n"
    (folder / "beside_the_graph.py").write_text(text)
    assert resolve("beside_the_graph:Tools.triple", folder)(2) == 6
    assert resolve("os.path:join", folder)("a", "b") == str(Path("a") / "b")
    assert resolve(double, folder) is double


def test_the_folder_shadows_nothing(folder: Path) -> None:
    (folder / "colorsys.py").write_text("")
    assert callable(resolve("colorsys:rgb_to_hsv", folder))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere:f", "expected nowhere:f to import, found ModuleNotFoundError"),
        ("json:nothing", "expected json:nothing to import, found AttributeError"),
        ("failing_module:f", "expected failing_module:f to import, found ZeroDivisionError"),
        ("sys:maxsize", "expected sys:maxsize to be callable, found int"),
    ],
)
def test_names_that_lead_nowhere(folder: Path, name: str, message: str) -> None:
    (folder / "failing_module.py").write_text("1 / 0")
    with pytest.raises(CallableError) as caught:
        resolve(name, folder)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("value", ["json", "json:", ":f", "a b:c", "json:f()", "a:b:c", 3, None])
def test_what_is_no_callable(value: Any) -> None:
    with pytest.raises(GraphError, match=r"^Calling\.function: expected package\.module:callable"):
        Calling(function=value)


def test_callables_are_written_by_their_names() -> None:
    assert Calling(function=double).model_dump() == {"function": f"{__name__}:double"}
    assert Calling(function="a.b:c.d").model_dump() == {"function": "a.b:c.d"}


def test_a_callable_without_a_name_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="define it in a module"):
        Calling(function=lambda: None).model_dump()
