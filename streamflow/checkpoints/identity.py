"""Which graph a checkpoint is of: what determines learned state and positions, and nothing else.

A run goes on from a checkpoint only if these are the same; all else may change in between.

| part | identity | may change |
|---|---|---|
| graph | names of sources, operators and models | its own name, `shutdown_timeout`, `failure_budget`, `checkpoint` |
| source | every option, since they say which records come and what their positions mean | secrets, what its class calls incidental |
| operator | `inputs`, `merge`, every option of its own | `overflow`, `buffer`, secrets, what its class calls incidental |
| model | `inputs`, `merge`; `network`, `features`, `nan`, `target`, `horizon`, the task, `classes`, `standardize_target`; `loss`; the names of its optimizers; `state`, `keys`; `seed`, `weights` | options of optimizers, `groups`, `scheduler`, `accumulate`, `class_weights`, `clip_norm`, `clip_over`, `allow_nonfinite`; `stages`, `rate`, `schedule`, `backward`, `executor`, `devices`, `compile`; `max_keys`, `learn`, `carry`, `window`; `overflow`, `buffer` |
| sink, dead letters | nothing | everything |

`seed` and `weights` are where learning began: with others a user expects to begin anew, and going on
would silently not do so. An option that has its default is left out, so that a graph stays the same
when a later version has more options. Order counts in lists only.

Functions and classes go by their names, lambdas and what is defined within a function by what they
do, too; see `names`.

The class of a source or operator names options that may change in ``incidental``, a class variable
(a frozenset); those of its parents count, too.
"""  # noqa: E501  # rows of a table

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any

from pydantic_core import PydanticSerializationError

from streamflow.checkpoints.names import name_of, unbound
from streamflow.errors import Problem
from streamflow.graph.graph import GraphDeclaration
from streamflow.graph.structure import SECTIONS
from streamflow.models.model import Model
from streamflow.nodes.declarations import Node
from streamflow.nodes.problems import secret_options
from streamflow.records import MISSING

WIDTH = 120
"""Longer values are shortened in messages."""

ON_EDGES = frozenset({"overflow", "buffer"})

MODEL = (
    *("inputs", "merge", "network", "features", "nan", "target", "horizon"),
    *("classes", "standardize_target", "state", "keys", "seed", "weights"),
)
"""Options of a model that are identity as they stand."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a checkpoint says about its graph.

    Attributes:
        name: Of the graph; may change.
        canonical: What may not, by section, node and option, as plain data.
    """

    name: str
    canonical: Mapping[str, Mapping[str, Mapping[str, Any]]]

    @property
    def hash(self) -> str:
        """The same for the same graph."""
        return hashlib.sha256(_text(self.canonical).encode()).hexdigest()


def identify(graph: GraphDeclaration) -> Identity:
    """Return what identifies a graph."""
    sections: dict[str, dict[str, dict[str, Any]]] = {section: {} for section in SECTIONS[:-1]}
    for section, name, node in graph.nodes():
        if section in sections:
            found = _of_model(node) if isinstance(node, Model) else _of_node(node)
            sections[section][name] = found
    return Identity(graph.name, sections)


def _of_node(node: Node) -> dict[str, Any]:
    declared = type(node)
    incidental = [vars(parent).get("incidental", ()) for parent in declared.__mro__]
    skipped = secret_options(declared).union(ON_EDGES, *incidental) - {"type"}
    options = [name for name in declared.model_fields if name not in skipped]
    return {"type": _plain(node, "type")} | _options(node, options)


def _of_model(model: Model) -> dict[str, Any]:
    options = _options(model, MODEL)
    named = {"task": model.resolved_task, "loss": _loss(model)}
    options |= {name: value for name, value in named.items() if value is not None}
    declared = _plain(model, "optimizer")
    if isinstance(model.optimizer, partial):
        declared = name_of(unbound(model.optimizer))  # what is bound are its options
    several = declared if isinstance(declared, list) else [declared]
    options["optimizer"] = [next(iter(one)) if isinstance(one, Mapping) else one for one in several]
    return options


def _loss(model: Model) -> Any:
    """Return the loss by its full name, also where it is the usual one for the task."""
    if model.loss_name is None:
        return _plain(model, "loss")
    options = next(iter(_plain(model, "loss").values())) if isinstance(model.loss, dict) else {}
    return {model.loss_name: options} if options else model.loss_name


def _options(node: Node, names: Iterable[str]) -> dict[str, Any]:
    """Return the options of a node that differ from their defaults."""
    fields = type(node).model_fields
    return {
        name: _plain(node, name)
        for name in names
        if getattr(node, name)
        != fields[name].get_default(call_default_factory=True, validated_data={})
    }


def _plain(node: Node, name: str) -> Any:
    """Return an option as plain data; of what has no name in YAML, what Python calls it."""
    try:
        return json.loads(_text(node.model_dump(mode="json", include={name}).get(name)))
    except (PydanticSerializationError, TypeError, ValueError):
        return name_of(getattr(node, name))


def difference(saved: Identity, current: Identity) -> list[Problem]:
    """Return what makes a graph another one than a checkpoint's: nothing if it is the same."""
    return [
        Problem(
            location,
            f"expected {_show(expected)} as in the checkpoint, found {_show(found)}; "
            f"undo the change, or give the graph a new checkpoint path",
        )
        for location, expected, found in _changes(saved.canonical, current.canonical, ())
    ]


def _changes(
    saved: Any, current: Any, location: tuple[str | int, ...]
) -> Iterator[tuple[tuple[str | int, ...], Any, Any]]:
    """Yield location, saved and current value of each place where two trees differ."""
    if _text(saved) == _text(current):
        return
    if isinstance(saved, Mapping) and isinstance(current, Mapping):
        # Of two layers with different names, their arguments are not worth comparing.
        if len(location) < 2 or saved.keys() & current.keys():
            for key in {**saved, **current}:
                pair = saved.get(key, MISSING), current.get(key, MISSING)
                yield from _changes(*pair, (*location, key))
            return
    elif isinstance(saved, list) and isinstance(current, list):
        for index, pair in enumerate(zip_longest(saved, current, fillvalue=MISSING)):
            yield from _changes(*pair, (*location, index))
        return
    yield location, saved, current


def _text(value: Any) -> str:
    """Return plain data as text that is the same for the same data."""
    if value is MISSING:
        return ""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _show(value: Any) -> str:
    if value is MISSING:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= WIDTH else f"{text[:WIDTH]}..."
