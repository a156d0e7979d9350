"""The command line as a program of its own, for its tests."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

COMMAND = (sys.executable, "-W", "error", "-c", "from streamflow.cli import main; main()")


def streamflow(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder to its end."""
    return python(folder, *COMMAND[1:], *arguments)


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder to its end."""
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


def values(path: Path) -> list[Any]:
    """Return the values of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
