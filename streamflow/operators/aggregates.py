"""What is computed over many records: ``mean(price)``, ``quantile(price, 0.9)``.

Each takes one number after the other, and can take in what another of its kind has taken, as when
two sessions turn out to be one.
"""

from __future__ import annotations

import ast
import heapq
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Final, TypeAlias

from pydantic import AfterValidator

from streamflow.errors import suggestion
from streamflow.operators.evaluation import Evaluate, Evaluation, Told

MASK = 2**64 - 1


class Aggregate(ABC):
    """Computes something over numbers.

    Attributes:
        kept: Names of the attributes that tell what it has taken in.
    """

    kept: ClassVar[tuple[str, ...]]

    @abstractmethod
    def add(self, number: float) -> None:
        """Take in a number."""

    @abstractmethod
    def absorb(self, other: Any) -> None:
        """Take in what another one of this kind, which is not used any more, has taken in."""

    @abstractmethod
    def result(self) -> float:
        """Return what it computes over one number or more."""

    def save(self) -> list[Any]:
        """Return its state, for `load`."""
        return [copy(getattr(self, name)) for name in self.kept]

    def load(self, state: Sequence[Any]) -> None:
        """Take over what `save` returned."""
        for name, value in zip(self.kept, state, strict=True):
            setattr(self, name, copy(value))


class Folded(Aggregate):
    """What a function of two numbers makes of all of them, from the left; of integers an integer.

    Args:
        fold: The function.
    """

    kept = ("_value",)

    def __init__(self, fold: Callable[[float, float], float]) -> None:
        self._fold = fold
        self._value: float | None = None

    def add(self, number: float) -> None:
        """Take in a number."""
        self._value = number if self._value is None else self._fold(self._value, number)

    def absorb(self, other: Folded) -> None:
        """Take in what another one has taken in."""
        if other._value is not None:
            self.add(other._value)

    def result(self) -> float:
        """Return the value."""
        assert self._value is not None
        return self._value


class Spread(Aggregate):
    """Mean and standard deviation (population), by the recurrences of Welford and of Chan et al.

    Args:
        is_mean: Whether the result is the mean.
    """

    kept = ("_count", "_mean", "_squares")

    def __init__(self, is_mean: bool) -> None:
        self._is_mean = is_mean
        self._count = 0
        self._mean = self._squares = 0.0

    def add(self, number: float) -> None:
        """Take in a number."""
        self._count += 1
        delta = number - self._mean
        self._mean += delta / self._count
        self._squares += delta * (number - self._mean)

    def absorb(self, other: Spread) -> None:
        """Take in what another one has taken in."""
        count = self._count + other._count
        delta = other._mean - self._mean
        self._mean += delta * other._count / count
        self._squares += other._squares + delta * delta * self._count * other._count / count
        self._count = count

    def result(self) -> float:
        """Return the mean, or the standard deviation."""
        return self._mean if self._is_mean else math.sqrt(self._squares / self._count)


class Quantile(Aggregate):
    """A quantile, between two values by linear interpolation.

    It is exact for so many values. Beyond, it is that of a random sample of as many: each value
    gets a priority by its number, and those with the smallest are kept, so that samples of two
    parts make one of the whole.

    Args:
        fraction: Which quantile; 0.5 is the median.
        max_values: How many values are kept.
        seed: Another one for each.
    """

    kept = ("_count", "_kept")

    def __init__(self, fraction: float, max_values: int, seed: int) -> None:
        self._fraction = fraction
        self._max_values = max_values
        self._seed = seed
        self._count = 0
        self._kept: list[tuple[int, float]] = []  # a heap: the largest priority, negative, first

    def add(self, number: float) -> None:
        """Take in a number."""
        self._count += 1
        self._keep((-_scrambled(self._seed, self._count), number))

    def absorb(self, other: Quantile) -> None:
        """Take in what another one has taken in."""
        self._count += other._count
        for entry in other._kept:
            self._keep(entry)

    def result(self) -> float:
        """Return the quantile."""
        numbers = sorted(number for _, number in self._kept)
        place = self._fraction * (len(numbers) - 1)
        below = numbers[math.floor(place)]
        return below + (numbers[math.ceil(place)] - below) * (place % 1)

    def _keep(self, entry: tuple[int, float]) -> None:
        if len(self._kept) < self._max_values:
            heapq.heappush(self._kept, entry)
        else:
            heapq.heappushpop(self._kept, entry)


def _scrambled(seed: int, number: int) -> int:
    """Return a number that looks random, in 64 bits (splitmix64)."""
    mixed = (seed * 0xD1342543DE82EF95 + number * 0x9E3779B97F4A7C15) & MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & MASK
    return mixed ^ (mixed >> 31)


def _plus(left: float, right: float) -> float:
    return left + right


Make: TypeAlias = Callable[[int, int], Aggregate]
"""Makes an aggregate, given how many values a quantile keeps and a seed."""

PLAIN: Final[dict[str, Make]] = {
    "count": lambda most, seed: Folded(_plus),
    "max": lambda most, seed: Folded(max),
    "mean": lambda most, seed: Spread(is_mean=True),
    "min": lambda most, seed: Folded(min),
    "std": lambda most, seed: Spread(is_mean=False),
    "sum": lambda most, seed: Folded(_plus),
}

NAMES: Final = (*PLAIN, "quantile")


@dataclass(frozen=True, slots=True)
class Aggregation:
    """What a text such as ``mean(price)`` means.

    Attributes:
        evaluate: Gives the number of a record.
        make: Makes the aggregate that takes such numbers.
    """

    evaluate: Evaluate
    make: Make

    def number_of(self, record: Told) -> float:
        """Return the number of a record.

        Raises:
            Exception: It has none.
        """
        number: Any = self.evaluate(record)
        if type(number) is not float:
            if not isinstance(number, int | float):
                message = f"expected a number, found a {type(number).__name__}"
                raise TypeError(message)
            # Sums of integers are exact; they must never grow beyond what a float can hold.
            is_exact = isinstance(number, int) and abs(number) < 2**63
            number = int(number) if is_exact else float(number)
        if not math.isfinite(number):
            message = f"expected a finite number, found {number}"
            raise ValueError(message)
        return float(number) if isinstance(number, float) else int(number)


def aggregation(text: str) -> Aggregation:
    """Return what a text means.

    Raises:
        ValueError: It is no aggregate of an expression.
    """
    call = _call(text)
    name, arguments = ast.unparse(call.func), [ast.unparse(one) for one in call.args]
    if name == "count":
        _expect(text, not arguments, "count()")
        return Aggregation(lambda record: 1, PLAIN[name])
    if name != "quantile":
        _expect(text, len(arguments) == 1, f"{name}(price)")
        return Aggregation(Evaluation(arguments[0]), PLAIN[name])
    _expect(text, len(arguments) == 2, "quantile(price, 0.9)")
    fraction = call.args[1].value if isinstance(call.args[1], ast.Constant) else None
    is_fraction = isinstance(fraction, int | float) and 0 <= fraction <= 1
    _expect(text, is_fraction, "quantile(price, 0.9) with a number from 0 to 1")
    assert isinstance(fraction, int | float)
    return Aggregation(Evaluation(arguments[0]), partial(Quantile, float(fraction)))


def _call(text: str) -> ast.Call:
    """Return the syntax tree of an aggregate."""
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        call = None
    is_call = isinstance(call, ast.Call) and not call.keywords
    _expect(text, is_call, "mean(price)")
    assert isinstance(call, ast.Call)
    name = ast.unparse(call.func)
    if name not in NAMES:
        message = f"expected one of {', '.join(NAMES)}, found {name}; {suggestion(name, [*NAMES])}"
        raise ValueError(message)
    return call


def _expect(text: str, is_so: bool, example: str) -> None:
    if not is_so:
        message = f"expected an aggregate such as {example}, found {text!r}"
        raise ValueError(message)


def check(text: str) -> str:
    """Return the text of an aggregate as it is.

    Raises:
        ValueError: It is none.
    """
    aggregation(text)
    return text


AggregateField: TypeAlias = Annotated[str, AfterValidator(check)]
"""A field that holds an aggregate of an expression."""
