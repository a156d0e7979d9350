import subprocess
import sys

import pytest

from streamflow.errors import MissingExtraError
from streamflow.nodes.plugins import (
    FORMATS,
    OPERATORS,
    SINKS,
    SOURCES,
    load,
    missing_packages,
    registered,
    require,
)

REQUIRES = {
    "json.decoder": "a",
    "nowhere": "streamflow-online[b]",
    "nowhere.at.all": "c",
    "json.no": "d",
}


def test_built_in_types_are_registered_like_any_other() -> None:
    assert {"file", "kafka", "memory"} <= set(registered(SOURCES)) & set(registered(SINKS))
    assert {"map", "filter", "select", "standardize"} <= set(registered(OPERATORS))
    assert {"csv", "json", "jsonl", "msgpack", "raw"} <= set(registered(FORMATS))
    assert registered("streamflow.nothing") == {}


@pytest.mark.parametrize("group", [SOURCES, OPERATORS, SINKS])
def test_each_type_is_named_as_it_is_registered(group: str) -> None:
    for name in registered(group):
        assert load(group, name).model_fields["type"].default == name


def test_unknown_names() -> None:
    with pytest.raises(KeyError):
        load(SOURCES, "nothing")


def test_packages_that_are_not_installed() -> None:
    assert missing_packages({"json": "a", "json.decoder": "a"}) == []
    assert missing_packages(REQUIRES) == [
        f"expected the package {module}, found it is not installed; run: pip install '{install}'"
        for module, install in list(REQUIRES.items())[1:]
    ]


def test_requiring_what_is_not_installed() -> None:
    require({"json": "a"}, where="sources.s")
    with pytest.raises(
        MissingExtraError, match=r"^sources\.s: .* pip install 'streamflow-online\[b\]'$"
    ):
        require(REQUIRES, where="sources.s")


def test_looking_for_types_imports_no_driver() -> None:
    code = (
        "import sys\n"
        "from streamflow.nodes.plugins import *\n"
        "for group in (SOURCES, OPERATORS, SINKS, FORMATS):\n"
        "    for name in registered(group): load(group, name)\n"
        "sys.exit(bool({'torch', 'aiokafka', 'confluent_kafka'} & sys.modules.keys()))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
