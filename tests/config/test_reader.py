from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamflow.errors import GraphError, Problem
from streamflow.graph import Graph
from streamflow_connectors.kafka import KafkaSource

GOOD = """\
version: 1
name: electricity
sources:
  readings:
    type: kafka
    bootstrap_servers: localhost:9092
    topics: [power]
    group: learners
operators:
  fields: {type: select, inputs: [readings], fields: [price, demand, class]}
models:
  direction:
    inputs: [fields]
    network: [{Linear: [2, 2]}]
    features: [price, demand]
    target: class
    loss: cross_entropy
sinks:
  out: {type: kafka, inputs: [direction], bootstrap_servers: "localhost:9092", topic: out}
"""


def read(folder: Path, text: str, **overrides: str) -> Graph:
    path = folder / "g.yaml"
    path.write_text(text, encoding="utf-8")
    return Graph.from_yaml(path, overrides=overrides)


def errors(folder: Path, text: str, overrides: dict[str, str] | None = None) -> list[str]:
    path = folder / "g.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(GraphError) as caught:
        Graph.from_yaml(path, overrides=overrides)
    assert str(caught.value) == "\n".join(map(str, caught.value.problems))
    return str(caught.value).replace(f"{folder}/", "").splitlines()


BROKEN = [
    ("", "", "1:1: expected a graph, found an empty file; begin with name, sources and sinks"),
    ("name: electricity", "title: x", None),
    (
        "    group: learners",
        "    grup: learners",
        "8:5: expected an option of kafka, found grup; did you mean group?",
    ),
    (
        "    type: kafka\n    boot",
        "    type: kafca\n    boot",
        "5:11: expected a type of source, found kafca; did you mean kafka?",
    ),
    (
        "    type: kafka\n    boot",
        "    type: map\n    boot",
        (
            "5:11: expected a type of source, found map; "
            "map is a type of operator: declare it under operators"
        ),
    ),
    (
        "inputs: [direction]",
        "inputs: [direction, readngs]",
        (
            "19:42: expected the name of a source, operator or model, found readngs; "
            "did you mean readings?"
        ),
    ),
    (
        "inputs: [direction]",
        "inputs: direction",
        "19:30: expected a list, found 'direction'; put it in brackets: [direction]",
    ),
    (
        "inputs: [readings]",
        "inputs: [readings, direction]",
        (
            "10:34: expected no cycle, found fields -> direction -> fields; "
            "remove direction from these inputs"
        ),
    ),
    (
        "operators:\n",
        "operators:\n  lost: {type: select, inputs: [readings], fields: [price]}\n",
        (
            "10:3: expected a node that receives from lost, found none; "
            "add it to the inputs of another node, or remove it"
        ),
    ),
    (
        "    target: class\n",
        "    target: class\n    target: price\n",
        "17:5: expected each key once, found target again (line 16); remove one",
    ),
    (
        "    target: class\n",
        "    target: class\n    seed: abc\n",
        "17:11: expected an integer, found 'abc'; write a whole number such as 3",
    ),
    (
        "    target: class\n",
        "    target: class\n    schedule: 1f1\n",
        (
            "17:15: expected one of sequential, 1f1b, greedy, lockstep, found '1f1'; "
            "did you mean 1f1b?"
        ),
    ),
    (
        "    target: class\n",
        "    target: 5\n",
        '16:13: expected text, found 5; put it in quotes: "5"',
    ),
    (
        "    target: class\n",
        "    target: class\n    horizon: 0\n",
        "17:14: expected a number of at least 1, found 0; choose a larger one",
    ),
    (
        "    network: [{Linear: [2, 2]}]\n",
        "",
        (
            "12:3: expected the option network, found none; "
            "add network (layers of torch.nn in order, "
            "or package.module:callable that returns a module)"
        ),
    ),
    (
        "group: learners",
        "group: ${NOT_SET_HERE}",
        (
            "8:12: expected the environment variable NOT_SET_HERE, found none of this name; "
            "set it, or write ${NOT_SET_HERE:-default}"
        ),
    ),
    (
        "group: learners",
        "group: ${NOT_SET_HERE:?name your group}",
        (
            "8:12: expected the environment variable NOT_SET_HERE, found none of this name; "
            "name your group"
        ),
    ),
    (
        "[price, demand, class]",
        "[${PRICE}]",
        '10:56: expected quotes around ${...} within {} or [], found none; write "${...}"',
    ),
    (
        "version: 1",
        "version: 2",
        "1:10: expected version 1, found 2; install a streamflow that reads it",
    ),
    (
        "name: electricity",
        "name: a: b",
        (
            "2:8: expected one key and value on a line, found another colon; "
            "quote text that contains ': ', or mend the indentation"
        ),
    ),
    (
        "group: learners",
        "group: 'learners",
        "8:12: expected a closing quote, found none; add it",
    ),
    (
        'bootstrap_servers: "localhost:9092", topic',
        'bootstrap_servers: "localhost":9092, topic',
        None,
    ),
    (
        "topic: out}",
        'topic: "${NAME:-a}"-out}',
        "19:99: expected , or } in what is opened at line 19, found text; close it with }",
    ),
    (
        "topic: out}",
        "topic: out",
        (
            "20:1: expected , or } in what is opened at line 19, found the end of the file; "
            "close it with }"
        ),
    ),
    ("    group: learners", "\tgroup: learners", None),
    ("group: learners", "group: !!str learners", "8:12: expected no tag, found !!str; remove it"),
    ("group: learners", "group: *learners", None),
    (
        "version: 1\n",
        "version: 1\nsource: {}\n",
        "2:1: expected a part of a graph, found source; did you mean sources?",
    ),
    (
        GOOD,
        "- a\n",
        (
            "1:1: expected a mapping with name, sources and sinks, found a list; "
            "write it as key: value"
        ),
    ),
]


@pytest.mark.parametrize(("old", "new", "line"), BROKEN)
def test_each_mistake_has_its_line(tmp_path: Path, old: str, new: str, line: str | None) -> None:
    text = GOOD.replace(old, new, 1) if old else ""
    assert text != GOOD
    found = errors(tmp_path, text)
    assert all(": expected " in each and ", found " in each and "; " in each for each in found)
    if line is not None:
        assert found[-1] == f"g.yaml:{line}" or f"g.yaml:{line}" in found


def test_all_problems_come_at_once_in_order(tmp_path: Path) -> None:
    text = GOOD.replace("group", "grup").replace("loss: cross_entropy", "learn: perhaps")
    places = [line.partition(": ")[0] for line in errors(tmp_path, text)]
    assert places == ["g.yaml:8:5", "g.yaml:17:12"]


def test_paths_start_at_the_folder_of_the_file(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD).folder == tmp_path


def test_later_problems_are_placed_too(tmp_path: Path) -> None:
    graph = read(tmp_path, GOOD)
    [problem] = graph.locate([Problem(("models", "direction", "network", 0, "Linear"), "expected")])
    assert problem.place is not None
    assert (problem.place.line, problem.place.column) == (14, 24)


def test_variables_keep_their_type_unless_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBER", "7")
    extra = "    seed: ${NUMBER}\n    weights: ${NONE:-no}\n"
    extra += '    carry: ["${NUMBER}", "$${NUMBER}"]\n'
    model = read(tmp_path, GOOD.replace("    target", extra + "    target")).models["direction"]
    assert (model.seed, model.carry, model.weights) == (7, ("7", "${NUMBER}"), "no")


def test_values_of_variables_are_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEED", "hunter2")
    [line] = errors(tmp_path, GOOD.replace("    target", "    seed: ${SEED}\n    target"))
    assert line.endswith(
        ":16:11: expected an integer, found ${SEED}; write a whole number such as 3"
    )


def test_overrides_replace_and_create(tmp_path: Path) -> None:
    node = "models.direction"
    overrides = {f"{node}.optimizer.SGD.lr": "0.1", f"{node}.features.1": "transfer"}
    model = read(tmp_path, GOOD, **overrides).models["direction"]
    assert model.optimizer == {"SGD": {"lr": 0.1}}
    assert model.features == ("price", "transfer")


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("models.diretion.seed", "1",
         ("--set models.diretion.seed: expected the name of a node under models, found diretion; "
         "did you mean direction?")),
        ("models.direction.seed", "x",
         ("--set models.direction.seed=x: expected an integer, found 'x'; "
         "write a whole number such as 3")),
        ("models.direction.sed", "1",
         ("--set models.direction.sed=1: expected an option of model, found sed; "
         "did you mean seed?")),
        ("models.direction.features.5", "x",
         "--set models.direction.features.5: expected an index below 2, found 5; count from 0"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_named(tmp_path: Path, path: str, value: str, line: str) -> None:
    assert errors(tmp_path, GOOD, {path: value}) == [line]


@pytest.mark.parametrize(
    ("content", "end"),
    [
        (None, (":1:1: expected a graph file, found none (no such file or directory); "
         "check the path")),
        (b"a: b\nc: \xff", ":2:4: expected UTF-8 text, found the byte 0xff; save it as UTF-8"),
        (b"x" * 300_000, (":1:1: expected at most 262144 bytes, found 300000; "
         "is this the graph, or its data?")),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None, end: str) -> None:
    path = tmp_path / "g.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(GraphError) as caught:
        Graph.from_yaml(path)
    assert str(caught.value) == f"{path}{end}"


def test_aliases_do_not_explode(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]" for n in range(1, 12)]
    [line] = errors(tmp_path, "\n".join(lines))
    assert "found more; use fewer aliases" in line


def test_a_missing_extra_names_its_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KafkaSource, "requires", {"no_such_driver": "streamflow-online[kafka]"})
    [line] = errors(tmp_path, GOOD)
    assert line.startswith("g.yaml:5:11: expected the package no_such_driver, found it is not")
    assert line.endswith("run: pip install 'streamflow-online[kafka]'")


@given(start=st.integers(0, len(GOOD)), length=st.integers(0, 20), text=st.text(max_size=8))
@settings(max_examples=150, deadline=2000)
def test_mutated_files_raise_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, start: int, length: int, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.yaml"
    path.write_text(GOOD[:start] + text + GOOD[start + length :], encoding="utf-8")
    with suppress(GraphError):
        Graph.from_yaml(path)


@given(text=st.text(alphabet="ab:-?[]{}&*!|>'\"%@`#,\n\t ~$<0", max_size=40))
@settings(max_examples=150, deadline=2000)
def test_arbitrary_text_raises_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "arbitrary.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(GraphError):
        Graph.from_yaml(path)
