"""Run a command in the source distribution that tox has built, with what was installed from it.

The sources give way to links to the installed package, so that what is tested is what lies in the
distribution, and what tests need beside it must lie there too.
"""

import os
import shutil
import subprocess
import sys
import tarfile
from importlib.util import find_spec
from pathlib import Path


def main(folder: str, *command: str) -> int:
    """Unpack the distribution into a folder, and run a command there."""
    shutil.rmtree(folder, ignore_errors=True)
    with tarfile.open(os.environ["TOX_PACKAGE"]) as packed:
        packed.extractall(folder, filter="data")
    [unpacked] = Path(folder).iterdir()
    for sources in (unpacked / "streamflow", unpacked / "connectors/streamflow_connectors"):
        spec = find_spec(sources.name)
        assert spec is not None
        assert spec.submodule_search_locations
        [installed] = spec.submodule_search_locations
        shutil.rmtree(sources)
        sources.symlink_to(installed)
    return subprocess.call(command, cwd=unpacked)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
