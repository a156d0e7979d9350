"""Options of every type with any value: taken, or refused with the cause, and secrets not shown."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamflow.errors import GraphError
from streamflow.nodes.plugins import FORMATS, OPERATORS, SINKS, SOURCES, load, registered
from streamflow.nodes.problems import secret_options

SECRET = "hunter2"

TYPES = [
    pytest.param(load(group, name), id=f"{group}.{name}")
    for group in (SOURCES, OPERATORS, SINKS, FORMATS)
    for name in registered(group)
]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**63, 2**64, -(10**400), 10**400]),
    st.floats(),
    st.text(max_size=4),
    st.sampled_from(["-", "tcp://a:1", "a:1", "SASL_SSL", "{", "30s", "16MiB", "json", "\ud800"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


def wrapped(value: object) -> st.SearchStrategy[Any]:
    """Return ways to write a value where it does not belong."""
    return st.sampled_from([value, [value], {"a": value}, {value: 1}])


@pytest.mark.parametrize("declare", TYPES)
def test_any_options_are_taken_or_refused(declare: Any) -> None:
    names = sorted(declare.model_fields)
    hidden = secret_options(declare)

    @given(st.data())
    @settings(deadline=None, max_examples=60)
    def check(data: st.DataObject) -> None:
        options: dict[str, Any] = {}
        for name in data.draw(st.lists(st.sampled_from(names), unique=True)) if names else []:
            options[name] = data.draw(wrapped(SECRET) if name in hidden else values)
        try:
            said = repr(declare(**options))
        except GraphError as error:
            said = str(error)
        if hidden:
            assert SECRET not in said

    check()
