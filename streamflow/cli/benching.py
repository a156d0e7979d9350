"""``streamflow bench``: how fast models learn on this machine, in every way they can be run."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import torch
from cyclopts import Parameter, validators
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from streamflow.bench import Progress, Result, SelectionError, Settings, WayError, bench_model
from streamflow.bench.tables import result_tables
from streamflow.cli import exit_codes
from streamflow.cli.checking import read_or_explain
from streamflow.cli.parameters import Json, Overrides, Shape
from streamflow.cli.planning import ArgumentError, chosen_models, parsed_shape
from streamflow.dataflow import Graph
from streamflow.errors import StreamflowError, suggestion
from streamflow.models.declaration import LOSS_TASKS
from streamflow.models.model import Model
from streamflow.models.shapes import ShapeError
from streamflow.observe.chart import bar_chart, require_pictures

PIPED_WIDTH = 100
"""Columns where no terminal tells how many there are."""

PICTURES = (".png", ".svg", ".pdf")

OPTIMIZERS = [
    name
    for name, made in vars(torch.optim).items()
    if isinstance(made, type) and made is not torch.optim.Optimizer
]

Target = Annotated[
    str, Parameter(help="A graph, a YAML file; or package.module:callable, which makes a network.")
]
Ways = Annotated[
    tuple[str, ...], Parameter(negative=(), help="Measure the loops and these: 'threads-*'.")
]
Rounds = Annotated[
    int, Parameter(validator=validators.Number(gte=1), help="How often each way is measured.")
]
Seconds = Annotated[
    float, Parameter(validator=validators.Number(gt=0), help="How long it is measured each time.")
]


class Stopped(KeyboardInterrupt):
    """A signal has come, and nothing goes on."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


def bench(
    target: Target,
    *,
    model: Annotated[str | None, Parameter(help="Measure this model of the graph only.")] = None,
    overrides: Overrides = (),
    loss: Annotated[
        str | None, Parameter(help="What a network that is no graph's learns; mse_loss.")
    ] = None,
    optimizer: Annotated[str | None, Parameter(help="And by which optimizer; SGD.")] = None,
    shape: Shape = None,
    ways: Ways = (),
    rounds: Rounds = 5,
    seconds: Seconds = 1.0,
    plot: Annotated[
        Path | None, Parameter(help="Draw the ratios into this picture: PNG, SVG or PDF.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Measure how fast models learn here, in every way they can be run.

    Returns:
        The exit code.
    """
    graph = None
    if Path(target).exists() or ":" not in target:
        graph = read_or_explain(Path(target), overrides, deep=True, as_json=as_json)
        if graph is None:
            return exit_codes.BAD_CONFIGURATION
    results: dict[str, Result] = {}
    where, failure, code = "", None, 0
    try:
        settings = Settings(rounds=rounds, seconds=seconds, ways=ways, shape=parsed_shape(shape))
        if plot is not None:
            _check_picture(plot)
        if graph is None:
            _refuse("a network", {"--model": model, "--set": overrides})
            models = {target: _network(target, loss, optimizer)}
        else:
            _refuse("a graph", {"--loss": loss, "--optimizer": optimizer})
            models = _models(graph, model, {"--shape": shape, "--plot": plot})
        with _stopped_by_signals():
            for name, declared in models.items():
                where = f"{name}: "
                folder = Path() if graph is None else graph.folder
                with _progress(name) as progress:
                    results[name] = bench_model(declared, folder, settings, progress)
                _check_measured(results[name])
                if plot is not None:
                    _draw(plot, name, results[name])
    except (StreamflowError, OSError, Stopped) as error:
        failure, code = f"{where}{error}", _exit_code(error)
        sys.stderr.write(f"failed: {failure}\n")
    _print(target, results, failure, as_json=as_json)
    return code


def _refuse(subject: str, options: Mapping[str, object]) -> None:
    """Raise if an option was given that does not go with what is measured."""
    for name, given in options.items():
        if given:
            message = f"{name}: expected none with {subject}, got one; leave it out"
            raise ArgumentError(message)


def _network(name: str, loss: str | None, optimizer: str | None) -> Model:
    """Return a model of a network that is no graph's."""
    loss, optimizer = loss or "mse_loss", optimizer or "SGD"
    _check_name("--loss", loss, LOSS_TASKS)
    _check_name("--optimizer", optimizer, OPTIMIZERS)
    return Model(
        inputs=("samples",),
        network=name,
        features="input",
        target="target",
        loss=loss,
        optimizer=optimizer,
    )


def _check_name(option: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        message = f"{option}: expected one of torch, got {name}; {suggestion(name, [*known])}"
        raise ArgumentError(message)


def _models(graph: Graph, model: str | None, alone: Mapping[str, object]) -> dict[str, Model]:
    names = chosen_models(graph, model, [name for name, given in alone.items() if given])
    return {name: graph.models[name] for name in names}


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Raise `Stopped` at the first SIGINT or SIGTERM; closing is short, and not stopped again."""
    numbers = (signal.SIGINT, signal.SIGTERM)

    def stop(number: int, _frame: FrameType | None) -> NoReturn:
        for other in numbers:
            signal.signal(other, signal.SIG_IGN)
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _progress(name: str) -> Iterator[Progress]:
    """Show a bar on stderr, if that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None)
        yield lambda what, done, total: bar.update(
            task, description=f"{name}: {what}", completed=done, total=total
        )


def _check_measured(result: Result) -> None:
    if not any(row.is_measured for row in result.rows):
        message = f"expected a way that works, got none; {result.rows[0].failure}"
        raise WayError(message)


def _check_picture(plot: Path) -> None:
    """Raise unless such a picture can be drawn."""
    require_pictures()
    if plot.suffix not in PICTURES:
        message = f"--plot: expected a file {' or '.join(PICTURES)}, got {plot}; rename it"
        raise ArgumentError(message)


def _draw(plot: Path, name: str, result: Result) -> None:
    best = result.best_loop
    if best is not None:
        ratios = {row.way.name: result.ratio(row) or 0.0 for row in result.rows if row.is_measured}
        label = f"samples per second, as a ratio to {best.way.name}"
        bar_chart(plot, ratios, title=name, label=label)


def _exit_code(error: BaseException) -> int:
    if isinstance(error, Stopped):
        return exit_codes.SIGNAL + error.number
    usage = ArgumentError | SelectionError | ShapeError
    return exit_codes.USAGE if isinstance(error, usage) else exit_codes.FAILED


def _print(
    target: str, results: Mapping[str, Result], failure: str | None, *, as_json: bool
) -> None:
    if as_json:
        models = {model: result.to_dict() for model, result in results.items()}
        report = {"target": target, "models": models, "failure": failure}
        sys.stdout.write(json.dumps(report) + "\n")
        return
    console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)
    for model, result in results.items():
        console.print(result_tables(model, result))
