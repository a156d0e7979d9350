"""The commands of ``streamflow``, and what they say of themselves.

    app: name, help and place of each command -> its module, imported when it is called
                                              -> read_or_explain -> what the command does

So help and short commands wait for nothing that only others need.
"""

from __future__ import annotations

import sys
from importlib.metadata import version

from cyclopts import App, CycloptsError

from streamflow.cli import exit_codes
from streamflow.distribution import NAME
from streamflow.nodes.plugins import COMMANDS, registered

app = App(
    name="streamflow",
    help="Learn from live streams.",
    version=lambda: version(NAME),
    version_flags=["--version"],
    result_action="return_value",
)
app.register_install_completion_command(add_to_startup=False)

app.command(
    "streamflow.cli.running:run",
    help="""Run a graph until its streams end, or a signal drains it; a second signal aborts.

Goes on from the newest checkpoint, where the graph keeps them. Shows one live line, or logs
one every 10 s where there is no terminal, and a report at the end.

Example: streamflow run graph.yaml --set models.direction.stages=2
""",
)
app.command(
    "streamflow.cli.checking:validate",
    help="""Check a graph and print everything that is wrong with it, opening nothing.

Of a graph that is valid, prints how often records are learned and delivered on each way.

Example: streamflow validate graph.yaml --deep
""",
)
app.command(
    "streamflow.cli.showing:graph",
    help="""Draw a graph: its nodes in the order of the stream, and what they receive from.

Example: streamflow graph graph.yaml --format svg > graph.svg
""",
)
app.command(
    "streamflow.cli.projects:new",
    help="""Write a project: a commented graph, data to try it on, a test, the schema for editors.

On a terminal asks for what is not given.

Example: streamflow new load --data machine.csv --target load
""",
)
app.command(
    "streamflow.cli.tapping:tap",
    help="""Print the records that a node sends, as lines of JSON, while nothing else is touched.

Runs only what the node receives from: no sink is opened, no position committed, no checkpoint
read or taken; models begin with fresh weights. Ends with the stream, or by a signal.

Example: streamflow tap graph.yaml direction --limit 10
""",
)
app.command(
    "streamflow.cli.catalog:list_types",
    name="list",
    help="""List every installed type of node and format, with what the ones that cannot run lack.

Example: streamflow list
""",
)
app.command(
    "streamflow.cli.catalog:describe",
    help="""Describe a type of node or format, or a part of graphs, with all its options.

Example: streamflow describe standardize
""",
)
app.command(
    "streamflow.cli.catalog:schema",
    help="""Print the JSON Schema of graph files, for editors that complete and check YAML.

Example: streamflow schema > streamflow.schema.json
""",
)
app.command(
    "streamflow.cli.doctor:doctor",
    help="""Tell what this machine has, what is missing, and what to do about it.

Tries whether networks can be compiled here. With a graph also whether the brokers it names
answer, its networks can be built, and each model would learn by compiled code, or why not.
Opens no source and no sink.

Example: streamflow doctor graph.yaml
""",
)
config = App(name="config", help="What a graph file comes to.")
config.command(
    "streamflow.cli.showing:show",
    help="""Print a graph as it will run: variables and overrides put in, secrets left out.

Example: streamflow config show graph.yaml --set models.direction.stages=2
""",
)
app.command(config)
app.command(
    "streamflow.cli.planning:plan",
    help="""Measure a graph's models on this machine; print how their stages are cut and how fast.

Opens no source and learns nothing. With stages=auto it finds how many stages the rate needs.

Example: streamflow plan graph.yaml --set models.direction.stages=auto
""",
)
app.command(
    "streamflow.cli.checkpoints:app",
    name="checkpoint",
    help="Look at checkpoints, check and compare them.",
)
app.command(
    "streamflow.cli.benching:bench",
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
