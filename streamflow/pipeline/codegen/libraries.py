"""The C++ of this package, compiled on the machine where it runs and kept on disk."""

import hashlib
import tempfile
from contextlib import suppress
from pathlib import Path

from streamflow.pipeline import torch_private

LINE = "line.cpp"
"""Runs stages."""

LIBRARY = "library.cpp"
"""Makes stages of programs that call libraries."""


STAGE = "stage.so"
"""Where code of a stage lies in its folder."""

NAMES = "learn.so", "forward.so"
"""Where the programs of one lie that calls libraries."""


def find(name: str) -> Path | None:
    """Return the library that a source became, where it is on disk."""
    path = _path(name)
    return path if path.exists() else None


def build(name: str) -> None:
    """Compile a source, unless that is on disk."""
    path = _path(name)
    if path.exists():
        return
    folder = path.parent
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        made = Path(place) / "made"
        torch_private.build_library(_source(name), made / path.name)
        with suppress(OSError):  # somebody else was faster
            made.rename(folder)


def _source(name: str) -> str:
    return (Path(__file__).parents[1] / "native" / name).read_text()


def _path(name: str) -> Path:
    parts = (_source(name), torch_private.target())
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
    return torch_private.cache_folder() / digest / Path(name).with_suffix(".so")
