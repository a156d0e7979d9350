"""Hostile and damaged files: always a graph, or a `GraphError` that says where."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamflow.config.reader import LARGEST_BYTES
from streamflow.errors import GraphError
from streamflow.graph import Graph

GOOD = """\
version: 1
name: electricity  # a comment
sources:
  readings: {type: file, path: "in.csv", format: {csv: {delimiter: ";"}}}
  others: &source
    type: memory
    capacity: 0x10
operators:
  fields: {type: select, inputs: [readings, others], merge: round_robin, fields: [a, b]}
models:
  m:
    inputs: [fields]
    network: [{Linear: [1, 8]}, ReLU, {Linear: [8, 1]}]
    features: [a]
    target: b
    loss: mse
    optimizer: {SGD: {lr: 5e-2}}
sinks:
  out: {type: file, inputs: [m], path: "${OUT:-out}.jsonl"}
dead_letter: {type: file, path: bad, format: jsonl}
"""
PIECES = [
    *"[]{}:-?,&*!|>'\"#%@`~ \t\n\r\0\x85\u2028\ufeff\ufffe\\",
    *(
        "\n  ",
        ": ",
        "- ",
        "? ",
        "---\n",
        "...\n",
        "%YAML 1.1\n",
        "%TAG ! tag:x,2000:\n",
        "<<: *source",
    ),
    *(
        "&source ",
        "*source",
        "*nothing",
        "&source [*source]",
        "!!python/object/apply:os.system [x]",
    ),
    *(
        "!!binary aGk=",
        "!!set {a, b}",
        "!x ",
        "${HOME}",
        "${",
        "${A:?b}",
        "${A:-${B}}",
        "$${",
        "|+2\n",
    ),
    *(
        "null",
        "true",
        "no",
        ".nan",
        "-.inf",
        "1e999",
        "0x",
        "0o8",
        "1_000",
        "9" * 390,
        "9" * 5000,
        "1.5",
    ),
    *(
        "version",
        "name",
        "sources",
        "inputs: ",
        "type: ",
        "m",
        "readings",
        "__class__",
        "model_fields",
    ),
    *(
        "[" * 60,
        "{a: " * 60,
        "- " * 60,
        "\N{MATHEMATICAL BOLD DIGIT ONE}",
        "e\u0301",
        "\ud7ff",
        "€",
    ),
]
mutations = st.lists(
    st.tuples(
        st.integers(0, len(GOOD)),
        st.integers(0, 12),
        st.sampled_from(PIECES) | st.text(max_size=3),
    ),
    min_size=1,
    max_size=5,
)


def check(data: bytes) -> str:
    """Read a graph, and return what is wrong with it; each problem must have its place."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "g.yaml")
        path.write_bytes(data)
        try:
            assert isinstance(Graph.from_yaml(path), Graph)
        except GraphError as error:
            places = [problem.place for problem in error.problems]
            said = str(error)
        else:
            return ""
    num_lines = len(data.decode(errors="replace").splitlines()) + 1
    for place in places:
        assert place is not None
        assert place.file == str(path)
        assert 1 <= place.line <= num_lines
        assert place.column >= 1
    assert places
    return said


def test_the_graph_to_be_damaged_is_good() -> None:
    assert check(GOOD.encode()) == ""


@given(mutations)
@settings(deadline=None, max_examples=400)
def test_a_damaged_file_is_a_graph_or_an_error_with_places(
    changes: list[tuple[int, int, str]],
) -> None:
    text = GOOD
    for start, length, piece in changes:
        text = text[:start] + piece + text[start + length :]
    check(text.encode("utf-8", "surrogatepass"))


@given(st.binary(max_size=200), st.integers(0, len(GOOD)))
@settings(deadline=None, max_examples=100)
def test_any_bytes_are_a_graph_or_an_error_with_places(data: bytes, start: int) -> None:
    check(data)
    check(GOOD.encode()[:start] + data)


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + inner] * 9)}]\n"
    for inner, name in zip("abcdefghijklmno", "bcdefghijklmnop", strict=True)
)
CHAIN = "".join(f"? &a{level} [*a{level - 1}]\n: 1\n" for level in range(1, 5000))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "expected at most 20000 values"),
        (f"? &a0 [x]\n: 1\n{CHAIN}v: *a4999\n", "expected at most 50 levels"),
        (
            "- &a0 [x]\n" + "".join(f"- &a{n} [*a{n - 1}]\n" for n in range(1, 99)),
            "at most 50 levels",
        ),
        ("a: &a [*a]", "expected an anchor &a before this alias"),
        ("[" * 100_000, "expected at most 50 levels"),
        ("{a: " * 50_000, "expected at most 50 levels"),
        ("- " * 100_000, "expected at most 50 levels"),
        ("? " * 100_000, "expected at most 50 levels"),
        ("a: [" + "1, " * 25_000 + "]", "expected at most 20000 values"),
        ("name: !!python/object/apply:os.system [x]", "expected no tag, found !!python/object"),
        ("name: !!python/name:os.system", "expected no tag, found !!python/name"),
        ("a: " + "${A:-" * 40_000, "expected ${NAME}"),
        ("a: " + "${" * 100_000, "expected ${NAME}"),
        ("#" * (LARGEST_BYTES + 1), "expected at most"),
        ("version: " + "9" * 400, "expected version 1"),
        ("version: " + "9" * 100_000, "expected"),
        ("a: " + "x y\n  " * 40_000, "expected a part of a graph"),
        ("x" * 200_000 + ": 1", "expected"),
        ("\\" * 200_000, "expected a mapping"),
        ("name: a\n" * 5000, "expected each key once"),
        ("name: \0", "U+0000"),
        ("name: \ufffe", "U+FFFE"),
        ('name: "\\ud800"', "expected text, found half of a pair of surrogates, U+D800"),
    ],
    ids=range(23),
)
def test_hostile_files_are_refused(text: str, message: str) -> None:
    assert message in check(text.encode())
