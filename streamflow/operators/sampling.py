"""A part of the records."""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import AbstractContextManager, nullcontext
from hashlib import blake2b
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from streamflow.contracts import Context
from streamflow.operators.keys import KeyedOperator, PassingStep

BITS = 64


class Sample(KeyedOperator):
    """Keeps every n-th record of each key, or a random part of all records or keys.

    With ``fraction`` each record is kept at random, or with ``by`` all records of a key are, or
    none. The choice depends on ``seed`` and the record's number in the stream, or its key, alone:
    it is the same in every run, and what a smaller fraction keeps a larger one keeps, too. The
    report counts the records left out.
    """

    keeps_scalars: ClassVar[bool] = True

    type: Literal["sample"] = "sample"
    every: int | None = Field(
        None, ge=1, description="Keep the first of so many records of a key, and so on."
    )
    fraction: float | None = Field(
        None, gt=0, le=1, description="Part of the records to keep, or of the keys where by is set."
    )
    seed: int | None = Field(
        None, description="Number that the random choice depends on; without it 0."
    )

    @model_validator(mode="after")
    def _check_one(self) -> Sample:
        if (self.every is None) == (self.fraction is None):
            found = "neither" if self.every is None else "both"
            message = f"expected every or fraction, found {found}; write one of them"
            raise ValueError(message)
        if self.every is not None and self.seed is not None:
            message = "expected fraction beside seed, found every; nothing is random with it"
            raise ValueError(message)
        if self.fraction is not None and self.ttl is not None:
            message = "expected every beside ttl, found fraction; no key is remembered with it"
            raise ValueError(message)
        return self

    def open(self, context: Context) -> AbstractContextManager[EveryStep | FractionStep]:
        """Give a processor that has seen nothing yet."""
        return nullcontext(EveryStep(self) if self.fraction is None else FractionStep(self))


class EveryStep(PassingStep[int]):
    """An open `Sample` of every n-th record, which remembers how many of a key there were."""

    def __init__(self, operator: Sample) -> None:
        super().__init__(operator)
        assert operator.every is not None
        self._every = operator.every

    def _passes(self, key: Hashable, time_ms: int) -> bool:
        count = self._states.get(key) or 0
        self._states.put(key, (count + 1) % self._every)
        return count == 0


class FractionStep(PassingStep[int]):
    """An open `Sample` of a random part, which remembers how many records there were."""

    def __init__(self, operator: Sample) -> None:
        super().__init__(operator)
        assert operator.fraction is not None
        self._by_key = operator.by is not None
        self._seed = operator.seed or 0
        self._threshold = int(operator.fraction * 2**BITS)

    def _passes(self, key: Hashable, time_ms: int) -> bool:
        if not self._by_key:
            key = self._states.get(None) or 0
            self._states.put(None, key + 1)
        digest = blake2b(repr((self._seed, key)).encode(), digest_size=BITS // 8).digest()
        return int.from_bytes(digest) < self._threshold
