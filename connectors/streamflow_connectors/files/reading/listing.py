"""Which files a path or a pattern stands for."""

from __future__ import annotations

import glob
import os

from streamflow.contracts import Context
from streamflow.errors import ConnectorError


def find_paths(path: str, context: Context) -> list[str]:
    """Return the paths that ``path`` stands for, sorted.

    Raises:
        ConnectorError: There is none, or one of them cannot be read.
    """
    if path == "-":
        return [path]
    paths = [path]
    if glob.has_magic(path) and not (context.folder / path).exists():
        matches = glob.glob(path, root_dir=context.folder, recursive=True)
        paths = sorted(name for name in matches if not (context.folder / name).is_dir())
        if not paths:
            message = f"{context.name}: expected files that match {path}, found none; "
            message += f"paths start at {context.folder.resolve()}"
            raise ConnectorError(message)
    for place in context.resume.positions if context.resume else ():
        _check_resumed(str(dict(place).get("path")), paths, context)
    for name in paths:
        _check_readable(name, context)
    return paths


def _check_resumed(path: str, paths: list[str], context: Context) -> None:
    if path not in paths or not (context.folder / path).exists():
        message = (
            f"{context.name}: expected to go on in {path} as the checkpoint says, found no such "
            f"file among those to read; bring it back, or use --reset to begin anew"
        )
        raise ConnectorError(message)


def _check_readable(path: str, context: Context) -> None:
    found = None
    full = context.folder / path
    if not full.exists():
        found = f"nothing at {full.resolve()}; check the path"
    elif full.is_dir():
        found = "a folder; name its files, as in folder/*.csv"
    elif not os.access(full, os.R_OK):
        found = "that its permissions forbid it; change them"
    if found:
        message = f"{context.name}: expected to read {path}, found {found}"
        raise ConnectorError(message)
