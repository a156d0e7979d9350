"""What is wrong with how nodes are connected.

`structure_problems` only needs names, inputs and merges, so that the YAML reader can apply it to a
file in which some nodes are still invalid for other reasons.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping
from difflib import get_close_matches
from graphlib import CycleError, TopologicalSorter
from itertools import combinations
from typing import TypeAlias

from streamflow.errors import Problem, suggestion
from streamflow.nodes.declarations import node_of

SECTIONS = ("sources", "operators", "models", "sinks")

NAME = re.compile(r"\w[\w-]*")
"""What nodes may be called: a name stands in dotted paths and in metrics."""

Inputs: TypeAlias = Mapping[str, Mapping[str, tuple[str, ...]]]
"""The inputs of every node by section and name."""

Outputs: TypeAlias = Mapping[str, tuple[str, ...] | None]
"""The outputs of nodes by name."""


def structure_problems(
    table: Inputs,
    dead_letter: tuple[str, ...] = (),
    in_turn: Container[str] = (),
    outputs: Outputs | None = None,
) -> list[Problem]:
    """Return what is wrong with how nodes are connected.

    Args:
        table: The inputs of every node by section and name, as the graph returns them.
        dead_letter: The inputs of the dead-letter sink.
        in_turn: Names of the nodes whose inputs are merged by ``round_robin``.
        outputs: Names of the outputs of nodes that have several; ``None`` where they are unknown.
    """
    outputs = {name: names for name, names in (outputs or {}).items() if names != ()}
    return [
        *_empty_sections(table),
        *_unusable_names(table),
        *_wrong_inputs(table, outputs),
        *_dead_letter_inputs(dead_letter),
        *_cycles(table),
        *_shared_sources(table, in_turn),
        *_unread_nodes(table, outputs),
    ]


def _empty_sections(table: Inputs) -> Iterator[Problem]:
    for section in ("sources", "sinks"):
        if not table[section]:
            message = f"expected at least one node, found none; declare one under {section}"
            yield Problem((section,), message)


def _unusable_names(table: Inputs) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    for section, nodes in table.items():
        for name in nodes:
            if not NAME.fullmatch(name):
                message = f"expected a name of letters, digits, _ and -, found {name!r}; rename it"
                yield Problem((section, name), message, is_about_key=True)
            if name in seen:
                message = (
                    f"expected a name of its own, found {name} also under {seen[name]}; rename one"
                )
                yield Problem((section, name), message, is_about_key=True)
            seen.setdefault(name, section)


def _wrong_inputs(table: Inputs, outputs: Outputs) -> Iterator[Problem]:
    senders = [name for section in SECTIONS[:3] for name in table[section]]
    for section, nodes in table.items():
        for name, inputs in nodes.items():
            if section == "sinks" and not inputs:
                message = (
                    "expected inputs, found none; add inputs (names of the nodes to receive from)"
                )
                yield Problem((section, name, "inputs"), message)
            for index, sender in enumerate(inputs):
                where = (section, name, "inputs", index)
                if sender in inputs[:index]:
                    yield Problem(
                        where, f"expected each input once, found {sender} again; remove it"
                    )
                elif node_of(sender) in outputs:
                    if message := _wrong_output(sender, outputs[node_of(sender)]):
                        yield Problem(where, message)
                elif message := _wrong_input(sender, name, senders, table["sinks"]):
                    yield Problem(where, message)


def _wrong_output(sender: str, names: tuple[str, ...] | None) -> str:
    """Return what is wrong with ``sender`` as an output of a node that has several, if anything."""
    known = [f"{node_of(sender)}.{name}" for name in names or ()]
    if names is None or sender in known:
        return ""
    cure = suggestion(sender, known)
    return f"expected one of the outputs of {node_of(sender)}, found {sender}; {cure}"


def _wrong_input(sender: str, name: str, senders: list[str], sinks: Container[str]) -> str:
    """Return what is wrong with ``sender`` as an input of the node ``name``, if anything is."""
    if sender in senders:
        return ""
    if node_of(sender) in senders:
        node = node_of(sender)
        return f"expected {node}, which has one output without a name, found {sender}; write {node}"
    if sender in sinks:
        return f"expected a node that sends, found the sink {sender}; name what it receives from"
    cure = suggestion(sender, [other for other in senders if other != name])
    return f"expected the name of a source, operator or model, found {sender}; {cure}"


def _dead_letter_inputs(inputs: tuple[str, ...]) -> Iterator[Problem]:
    if inputs:
        message = "expected no inputs, found some; remove them: it receives from every node"
        yield Problem(("dead_letter", "inputs"), message)


def _cycles(table: Inputs) -> Iterator[Problem]:
    edges = _senders(table)
    while names := _cycle(edges):
        sender, name = names[-2:]
        section = next(section for section, nodes in table.items() if name in nodes)
        message = (
            f"expected no cycle, found {' -> '.join(names)}; remove {sender} from these inputs"
        )
        yield Problem((section, name, "inputs"), message)
        edges[name] = tuple(other for other in edges[name] if other != sender)


def _senders(table: Inputs) -> dict[str, tuple[str, ...]]:
    """Return the names of the nodes that each node receives from."""
    return {
        name: tuple(map(node_of, inputs))
        for nodes in table.values()
        for name, inputs in nodes.items()
    }


def _cycle(edges: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Return the names along one cycle, each an input of the next; none if there is no cycle."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        names: list[str] = error.args[1]
        return names
    return []


def _shared_sources(table: Inputs, in_turn: Container[str]) -> Iterator[Problem]:
    """Yield merges that could wait for ever: for an input that lost records that the other has.

    The other one's edge is full then, so that the source, which feeds both, cannot go on either.
    """
    edges = _senders(table)
    for section, nodes in table.items():
        for name, inputs in nodes.items():
            if name not in in_turn:
                continue
            for one, other in combinations(dict.fromkeys(inputs), 2):
                ancestries = (_ancestry(node_of(sender), edges) for sender in (one, other))
                shared = set.intersection(*ancestries) & table["sources"].keys()
                if shared:
                    message = (
                        f"expected inputs of different sources to take in turn, found {one} and "
                        f"{other}, both of {min(shared)}; use merge: arrival"
                    )
                    yield Problem((section, name, "merge"), message)


def _ancestry(name: str, edges: Mapping[str, tuple[str, ...]]) -> set[str]:
    """Return a node and all that it receives from, directly or not."""
    found: set[str] = set()
    todo = [name]
    while todo:
        if (sender := todo.pop()) not in found:
            found.add(sender)
            todo += edges.get(sender, ())
    return found


def _unread_nodes(table: Inputs, outputs: Outputs) -> Iterator[Problem]:
    read = {name for nodes in table.values() for inputs in nodes.values() for name in inputs}
    if any(not inputs for section in SECTIONS[1:] for inputs in table[section].values()):
        return  # a problem already, and likely what these nodes are for
    senders = {
        sender: (section, name)
        for section in SECTIONS[:3]
        for name in table[section]
        for sender in _outputs_of(name, outputs)
    }
    misspelt = read - senders.keys() - table["sinks"].keys()
    for sender, location in senders.items():
        if sender not in read and not get_close_matches(sender, misspelt, n=1):
            message = (
                f"expected a node that receives from {sender}, found none; "
                f"add it to the inputs of another node, or remove it"
            )
            yield Problem(location, message, is_about_key=True)


def _outputs_of(name: str, outputs: Outputs) -> list[str]:
    """Return what names the outputs of a node as inputs of others, as far as that is known."""
    names = outputs.get(name, ("",))
    return [f"{name}.{output}" if output else name for output in names or ()]
