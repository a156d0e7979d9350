import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from pydantic import SecretStr

from streamflow import Graph, Model
from streamflow.checkpoints import Identity, difference, identify
from streamflow.checkpoints.manifest import Manifest, dump, parse
from streamflow.checkpoints.names import name_of
from streamflow.nodes import Declaration, Source
from streamflow.operators.fields import Select, Standardize
from streamflow.operators.functions import Map
from streamflow_connectors.files import FileSink, FileSource
from streamflow_connectors.memory import MemorySource


class Login(Declaration):
    incidental: ClassVar[frozenset[str]] = frozenset({"server"})

    server: str = "a"
    password: SecretStr | None = None


class Feed(Login, Source):
    """A source with options that may change."""

    incidental: ClassVar[frozenset[str]] = frozenset({"poll"})

    type: Literal["feed"] = "feed"
    topic: str = "t"
    poll: int = 1


def graph(
    *,
    model: dict[str, Any] | None = None,
    source: Source | None = None,
    fields: tuple[str, ...] = ("x",),
    name: str = "lines",
    **options: Any,
) -> Graph:
    declared: dict[str, Any] = {
        "inputs": ("step",),
        "network": [{"Linear": [1, 8]}, "ReLU", {"Linear": [8, 1]}],
        "features": ("x",),
        "target": "y",
        "optimizer": {"SGD": {"lr": 0.1}},
    }
    return Graph(
        name=name,
        sources={"rows": source or FileSource(path="in.csv")},
        operators={"step": Standardize(inputs=("rows",), fields=fields)},
        models={"m": Model(**{**declared, **(model or {})})},
        sinks=options.pop("sinks", {"out": FileSink(inputs=("m",), path="out.jsonl")}),
        **options,
    )


def lines(saved: Graph, current: Graph) -> list[str]:
    problems = difference(identify(saved), identify(current))
    assert bool(problems) == (identify(saved).hash != identify(current).hash)
    return [str(problem) for problem in problems]


@pytest.mark.parametrize(
    "model",
    [
        {"optimizer": {"SGD": {"lr": 0.5, "momentum": 0.9}}},
        {"optimizer": "SGD"},
        {"groups": {"*.bias": {"lr": 1.0}}},
        {"scheduler": {"StepLR": {"step_size": 3}}},
        {"accumulate": 4},
        {"clip_norm": 1.0},
        {"allow_nonfinite": True},
        {"stages": 2},
        {"stages": "auto", "rate": 10.0},
        {"schedule": "sequential"},
        {"backward": "stashed"},
        {"executor": "threads"},
        {"devices": "cpu"},
        {"compile": False},
        {"max_keys": 5},
        {"learn": False},
        {"carry": ("x",)},
        {"window": 5},
        {"buffer": {"records": 5}},
        {"overflow": "latest"},
        {"task": "regression"},  # as the loss says anyway
        {"loss": "mse"},
        {"loss": {"mse_loss": {}}},
        {"seed": 0},
    ],
    ids=str,
)
def test_how_a_model_learns_and_runs_may_change(model: dict[str, Any]) -> None:
    assert lines(graph(), graph(model=model)) == []


def test_names_sinks_and_settings_may_change() -> None:
    sinks = {
        "out": FileSink(inputs=("m",), path="elsewhere.csv", format="csv"),
        "more": FileSink(inputs=("step",), path="more.jsonl"),
    }
    letters = FileSink(path="letters.jsonl")
    changed = graph(
        name="other",
        sinks=sinks,
        dead_letter=letters,
        shutdown_timeout=5.0,
        checkpoint={"path": "c", "every": 10, "keep": 1},
    )
    assert lines(graph(), changed) == []


def test_the_order_of_nodes_does_not_count() -> None:
    nodes = graph().models["m"], graph().models["m"]
    both = Graph(
        name="two",
        sources=graph().sources,
        operators=graph().operators,
        models={"a": nodes[0], "b": nodes[1]},
        sinks={"out": FileSink(inputs=("a", "b"), path="out.jsonl")},
    )
    turned = both.model_copy(update={"models": {"b": nodes[1], "a": nodes[0]}})
    assert lines(both, turned) == []


NOW = datetime.now(UTC)
CURE = "; undo the change, or give the graph a new checkpoint path"


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (
            {"network": [{"Linear": [1, 4]}, "ReLU", {"Linear": [4, 1]}]},
            [
                "models.m.network.0.Linear.1: expected 8 as in the checkpoint, found 4",
                "models.m.network.2.Linear.0: expected 8 as in the checkpoint, found 4",
            ],
        ),
        (
            {"network": [{"LazyLinear": [8]}, "ReLU", {"Linear": [8, 1]}]},
            ['models.m.network.0: expected {"Linear": [1, 8]} as in the checkpoint, found {"Lazy'],
        ),
        (
            {"network": [{"Linear": [1, 8]}, "ReLU", {"Linear": [8, 1]}, "ReLU"]},
            ['models.m.network.3: expected nothing as in the checkpoint, found "ReLU"'],
        ),
        (
            {"features": ("x", "z")},
            ['models.m.features.1: expected nothing as in the checkpoint, found "z"'],
        ),
        ({"target": "z"}, ['models.m.target: expected "y" as in the checkpoint, found "z"']),
        ({"horizon": 2}, ["models.m.horizon: expected nothing as in the checkpoint, found 2"]),
        ({"loss": "l1"}, ['models.m.loss: expected "mse_loss" as in the checkpoint, found "l1_lo']),
        ({"loss": {"huber": {"delta": 2}}}, ['models.m.loss: expected "mse_loss" as in the']),
        (
            {"optimizer": "Adam"},
            ['models.m.optimizer.0: expected "SGD" as in the checkpoint, found "Adam"'],
        ),
        (
            {"optimizer": torch.optim.SGD},
            ['models.m.optimizer.0: expected "SGD" as in the checkpoint, found "torch.optim.sgd:S'],
        ),
        ({"seed": 1}, ["models.m.seed: expected nothing as in the checkpoint, found 1"]),
        ({"weights": "w"}, ['models.m.weights: expected nothing as in the checkpoint, found "w"']),
        ({"state": ("h",)}, ['models.m.state: expected nothing as in the checkpoint, found ["h"]']),
        ({"standardize_target": True}, ["models.m.standardize_target: expected nothing"]),
        (
            {"loss": "binary_cross_entropy", "classes": (0, 1)},
            ["models.m.classes", "models.m.loss", "models.m.task: expected"],
        ),
        ({"inputs": ("step", "rows")}, ["models.m.inputs.1: expected nothing"]),
        ({"merge": "round_robin"}, ["models.m.merge: expected nothing"]),
    ],
    ids=str,
)
def test_what_a_model_learns_may_not_change(model: dict[str, Any], expected: list[str]) -> None:
    found = lines(graph(), graph(model=model))
    assert len(found) == len(expected)
    for line, start in zip(sorted(found), sorted(expected), strict=True):
        assert line.startswith(start)
        assert line.endswith(CURE)


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        (
            {"source": FileSource(path="b.csv")},
            'sources.rows.path: expected "in.csv" as in the checkpoint, found "b.csv"' + CURE,
        ),
        (
            {"source": MemorySource()},
            'sources.rows.type: expected "file" as in the checkpoint, found "memory"' + CURE,
        ),
        (
            {"fields": ("y",)},
            'operators.step.fields.0: expected "x" as in the checkpoint, found "y"' + CURE,
        ),
    ],
)
def test_what_sources_and_operators_do_may_not_change(changed: dict[str, Any], line: str) -> None:
    assert line in lines(graph(), graph(**changed))


def test_a_node_that_has_gone_is_shown() -> None:
    less = Graph(
        name="less",
        sources=graph().sources,
        operators={"other": Select(inputs=("rows",), fields=("x",))},
        sinks={"out": FileSink(inputs=("other",), path="out.jsonl")},
    )
    assert [line.partition(" as in")[0] for line in lines(graph(), less)] == [
        'operators.step: expected {"type": "standardize", "inputs": ["rows"], "fields": ["x"]}',
        "operators.other: expected nothing",
        "models.m: expected " + _shown_model(),
    ]


def _shown_model() -> str:
    text = (
        '{"inputs": ["step"], "network": [{"Linear": [1, 8]}, "ReLU", {"Linear": [8, 1]}], '
        '"features": ["x"], "target": "y", "task": "regression", "loss": "mse_loss"'
    )
    return f"{text[:120]}..."


def test_a_class_says_which_of_its_options_may_change() -> None:
    saved = graph(source=Feed())
    assert lines(saved, graph(source=Feed(server="b", poll=7))) == []
    assert len(lines(saved, graph(source=Feed(topic="u")))) == 1


def test_secrets_are_no_part_of_it() -> None:
    source = Feed(password=SecretStr("swordfish"))
    assert lines(graph(source=Feed()), graph(source=source)) == []
    canonical = identify(graph(source=source)).canonical
    assert "password" not in str(canonical)
    assert "swordfish" not in str(canonical)


def double(value: float) -> float:
    return 2 * value


def triple(value: float) -> float:
    return 3 * value


@pytest.mark.parametrize("wrap", [lambda function: function, partial])
def test_functions_count_by_their_name(wrap: Callable[[Any], Any]) -> None:
    def mapping(function: Any) -> Graph:
        return Graph(
            name="map",
            sources=graph().sources,
            operators={"step": Map(inputs=("rows",), function=function)},
            sinks={"out": FileSink(inputs=("step",), path="out.jsonl")},
        )

    assert lines(mapping(wrap(double)), mapping(wrap(double))) == []
    assert lines(mapping(wrap(double)), mapping(wrap(triple))) == [
        f'operators.step.function: expected "{__name__}:double" as in the checkpoint, '
        f'found "{__name__}:triple"' + CURE
    ]


def scaling(factor: Any) -> Callable[[float], float]:
    def scale(value: float) -> float:
        return factor * value  # type: ignore[no-any-return]

    return scale


def class_of(bias: float) -> type:
    class Local:
        offset = bias

        @staticmethod
        def own() -> float:
            return 1.0

        def __call__(self, value: float) -> float:
            return value + self.offset

    return Local


def network_of(width: int) -> type[torch.nn.Module]:
    class Local(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()  # refers to the class itself
            self.layer = torch.nn.Linear(width, width)

    return Local


def falling() -> Callable[[int], int]:
    def fall(value: int) -> int:
        return fall(value - 1) if value else 0

    return fall


def scaled(value: float, factor: float = 1.0) -> float:
    return factor * value


SAME: list[Callable[[], Any]] = [
    lambda: double,
    lambda: lambda value: 2 * value,
    lambda: lambda other_name: 2 * other_name,
    lambda: scaling(2),
    lambda: scaling({"b": [1, {2, 3}]}),
    lambda: scaling(double),
    lambda: class_of(1.0),
    lambda: class_of(1.0)(),
    lambda: network_of(3),
    falling,
    lambda: partial(scaled, factor=2.0),
    lambda: {"a", "b", "c"}.__contains__,
]


@pytest.mark.parametrize("make", SAME)
def test_a_function_made_again_is_the_same(make: Callable[[], Any]) -> None:
    assert name_of(make()) == name_of(make())


def test_names_of_variables_do_not_count() -> None:
    assert name_of(SAME[1]()).split()[1] == name_of(SAME[2]()).split()[1]


DIFFERENT: list[Any] = [
    lambda value: 2 * value,
    lambda value: 3 * value,
    lambda value: value["a"],
    lambda value: value.a,
    lambda value, by=1: 2 * value,
    lambda value, by=2: 2 * value,
    lambda value: [2 * item for item in value],
    lambda value: [3 * item for item in value],
    scaling(2),
    scaling(3),
    scaling((2, 3)),
    scaling(double),
    scaling(triple),
    scaling(scaling(2)),
    scaling(scaling(3)),
    class_of(1.0),
    class_of(2.0),
    network_of(3),
    network_of(4),
    partial(scaled, 2.0),
    partial(scaled, 3.0),
    partial(scaled, factor=3.0),
    scaled,
]


def test_functions_that_do_different_things_are_different() -> None:
    names = [name_of(function) for function in DIFFERENT]
    assert len(set(names)) == len(names)


def test_lambdas_are_the_same_in_every_process(tmp_path: Path) -> None:
    program = (
        "from streamflow.checkpoints.names import name_of\n"
        "print(name_of(lambda value: value in {'a', 'b', 'c', 'd', 'e'}))\n"
    )
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    found = [
        subprocess.run(
            [sys.executable, "program.py"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in (1, 2)
    ]
    assert found[0] == found[1]


def test_another_lambda_is_seen() -> None:
    changed = graph(model={"network": lambda: torch.nn.Linear(1, 1)})
    [line] = lines(graph(model={"network": lambda: torch.nn.Linear(1, 2)}), changed)
    assert "<lambda>" in line


def test_what_is_bound_to_an_optimizer_may_change() -> None:
    optimizers = [partial(torch.optim.SGD, lr=lr) for lr in (0.1, 0.2)]
    saved, current = (graph(model={"optimizer": optimizer}) for optimizer in optimizers)
    assert lines(saved, current) == []


def test_it_comes_back_from_a_manifest_as_the_same() -> None:
    declared = {"network": [{"Hardtanh": {"min_val": float("-inf"), "max_val": 1e300}}]}
    identity = identify(graph(model=declared))
    written = Manifest(identity, NOW, {}, {}, {}, {}, {})
    found = parse(dump(written)).identity
    assert found.hash == identity.hash
    assert difference(found, identity) == []
    assert difference(Identity("other", found.canonical), identity) == []
