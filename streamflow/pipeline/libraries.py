"""The C++ of this package, compiled on the machine where it runs and kept on disk."""

import hashlib
import tempfile
from contextlib import suppress
from pathlib import Path

from streamflow.pipeline import inductor

LINE = "line.cpp"
"""Runs stages."""

LIBRARY = "library.cpp"
"""Makes stages of programs that call libraries."""


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
        inductor.build_library(_source(name), made / path.name)
        with suppress(OSError):  # somebody else was faster
            made.rename(folder)


def _source(name: str) -> str:
    return Path(__file__).with_name(name).read_text()


def _path(name: str) -> Path:
    parts = (_source(name), inductor.target())
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
    return inductor.cache_folder() / digest / Path(name).with_suffix(".so")
