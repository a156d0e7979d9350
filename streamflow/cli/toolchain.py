"""What native code takes on this machine: extensions that load, a compiler that works, a place."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from streamflow.cli.finding import Finding

# What every loop of learned samples begins with.
_TRIAL = """\
#include <torch/csrc/inductor/cpp_prefix.h>
extern "C" int streamflow_trial() { return 1; }
"""

_EAGER = "until then networks learn eagerly"


class Extension(NamedTuple):
    """C code of a package, which goes on without it and says nothing.

    Attributes:
        module: What to import.
        switch: Environment variable that turns it off.
        loss: What it is like without.
    """

    module: str
    switch: str
    loss: str


EXTENSIONS = {
    "aiokafka": Extension(
        "aiokafka.record._crecords", "AIOKAFKA_NO_EXTENSIONS", "reading is ten times slower without"
    ),
    "msgpack": Extension(
        "msgpack._cmsgpack", "MSGPACK_PUREPYTHON", "the format msgpack is slower without"
    ),
    "websockets": Extension("websockets.speedups", "", "long messages are slower without"),
}


def extensions() -> Iterator[Finding]:
    """Yield whether the C code of packages that are installed loads."""
    for package, extension in EXTENSIONS.items():
        if find_spec(package):
            yield _extension(package, extension)


def _extension(package: str, extension: Extension) -> Finding:
    subject = f"{package}'s C extension"
    if os.environ.get(extension.switch):
        cure = f"unset {extension.switch}: {extension.loss}"
        return Finding(subject, f"turned off by {extension.switch}", cure)
    cure = f"install a {package} wheel for this Python: {extension.loss}"
    try:
        import_module(extension.module)
    except Exception as error:  # what is broken may raise anything
        is_there = getattr(error, "name", "") != extension.module
        found = f"does not load: {_told(error)}" if is_there else "not there"
        return Finding(subject, found, cure)
    return Finding(subject, "there")


def private_names() -> Iterator[Finding]:
    """Yield what this version of torch lacks that compiled code is made with."""
    from streamflow.pipeline.torch_private import KNOWN, NAMES

    for name in NAMES:
        if name.missing():
            cure = f"install torch {KNOWN}: {name.without}"
            yield Finding("torch", f"has no {name}, which {name.purpose}", cure)


def compilation() -> list[Finding]:
    """Return whether networks can be compiled here: there is nothing to cure if they can.

    What they need is tried: a library is compiled and loaded where they are kept.
    """
    from streamflow.pipeline.codegen.libraries import find_compiler

    command = find_compiler()
    compiler = shutil.which(command or "") or command
    try:
        folder = _cache()
    except OSError as error:
        cure = f"make it writable, or set TORCHINDUCTOR_CACHE_DIR to a folder that is; {_EAGER}"
        place = Finding("compiled code", f"cannot be kept: {_told(error)}", cure)
        return [_compiler(compiler, ""), place]
    failure = _trial_failure(folder) if compiler else ""
    return [_compiler(compiler, failure), Finding("compiled code", f"kept in {folder}")]


def _compiler(path: str | None, failure: str) -> Finding:
    if path is None:
        cure = f"install one (apt install g++), so that networks are compiled; {_EAGER}"
        return Finding("C++ compiler", "not there", cure)
    if failure:
        cure = f"install one that works (apt install g++), or name it in CXX; {_EAGER}"
        return Finding("C++ compiler", f"{path} fails: {failure}", cure)
    return Finding("C++ compiler", path)


def _cache() -> Path:
    """Return where compiled code is kept.

    Raises:
        OSError: Nothing can be written there.
    """
    from streamflow.pipeline.codegen.libraries import cache_folder

    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        return folder


def _trial_failure(folder: Path) -> str:
    """Return why what networks need does not compile or load there, if it does not."""
    from streamflow.pipeline.torch_private import Unavailable, build_library

    with tempfile.TemporaryDirectory(dir=folder) as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of headers that networks do without
        library = Path(place) / "trial.so"
        try:
            build_library(_TRIAL, library)
            ctypes.CDLL(str(library))
        except Unavailable:  # which is told beside
            return ""
        except Exception as error:  # a compiler may fail in any way
            return _told(error)
    return ""


def _told(error: Exception) -> str:
    """Return an error in a line: of what a compiler has printed, the first error."""
    lines = str(error).strip().splitlines() or [""]
    line = next((line for line in lines if "error:" in line), lines[0])
    return f"{type(error).__name__}: {line}"
