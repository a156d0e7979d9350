"""The C++ of this package, compiled on the machine where it runs and kept on disk."""

import getpass
import hashlib
import os
import platform
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import torch

from streamflow.pipeline import torch_private

LINE = "line.cpp"
"""Runs stages."""

LIBRARY = "library.cpp"
"""Makes stages of programs that call libraries."""

STAGE = "stage.so"
"""Where code of a stage lies in its folder."""

NAMES = "learn.so", "forward.so"
"""Where the programs of one lie that calls libraries."""


NOTE = "code.json"
"""Where a folder says why what lies there is what it is."""

_COMPILERS = {"darwin": "clang++", "win32": "cl"}


def find_compiler() -> str | None:
    """Return where the C++ compiler is that torch takes, or None where there is none."""
    return shutil.which(os.environ.get("CXX") or _COMPILERS.get(sys.platform, "g++"))


def cache_folder() -> Path:
    """Return where compiled code is kept between runs: where torch keeps its own.

    ``TORCHINDUCTOR_CACHE_DIR`` moves it.
    """
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    root = Path(folder or Path(tempfile.gettempdir()) / f"torchinductor_{_user()}")
    return root.absolute() / "streamflow"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, ImportError, OSError):  # a container may know no names
        return f"uid_{os.getuid()}"


def target() -> str:
    """Describe what compiled code depends on beside its source: it is made for this processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    kind = torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__}, {platform.platform()}, {kind}, {flags}"


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
    parts = (_source(name), target())
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
    return cache_folder() / digest / Path(name).with_suffix(".so")
