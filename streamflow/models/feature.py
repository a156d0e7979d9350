"""A feature as it stands in a graph: a field, and how its values become numbers; no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, TypeAlias
from zoneinfo import ZoneInfo

from pydantic import Discriminator, Field, Tag, field_validator, model_serializer, model_validator

from streamflow.nodes.declarations import Declaration

Part: TypeAlias = Literal["minute", "hour", "weekday", "day", "month", "yearday"]
"""What a time may be taken apart into."""

Gaps: TypeAlias = Literal["error", "skip", "impute"]
"""What becomes of a record that lacks a feature."""


class Rate(Declaration):
    """Learning at other rates for a while."""

    rate: float = Field(gt=0, description="What the learning rates are multiplied by.")
    records: int = Field(ge=1, description="For how many learned records, from the last drift.")


class Feature(Declaration):
    """A field that becomes numbers: a category, a part of a time, or a number that may be missing.

    A category becomes one input for each of ``categories``, or as many as ``hash`` says, of which
    one is 1 and the others are 0; or, with ``encode: index``, a single input that counts them from
    0, for a network that embeds it. Each of ``parts`` becomes sine and cosine of its place in its
    period, so that midnight lies next to 23:00. A time is text in ISO 8601, a number of seconds
    since 1970 UTC (or of what ``unit`` says), or what Python calls a datetime.
    """

    field: str | None = Field(
        None, description="Field to read; without one, with parts, the record's own time."
    )
    categories: tuple[str | bool | int | float, ...] | None = Field(
        None, description="Values that the field may have, in the order of inputs."
    )
    other: bool = Field(
        False, description="With categories: all other values are one more category, the last."
    )
    hash: int | None = Field(
        None, ge=2, description="Number of categories that values are spread over by a hash."
    )
    encode: Literal["one_hot", "index"] = Field(
        "one_hot", description="A category as one input for each, or as a single one, its index."
    )
    parts: tuple[Part, ...] | None = Field(
        None, description="Parts of a time, each as its sine and cosine."
    )
    timezone: str = Field(
        "UTC", description="With parts: where the clock stands; text without an offset is of there."
    )
    unit: Literal["s", "ms", "us"] = Field("s", description="With parts: what a number counts.")
    nan: Gaps | None = Field(
        None, description="What becomes of a record without it; by default what the model says."
    )

    @field_validator("timezone")
    @classmethod
    def _check_timezone(cls, timezone: str) -> str:
        try:
            is_known = timezone == "UTC" or bool(ZoneInfo(timezone))
        except (KeyError, ValueError, OSError):  # it raises any of them
            is_known = False
        if not is_known:
            message = f"expected a time zone such as Europe/Vienna, found {timezone}; correct it"
            raise ValueError(message)
        return timezone

    @model_validator(mode="after")
    def _check(self) -> Feature:
        for message in self._contradictions():
            raise ValueError(message)
        return self

    def _contradictions(self) -> Iterator[str]:
        """Yield what does not go together, as text for the user."""
        kinds = [name for name in ("categories", "hash", "parts") if getattr(self, name)]
        for name in ("categories", "parts"):
            if getattr(self, name) == ():
                yield f"expected one or more {name}, found none; name them"
        if len(kinds) > 1:
            yield f"expected one of categories, hash and parts, found {' and '.join(kinds)}; choose"
        if self.field is None and not self.parts:
            yield "expected a field to read, found none; name it"
        is_category = bool(self.categories or self.hash)
        for name, needs, is_there in (
            ("other", "categories", self.categories),
            ("encode", "categories or hash", is_category),
            ("timezone", "parts", self.parts),
            ("unit", "parts and a field", self.parts and self.field),
        ):
            if getattr(self, name) != type(self).model_fields[name].default and not is_there:
                yield f"expected {name} with {needs} only, found it without; remove it"
        if len({*(self.categories or ())}) < len(self.categories or ()):
            yield "expected each category once, found one twice; remove it"
        if self.encode == "index" and self.nan == "impute":
            yield IMPUTED_INDEX

    @model_serializer(mode="wrap")
    def _short(self, written: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Leave out what has its default."""
        fields = type(self).model_fields
        return {
            name: value
            for name, value in written(self).items()
            if getattr(self, name) != fields[name].default
        }

    @property
    def width(self) -> int | None:
        """How many inputs it makes; ``None`` for a number, which may be an array of them."""
        if self.parts:
            return 2 * len(self.parts)
        if not (self.categories or self.hash):
            return None
        if self.encode == "index":
            return 1
        return self.num_categories

    @property
    def num_categories(self) -> int:
        """How many categories it tells apart; zero if it is none."""
        return self.hash or len(self.categories or ()) + self.other

    def __str__(self) -> str:
        return self.field or "the record's time"


def _branch(value: object) -> str:
    return "feature" if isinstance(value, Mapping | Feature) else "field"


FeatureField: TypeAlias = Annotated[
    Annotated[str, Tag("field")] | Annotated[Feature, Tag("feature")], Discriminator(_branch)
]
"""A field whose numbers are taken as they are, or how it becomes numbers."""

IMPUTED_INDEX = (
    "expected nan: error or skip for an index, which has no mean, found impute; "
    "choose one of the two for this feature"
)
