"""What pytest leaves alone, and how tests are shared out when several processes run them."""

import pytest

collect_ignore = ["stranger"]  # a package of its own, whose tests run where it is installed

SHARING = ("chaos", "kafka")
"""Folders whose tests share a broker."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let one process run all of a file, and all of a folder whose tests share a broker."""
    for item in items:
        folder = item.path.parent
        name = folder if folder.name in SHARING else item.path
        item.add_marker(pytest.mark.xdist_group(str(name)))
