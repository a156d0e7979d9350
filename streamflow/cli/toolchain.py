"""What torch takes on this machine: a compiler that works, a place for code, models that learn."""

from __future__ import annotations

import ctypes
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from streamflow.cli.finding import Finding, told
from streamflow.cli.learning import TO_BE_COMPILED, learning_of
from streamflow.dataflow import Graph
from streamflow.errors import Problem
from streamflow.models.model import Model
from streamflow.models.shapes import ShapeError
from streamflow.pipeline.codegen.libraries import cache_folder, find_compiler
from streamflow.pipeline.torch_private import KNOWN, NAMES, Unavailable, build_library

# What every loop of learned samples begins with.
_TRIAL = """\
#include <torch/csrc/inductor/cpp_prefix.h>
extern "C" int streamflow_trial() { return 1; }
"""

_EAGER = "until then networks learn eagerly"


def hardware() -> Iterator[Finding]:
    """Yield what torch computes with."""
    yield Finding("torch's threads", str(torch.get_num_threads()))
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    yield Finding("GPUs", ", ".join(gpus) or "none: networks run on the processor")


def private_names() -> Iterator[Finding]:
    """Yield what this version of torch lacks that compiled code is made with."""
    for name in NAMES:
        if name.missing():
            cure = f"install torch {KNOWN}: {name.without}"
            yield Finding("torch", f"has no {name}, which {name.purpose}", cure)


def compilation() -> list[Finding]:
    """Return whether networks can be compiled here: there is nothing to cure if they can.

    What they need is tried: a library is compiled and loaded where they are kept.
    """
    command = find_compiler()
    compiler = shutil.which(command or "") or command
    try:
        folder = _cache()
    except OSError as error:
        cure = f"make it writable, or set TORCHINDUCTOR_CACHE_DIR to a folder that is; {_EAGER}"
        place = Finding("compiled code", f"cannot be kept: {told(error)}", cure)
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
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        return folder


def _trial_failure(folder: Path) -> str:
    """Return why what networks need does not compile or load there, if it does not."""
    with tempfile.TemporaryDirectory(dir=folder) as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of headers that networks do without
        library = Path(place) / "trial.so"
        try:
            build_library(_TRIAL, library)
            ctypes.CDLL(str(library))
        except Unavailable:  # which is told beside
            return ""
        except Exception as error:  # a compiler may fail in any way
            return told(error)
    return ""


def learning(graph: Graph, problems: Sequence[Problem], cannot: str) -> Iterator[Finding]:
    """Yield how each model that can be built would learn.

    Args:
        graph: The graph.
        problems: What is wrong with it.
        cannot: Why nothing can be compiled here, if that is so.
    """
    wrong = {problem.location[1] for problem in problems if problem.location[0] == "models"}
    for name, model in graph.models.items():
        if name not in wrong:
            yield _learning(name, model, graph.folder, cannot)


def _learning(name: str, model: Model, folder: Path, cannot: str) -> Finding:
    """Return how a model would learn."""
    subject = f"{name}: learning"
    try:
        found = learning_of(model, folder)
    except ShapeError as error:
        what = str(error).partition("; ")[0]
        return Finding(subject, f"not known before the first record: {what}")
    except Exception as error:  # a network may refuse a record in any way
        return Finding(subject, f"does not learn a random record: {error}", "see the message")
    return Finding(subject, f"eager: {cannot}" if found == TO_BE_COMPILED and cannot else found)
