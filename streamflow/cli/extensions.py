"""C code of packages that go on without it: is it there, and does it load."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

from streamflow.cli.finding import Finding, told


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
        found = f"does not load: {told(error)}" if is_there else "not there"
        return Finding(subject, found, cure)
    return Finding(subject, "there")
