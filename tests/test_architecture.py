"""The picture of the folders, and how the code is read for it."""

import ast
from pathlib import Path

import pytest

from docs.architecture import (
    PICTURE,
    circles,
    edges_between,
    floors,
    needed,
    picture,
    private_names,
    raising,
    read_imports,
)


def test_the_picture_is_that_of_the_code() -> None:
    assert PICTURE.read_text(encoding="utf-8") == picture()


@pytest.mark.parametrize(
    ("text", "target", "is_late"),
    [
        ("import b.c", "b.c", False),
        ("from b import c", "b.c", False),
        ("from b import name", "b", False),
        ("from torch import nn", "torch", False),
        ("def f():\n    from b import c", "b.c", True),
        ("class A:\n    async def f():\n        import b", "b", True),
        ("if TYPE_CHECKING:\n    import b", "b", True),
    ],
)
def test_every_import_is_read(tmp_path: Path, text: str, target: str, is_late: bool) -> None:
    paths = {name: tmp_path / name for name in ("a", "b", "b.c")}
    for name, path in paths.items():
        path.write_text(text if name == "a" else "")
    (found,) = read_imports(paths)
    assert (found.source, found.target, found.is_late) == ("a", target, is_late)


def test_floors_circles_and_needed_arrows() -> None:
    edges = edges_between("abcd", ["ab", "bc", "ac", "aa", "ax", "cd"])  # type: ignore[list-item]
    assert floors(edges) == {"a": 3, "b": 2, "c": 1, "d": 0}
    assert needed(edges) == {"a": ["b"], "b": ["c"], "c": ["d"], "d": []}
    assert circles(edges) == []
    assert circles(edges | {"c": {"b"}}) == [["b", "c"]]
    assert floors(edges | {"c": {"b"}}) == {"a": 1, "b": 0, "c": 0, "d": 0}


def test_what_raises_says_so() -> None:
    text = """
def says():
    '''Do.

    Raises:
        ValueError: Always.
    '''
    raise ValueError

class Public:
    def hides(self):
        if self: raise ValueError

    def passes_on(self):
        try: pass
        except ValueError: raise

    def _private(self): raise ValueError
"""
    assert list(raising(ast.parse(text))) == [True, False]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("from torch._ops import OpOverload", {"torch._ops.OpOverload"}),
        ("from torch import nn\nnn.modules._x", {"nn.modules._x"}),
        ("import torch\ntorch._C.f()", {"torch._C", "torch._C.f"}),
        ("import torch\ntorch.nn.Module.__call__\nself._torch", set()),
    ],
)
def test_private_names_of_torch(text: str, names: set[str]) -> None:
    assert private_names(ast.parse(text)) == names
