"""Records that go different ways."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from streamflow.contracts import Context, Processed
from streamflow.nodes.declarations import Operator
from streamflow.operators.evaluation import Evaluate, Evaluation, Told, each, told
from streamflow.operators.expressions import ExpressionField
from streamflow.operators.step import Step
from streamflow.records import Batch, split_rejected

NAME = re.compile(r"\w[\w-]*")
"""What an output may be called, as a node may."""


class Route(Operator):
    """Sends each record to one of several outputs: the first whose condition holds.

    Nodes that receive from it name the output, too: ``inputs: [level.high]``. A record for which no
    condition holds goes to the output that ``otherwise`` names, or is left out. A record is
    rejected if a condition that is looked at raises.
    """

    blocking: ClassVar[bool] = True
    keeps_scalars: ClassVar[bool] = True

    type: Literal["route"] = "route"
    outputs: dict[str, ExpressionField] = Field(
        description="Conditions by the name of the output, looked at in this order."
    )
    otherwise: str | None = Field(
        None, description="Name of one more output, for records that meet no condition."
    )

    @model_validator(mode="after")
    def _check_names(self) -> Route:
        if not self.outputs:
            message = "expected names and conditions under outputs, found none; write {name: a > 1}"
            raise ValueError(message)
        for name in self.output_names:
            if not NAME.fullmatch(name):
                message = f"expected outputs named by letters, digits, _ and -, found {name!r}"
                raise ValueError(message)
        if self.otherwise in self.outputs:
            message = f"expected another name than that of a condition, found {self.otherwise}"
            raise ValueError(message)
        return self

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return (*self.outputs, *([] if self.otherwise is None else [self.otherwise]))

    def open(self, context: Context) -> AbstractContextManager[RouteStep]:
        """Give the processor."""
        named = {name: Evaluation(text) for name, text in self.outputs.items()}
        return nullcontext(RouteStep(named, self.otherwise))


class RouteStep(Step):
    """An open `Route`."""

    def __init__(self, outputs: Mapping[str, Evaluate], otherwise: str | None) -> None:
        self._outputs = outputs
        self._otherwise = otherwise

    def process(self, batch: Batch) -> Processed:
        """Return the records that go anywhere, and where each of them goes."""
        names, causes = each(self._output_of, told(batch))
        found = {index: name for index, name in names.items() if name is not None}
        _, rejected = split_rejected(batch, causes)
        if not found:
            return Processed(rejected=rejected)
        return Processed(batch.select(list(found)), rejected, list(found.values()))

    def _output_of(self, record: Told) -> str | None:
        for name, condition in self._outputs.items():
            if condition(record):
                return name
        return self._otherwise
