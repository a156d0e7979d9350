"""What this package is called on the package index, and whether another one lies in its folder.

There, ``streamflow`` is another project's distribution. Installers put its package into the very
same folder, and of a file that both have they keep the one that came last. Every import of
streamflow looks for it: one look into one folder, without pathlib, whose import takes longer.
"""

import os
import warnings

NAME = "streamflow-online"


def stranger_in(folder: str) -> str | None:
    """Return what is wrong, with its cure, if a distribution named just ``streamflow`` lies there.

    Args:
        folder: Where the package ``streamflow`` lies, beside what describes distributions.
    """
    try:
        names = os.listdir(os.path.dirname(folder))
    except OSError:  # a package within an archive has no neighbours
        return None
    for name in names:
        if name.startswith("streamflow-") and name.endswith(".dist-info"):
            return (
                f"{folder}: expected the files of {NAME} alone, found also those of {name}, "
                "another project of that name; run: pip uninstall streamflow && "
                f"pip install --force-reinstall --no-deps {NAME}"
            )
    return None


def warn_of_stranger(folder: str) -> None:
    """Warn whoever imports streamflow of another project's files in its folder."""
    if problem := stranger_in(folder):
        warnings.warn(problem, RuntimeWarning, stacklevel=3)
