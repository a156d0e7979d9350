"""The commands of ``streamflow``; each imports what it needs when it is called."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, CycloptsError, Parameter

from streamflow.cli import exit_codes
from streamflow.cli.checkpoints import checkpoint
from streamflow.nodes.plugins import COMMANDS, registered

GraphFile = Annotated[Path, Parameter(help="The graph, a YAML file.")]
Overrides = Annotated[
    tuple[str, ...],
    Parameter(
        name="--set",
        negative=(),
        help="Replace a value: models.m.optimizer.SGD.lr=0.1. May be given several times.",
    ),
]
Json = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON on stdout.")]

app = App(
    name="streamflow",
    help="Learn from live streams.",
    version_flags=["--version"],
    result_action="return_value",
)
app.register_install_completion_command(add_to_startup=False)


@app.command
def run(
    file: GraphFile,
    *,
    overrides: Overrides = (),
    reset: Annotated[
        bool, Parameter(negative=(), help="Begin anew; earlier checkpoints are put aside.")
    ] = False,
    checkpoint: Annotated[
        str | None,
        Parameter(name="--from", help="Go on from this checkpoint; newer ones are put aside."),
    ] = None,
    instance: Annotated[
        str,
        Parameter(
            env_var="STREAMFLOW_INSTANCE",
            help="Name of this run among several of the graph: {instance} in the checkpoint path.",
        ),
    ] = "0",
    as_json: Json = False,
) -> int:
    """Run a graph until its streams end, or a signal drains it; a second signal aborts.

    Goes on from the newest checkpoint, where the graph keeps them. Shows one live line, or logs
    one every 10 s where there is no terminal, and a report at the end.

    Example: streamflow run graph.yaml --set models.direction.stages=2
    """
    from streamflow.cli.checking import read_or_explain
    from streamflow.cli.running import run_graph
    from streamflow.graph.graph import Start

    if reset and checkpoint:
        sys.stderr.write("expected --reset or --from, found both; leave one out\n")
        return exit_codes.USAGE
    graph = read_or_explain(file, overrides, deep=True, as_json=as_json)
    if graph is None:
        return exit_codes.BAD_CONFIGURATION
    start = Start(is_reset=reset, checkpoint=checkpoint)
    return run_graph(graph, start=start, instance=instance, as_json=as_json)[0]


@app.command
def validate(
    file: GraphFile,
    *,
    deep: Annotated[
        bool, Parameter(negative=(), help="Also import callables and build the networks.")
    ] = False,
    overrides: Overrides = (),
    as_json: Json = False,
) -> int:
    """Check a graph and print everything that is wrong with it, opening nothing.

    Of a graph that is valid, prints how often records are learned and delivered on each way.

    Example: streamflow validate graph.yaml --deep
    """
    from streamflow.cli.checking import read_or_explain

    graph = read_or_explain(file, overrides, deep=deep, as_json=as_json)
    if graph is None:
        return exit_codes.BAD_CONFIGURATION
    promises = graph.promises()
    if as_json:
        delivery = [asdict(promise) for promise in promises]
        data = {"valid": True, "problems": [], "delivery": delivery}
        sys.stdout.write(json.dumps(data) + "\n")
    else:
        nodes = sum(1 for _ in graph.nodes())
        sys.stdout.write(f"{file}: valid, {nodes} nodes\n")
        sys.stdout.writelines(f"{promise}\n" for promise in promises)
    return 0


@app.command
def graph(
    file: GraphFile,
    *,
    overrides: Overrides = (),
    form: Annotated[
        Literal["text", "mermaid", "svg"], Parameter(name="--format", help="How to draw it.")
    ] = "text",
) -> int:
    """Draw a graph: its nodes in the order of the stream, and what they receive from.

    Example: streamflow graph graph.yaml --format svg > graph.svg
    """
    from streamflow.cli.checking import read_or_explain
    from streamflow.observe import drawing

    declared = read_or_explain(file, overrides, deep=False, as_json=False)
    if declared is None:
        return exit_codes.BAD_CONFIGURATION
    draw = {"text": drawing.as_text, "mermaid": drawing.as_mermaid, "svg": drawing.as_svg}
    sys.stdout.write(draw[form](declared))
    return 0


@app.command
def new(
    folder: Annotated[Path, Parameter(help="Folder to write, new or empty.")],
    *,
    name: Annotated[
        str | None, Parameter(help="Name of the graph; else that of the folder.")
    ] = None,
    data: Annotated[
        Path | None, Parameter(help="A csv file of yours with a header; else a sample is made.")
    ] = None,
    target: Annotated[
        str | None, Parameter(help="The column to predict; else the last one.")
    ] = None,
    task: Annotated[
        Literal["regression", "classification"] | None,
        Parameter(help="What the column is; else found from its values."),
    ] = None,
) -> int:
    """Write a project: a commented graph, data to try it on, a test, and the schema for editors.

    On a terminal asks for what is not given.

    Example: streamflow new load --data machine.csv --target load
    """
    from streamflow.cli.projects import ProjectError, ask, new_project

    try:
        if data is None and (answer := ask("csv file with your data, or empty for a sample")):
            data = Path(answer)
        if data is not None and target is None:
            target = ask("column to predict, or empty for the last") or None
        new_project(folder, name=name, data=data, target=target, task=task)
    except ProjectError as error:
        sys.stderr.write(f"{error}\n")
        return exit_codes.USAGE
    sys.stdout.write(
        f"{folder}: wrote graph.yaml, readings.csv, test_graph.py and streamflow.schema.json\n"
        f"next: streamflow run {folder / 'graph.yaml'}\n"
    )
    return 0


@app.command
def tap(
    file: GraphFile,
    node: Annotated[
        str, Parameter(help="Node whose output to print; of a sink, what it receives.")
    ],
    *,
    limit: Annotated[
        int | None, Parameter(name=["--limit", "-n"], help="End after so many records.")
    ] = None,
    meta: Annotated[
        bool, Parameter(negative=(), help="Print key, time and position, too.")
    ] = False,
    overrides: Overrides = (),
) -> int:
    """Print the records that a node sends, as lines of JSON, while nothing else is touched.

    Runs only what the node receives from: no sink is opened, no position committed, no checkpoint
    read or taken; models begin with fresh weights. Ends with the stream, or by a signal.

    Example: streamflow tap graph.yaml direction --limit 10
    """
    from streamflow.cli.checking import read_or_explain
    from streamflow.cli.tapping import tap_graph

    if limit is not None and limit < 1:
        sys.stderr.write(f"--limit: expected a number of at least 1, found {limit}; correct it\n")
        return exit_codes.USAGE
    graph = read_or_explain(file, overrides, deep=False, as_json=False)
    if graph is None:
        return exit_codes.BAD_CONFIGURATION
    return tap_graph(graph, node, limit=limit, meta=meta)


@app.command(name="list")
def list_(*, as_json: Json = False) -> int:
    """List every installed type of node and format, with what the ones that cannot run lack.

    Example: streamflow list
    """
    from streamflow.cli.catalog import list_types

    return list_types(as_json=as_json)


@app.command
def describe(
    type_: Annotated[
        str, Parameter(name="TYPE", help="A name that streamflow list shows; or source.kafka.")
    ],
    /,
    *,
    as_json: Json = False,
) -> int:
    """Describe a type of node or format, or a part of graphs, with all its options.

    Example: streamflow describe standardize
    """
    from streamflow.cli.catalog import describe_type

    return describe_type(type_, as_json=as_json)


@app.command
def schema() -> int:
    """Print the JSON Schema of graph files, for editors that complete and check YAML.

    Example: streamflow schema > streamflow.schema.json
    """
    from streamflow.cli.catalog import print_schema

    return print_schema()


@app.command
def doctor(
    file: Annotated[Path | None, Parameter(help="A graph whose needs to look at, too.")] = None,
    *,
    overrides: Overrides = (),
    as_json: Json = False,
) -> int:
    """Tell what this machine has, what is missing, and what to do about it.

    Tries whether networks can be compiled here. With a graph also whether the brokers it names
    answer, its networks can be built, and each model would learn by compiled code, or why not.
    Opens no source and no sink.

    Example: streamflow doctor graph.yaml
    """
    from streamflow.cli.checking import read_or_explain
    from streamflow.cli.doctor import examine

    declared = None
    if file is not None:
        declared = read_or_explain(file, overrides, deep=False, as_json=as_json)
        if declared is None:
            return exit_codes.BAD_CONFIGURATION
    return examine(declared, as_json=as_json)


config = App(name="config", help="What a graph file comes to.")
app.command(config)


@config.command
def show(file: GraphFile, *, overrides: Overrides = ()) -> int:
    """Print a graph as it will run: variables and overrides put in, secrets left out.

    Example: streamflow config show graph.yaml --set models.direction.stages=2
    """
    from streamflow.cli.checking import read_or_explain
    from streamflow.config.schema import SCHEMA_LINE

    declared = read_or_explain(file, overrides, deep=False, as_json=False)
    if declared is None:
        return exit_codes.BAD_CONFIGURATION
    sys.stdout.write(SCHEMA_LINE + declared.to_yaml())
    return 0


@app.command
def plan(
    file: GraphFile,
    *,
    model: Annotated[str | None, Parameter(help="Plan this model only.")] = None,
    overrides: Overrides = (),
    shape: Annotated[
        str | None,
        Parameter(help="Shape of a record's input where the graph does not tell it: 3,32,32."),
    ] = None,
    svg: Annotated[Path | None, Parameter(help="Draw the plan into this file.")] = None,
    as_json: Json = False,
) -> int:
    """Measure a graph's models on this machine and print how their stages are cut and how fast.

    Opens no source and learns nothing. With stages=auto it finds how many stages the rate needs.

    Example: streamflow plan graph.yaml --set models.direction.stages=auto
    """
    from streamflow.cli.checking import read_or_explain
    from streamflow.cli.planning import ArgumentError, parsed_shape, plan_graph

    try:
        sizes = parsed_shape(shape)
    except ArgumentError as error:
        sys.stderr.write(f"{error}\n")
        return exit_codes.USAGE
    graph = read_or_explain(file, overrides, deep=True, as_json=as_json)
    if graph is None:
        return exit_codes.BAD_CONFIGURATION
    return plan_graph(graph, model=model, shape=sizes, svg=svg, as_json=as_json)


app.command(checkpoint)


app.command(
    "streamflow.cli.benching:bench",
    name="bench",
    help="""Measure how fast models learn on this machine, in every way they can be run.

The plain loop of PyTorch, eager and compiled learning, each executor and number of stages learn
random samples in turn, each in a process of its own: samples per second while samples wait, with
ratios to the faster loop, the seconds of a single sample, and memory. Opens no source and no sink.

Example: streamflow bench graph.yaml
""",
)
app.command("streamflow.cli.dead_letters:app", name="dlq", help="Dead letters: list, show, replay.")


def main() -> None:
    """Run the command line and exit."""
    called = next(iter(sys.argv[1:]), "--help")
    if called.startswith("-") or called not in app:  # do not pay for what is not called
        for name, command in registered(COMMANDS).items():
            app.command(command.load(), name=name)
    try:
        code = app(exit_on_error=False, print_error=True)
    except CycloptsError:
        code = exit_codes.USAGE
    sys.exit(code)
