"""Operators that call a function of the user's for each record, or evaluate an expression.

The function gets the record's value and nothing else. A mapping is handed over as a dictionary of
the call's own, so a function may change it; what is nested in it may be shared with other nodes
and must be left as it is. Functions run in a worker thread, in the order of the stream: one that
is slow holds up its own branch of the graph and never the event loop.

A function that remembers something from record to record is an object with `__call__` and, so that
checkpoints know what it remembers, the methods ``state()`` and ``restore(state)`` with the contract
of `streamflow.contracts.Processor`:

    class Change:
        def __init__(self):
            self.last = 0.0

        def __call__(self, value):
            change, self.last = value["price"] - self.last, value["price"]
            return {**value, "change": change}

        def state(self):
            return {"last": self.last}

        def restore(self, state):
            self.last = state["last"]

    change = Change()  # function: module:change
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from streamflow.contracts import Context, Processed
from streamflow.errors import GraphError, Problem
from streamflow.nodes.callables import CallableError, Named, resolve
from streamflow.nodes.declarations import Operator
from streamflow.operators.evaluation import Evaluation, each, told
from streamflow.operators.expressions import ExpressionField
from streamflow.operators.step import Step, with_new_values
from streamflow.records import Batch, split_rejected

FUNCTION = (
    "A function of a record's value, as package.module:callable. An object that has the methods "
    "state and restore is kept in checkpoints."
)


class FunctionOperator(Operator):
    """Declares an operator whose ``function`` is called with each record's value."""

    blocking: ClassVar[bool] = True

    function: Named = Field(description=FUNCTION)

    def deep_problems(self, folder: Path) -> Iterator[Problem]:
        """Yield that the function does not import."""
        yield from _import_problems(self.function, folder)


class Map(FunctionOperator):
    """Replaces each record's value by what ``function`` returns for it.

    A record for which it raises is rejected; key, timestamp, headers and position stay.
    """

    type: Literal["map"] = "map"

    def open(self, context: Context) -> AbstractContextManager[MapStep]:
        """Import the function.

        Raises:
            CallableError: It does not import.
        """
        return nullcontext(MapStep(resolve(self.function, context.folder)))


class Filter(Operator):
    """Keeps the records for which an expression, or a function of their value, is true.

    A record for which it raises is rejected.
    """

    blocking: ClassVar[bool] = True
    keeps_scalars: ClassVar[bool] = True

    type: Literal["filter"] = "filter"
    where: ExpressionField | None = Field(
        None, description="An expression over the fields of the record: price > 100."
    )
    function: Named | None = Field(None, description=FUNCTION)

    @model_validator(mode="after")
    def _check_condition(self) -> Filter:
        if (self.where is None) == (self.function is None):
            found = "neither" if self.where is None else "both"
            message = f"expected where or function, found {found}; write one of them"
            raise ValueError(message)
        return self

    def deep_problems(self, folder: Path) -> Iterator[Problem]:
        """Yield that the function does not import."""
        if self.function is not None:
            yield from _import_problems(self.function, folder)

    def open(self, context: Context) -> AbstractContextManager[FilterStep]:
        """Import the function, if there is one.

        Raises:
            CallableError: It does not import.
        """
        if self.where is not None:
            return nullcontext(FilterStep(Evaluation(self.where), told))
        assert self.function is not None
        return nullcontext(FilterStep(resolve(self.function, context.folder), _own_values))


class FlatMap(FunctionOperator):
    """Replaces each record by the records whose values ``function`` returns for it: none or many.

    It returns a list, or yields them. They have the key, timestamp, headers and position of the
    record that they come from. A record is rejected as a whole if the function raises, even after
    it has yielded some, if it returns anything else (text, bytes and mappings are single values),
    or if it gives more than ``max_records``.
    """

    keeps_order: ClassVar[bool] = False

    type: Literal["flat_map"] = "flat_map"
    max_records: int = Field(10_000, ge=1, description="Records that one may become.")

    def open(self, context: Context) -> AbstractContextManager[FlatMapStep]:
        """Import the function.

        Raises:
            CallableError: It does not import.
        """
        function = resolve(self.function, context.folder)
        return nullcontext(FlatMapStep(function, self.max_records))


class FunctionStep(Step):
    """An open operator that calls a function."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def state(self) -> dict[str, Any]:
        """Return what the function remembers."""
        remembering = _remembering(self._function)
        return {} if remembering is None else {"function": remembering.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Give the function what it remembered.

        Raises:
            GraphError: It remembers nothing any more.
        """
        if "function" not in state:
            return
        if (remembering := _remembering(self._function)) is None:
            message = (
                f"expected an object with the methods state and restore, as it was when this "
                f"state was taken, found {self._function!r}; begin anew or give it both"
            )
            raise GraphError([Problem(("function",), message)])
        remembering.restore(state["function"])


class MapStep(FunctionStep):
    """An open `Map`."""

    def process(self, batch: Batch) -> Processed:
        """Return the records with their new values."""
        results, causes = each(self._function, _own_values(batch))
        good, rejected = split_rejected(batch, causes)
        if not results:
            return Processed(rejected=rejected)
        return Processed(with_new_values(good, list(results.values())), rejected)


class FlatMapStep(FunctionStep):
    """An open `FlatMap`."""

    def __init__(self, function: Callable[[Any], Any], max_records: int) -> None:
        super().__init__(function)
        self._max_records = max_records

    def process(self, batch: Batch) -> Processed:
        """Return what the records become, in order."""
        results, causes = each(self._several, _own_values(batch))
        _, rejected = split_rejected(batch, causes)
        places = [index for index, values in results.items() for _ in values]
        if not places:
            return Processed(rejected=rejected)
        values = [value for values in results.values() for value in values]
        return Processed(with_new_values(batch.select(places), values), rejected)

    def _several(self, value: Any) -> list[Any]:
        """Return the values that one becomes."""
        found = self._function(value)
        if isinstance(found, str | bytes | Mapping) or not isinstance(found, Iterable):
            message = f"expected a list of values, found a {type(found).__name__}"
            raise TypeError(message)
        values = list(islice(found, self._max_records + 1))
        if len(values) > self._max_records:
            message = f"expected at most {self._max_records:,} records for one, found more"
            raise ValueError(message)
        return values


class FilterStep(FunctionStep):
    """An open `Filter`; ``read`` gives what the function is called with for each record."""

    def __init__(
        self, function: Callable[[Any], Any], read: Callable[[Batch], Iterable[Any]]
    ) -> None:
        super().__init__(function)
        self._read = read

    def process(self, batch: Batch) -> Processed:
        """Return the records that pass."""
        function = self._function
        passes, causes = each(lambda item: bool(function(item)), self._read(batch))
        kept = [index for index, passing in passes.items() if passing]
        _, rejected = split_rejected(batch, causes)
        return Processed(batch.select(kept) if kept else None, rejected)


def _import_problems(function: Callable[..., Any] | str, folder: Path) -> Iterator[Problem]:
    try:
        resolve(function, folder)
    except CallableError as error:
        yield Problem(("function",), str(error))


def _remembering(function: Any) -> Any:
    """Return the function if it has both methods, ``state`` and ``restore``, of its own.

    A class that is called for each record has them for its instances, and remembers nothing itself.
    """
    if isinstance(function, type):
        return None
    methods = (getattr(function, name, None) for name in ("state", "restore"))
    return function if all(map(callable, methods)) else None


def _own_values(batch: Batch) -> list[Any]:
    """Return the values, so that changing a dictionary changes no other node's."""
    if isinstance(batch.values, dict):
        return batch.rows()  # these are new
    return [dict(value) if type(value) is dict else value for value in batch.values]
