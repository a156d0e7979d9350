"""The manifest: everything about a checkpoint but its tensors, as one JSON file.

    {"sha256": of the text that follows, "manifest": {"format": 1, "graph": {...}, ...}}

It is written last, and names all other files with size and checksum.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import PurePath
from typing import Any

from streamflow.checkpoints import trees
from streamflow.checkpoints.disk import Sum
from streamflow.checkpoints.identity import Identity
from streamflow.checkpoints.trees import Json
from streamflow.errors import CheckpointError
from streamflow.records import Place

NAME = "manifest.json"
FORMAT = 1

START = b'{"sha256":"'
MIDDLE = b'","manifest":'
END = b"}\n"


class FormatError(CheckpointError):
    """A checkpoint that another version of streamflow wrote."""


@dataclass(frozen=True, slots=True)
class SavedState:
    """A node's state.

    Attributes:
        tree: What JSON holds of it.
        file: Name of the file with its tensors; None if it has none.
    """

    tree: Json
    file: str | None


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything about a checkpoint but its tensors.

    Attributes:
        identity: The graph it is of.
        time: When it was written.
        records: For each source, records since its stream's start.
        positions: For each source, where each partition goes on.
        states: Of each operator and model.
        marks: Of each sink.
        files: The files beside the manifest.
    """

    identity: Identity
    time: datetime
    records: Mapping[str, int]
    positions: Mapping[str, Mapping[Place, int]]
    states: Mapping[str, SavedState]
    marks: Mapping[str, Mapping[str, Any]]
    files: Mapping[str, Sum]


def dump(manifest: Manifest) -> bytes:
    """Return a manifest as the content of its file.

    Raises:
        CheckpointError: A mark holds something that JSON cannot.
    """
    identity = manifest.identity
    data = {
        "format": FORMAT,
        "graph": {
            "name": identity.name,
            "hash": identity.hash,
            "canonical": trees.encode(identity.canonical, where=identity.name).json,
        },
        "time": manifest.time.isoformat(),
        "records": dict(manifest.records),
        "positions": {
            source: [
                {"partition": dict(place), "position": position}
                for place, position in positions.items()
            ]
            for source, positions in manifest.positions.items()
        },
        "states": {
            node: {"file": state.file, "tree": state.tree}
            for node, state in manifest.states.items()
        },
        "marks": {sink: _dump_mark(sink, mark) for sink, mark in manifest.marks.items()},
        "files": {name: asdict(found) for name, found in manifest.files.items()},
    }
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).encode()
    return START + hashlib.sha256(text).hexdigest().encode() + MIDDLE + text + END


def _dump_mark(sink: str, mark: Mapping[str, Any]) -> Json:
    encoded = trees.encode(dict(mark), where=sink)
    if encoded.tensors:
        message = (
            f"{sink}.{min(encoded.tensors)}: expected plain data in the mark of a sink, "
            f"found an array; return numbers and text from mark()"
        )
        raise CheckpointError(message)
    return encoded.json


def parse(content: bytes) -> Manifest:
    """Return the manifest that `dump` was given.

    Raises:
        FormatError: Another version wrote it.
        CheckpointError: It is damaged.
    """
    start = len(START) + 64 + len(MIDDLE)
    text = content[start : -len(END)]
    digest = hashlib.sha256(text).hexdigest().encode()
    if content != START + digest + MIDDLE + text + END:
        message = f"{NAME}: expected its own checksum, found another one; it is damaged"
        raise CheckpointError(message)
    data = json.loads(text)
    if data["format"] != FORMAT:
        message = (
            f"{NAME}: expected format {FORMAT}, found {data['format']}; "
            f"read it with the version of streamflow that wrote it"
        )
        raise FormatError(message)
    return _manifest(data)


def _manifest(data: Json) -> Manifest:
    for name in data["files"]:
        if PurePath(name).name != name:
            message = f"{NAME}: expected names of files beside it, found {name}; it was changed"
            raise CheckpointError(message)
    canonical = trees.decode(data["graph"]["canonical"], trees.without_tensors)
    return Manifest(
        identity=Identity(data["graph"]["name"], canonical),
        time=datetime.fromisoformat(data["time"]),
        records=data["records"],
        positions={
            source: {tuple(item["partition"].items()): item["position"] for item in items}
            for source, items in data["positions"].items()
        },
        states={node: SavedState(**state) for node, state in data["states"].items()},
        marks={
            sink: trees.decode(mark, trees.without_tensors) for sink, mark in data["marks"].items()
        },
        files={name: Sum(**found) for name, found in data["files"].items()},
    )
