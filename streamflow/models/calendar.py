"""Times as numbers: sine and cosine of the hour, the weekday and so on.

All is whole numbers until a table gives sine and cosine, so that a time has the same numbers
wherever it stands in a batch.

Shapes: N times, P parts.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from typing import Any, TypeAlias
from zoneinfo import ZoneInfo

import numpy as np

from streamflow.models.feature import Part

Integers: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"

UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000}
DAY = 86_400
EARLIEST, LATEST = -62_135_596_800, 253_402_300_799
"""The years 1 to 9999, in seconds since 1970."""

ORDINAL_1970 = date(1970, 1, 1).toordinal()


def _of_days(seconds_N: Integers) -> np.ndarray[Any, np.dtype[np.datetime64]]:
    return (seconds_N // DAY).astype("M8[D]")


def _since(seconds_N: Integers, period: str) -> Integers:
    """Return whole days since the beginning of the month or year."""
    days = _of_days(seconds_N)
    since: Integers = (days - days.astype(f"M8[{period}]").astype("M8[D]")).astype(np.int64)
    return since


PERIODS: dict[Part, tuple[int, Callable[[Integers], Integers]]] = {
    "minute": (60, lambda seconds_N: seconds_N // 60 % 60),
    "hour": (24, lambda seconds_N: seconds_N // 3600 % 24),
    "weekday": (7, lambda seconds_N: (seconds_N // DAY + 3) % 7),  # 1970 began on a Thursday
    "day": (31, lambda seconds_N: _since(seconds_N, "M")),
    "month": (12, lambda seconds_N: _of_days(seconds_N).astype("M8[M]").astype(np.int64) % 12),
    "yearday": (366, lambda seconds_N: _since(seconds_N, "Y")),
}
"""For each part how many there are, and which one a local time in seconds is in, from zero."""


def _circle(count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    angles = [2 * math.pi * place / count for place in range(count)]
    return np.array([(math.sin(angle), math.cos(angle)) for angle in angles], np.float32)


CIRCLES = {part: _circle(count) for part, (count, _) in PERIODS.items()}


def parts_of(seconds_N: Integers, parts: Sequence[Part]) -> np.ndarray[Any, Any]:
    """Return sine and cosine of each part of local times, (N, 2P)."""
    return np.concatenate([CIRCLES[part][PERIODS[part][1](seconds_N)] for part in parts], axis=1)


class Clock:
    """Reads times, as seconds since 1970 on the clock of a time zone.

    Args:
        timezone: Its name.
        unit: What numbers count since 1970 UTC.
    """

    def __init__(self, timezone: str, unit: str) -> None:
        self._zone = None if timezone == "UTC" else ZoneInfo(timezone)
        self._unit = UNITS[unit]

    def read_numbers(self, numbers_N: np.ndarray[Any, Any]) -> Integers | None:
        """Return many times that are finite numbers, if that needs no look at each."""
        if self._zone is not None:
            return None
        with np.errstate(invalid="ignore"):  # infinity becomes no number
            seconds_N = np.floor_divide(numbers_N, self._unit)
        if not ((seconds_N >= EARLIEST) & (seconds_N <= LATEST)).all():
            return None
        whole_N: Integers = seconds_N.astype(np.int64)
        return whole_N

    def read(self, value: Any) -> int:
        """Return one time.

        Raises:
            ValueError: It is none, or before the year 1 or after 9999.
        """
        try:
            moment = self._moment(value)
        except (ValueError, OverflowError, OSError):
            message = (
                f"expected a time in ISO 8601, or seconds since 1970, found {reprlib.repr(value)}; "
                f"if it counts something else, set unit"
            )
            raise ValueError(message) from None
        days = moment.toordinal() - ORDINAL_1970
        return days * DAY + moment.hour * 3600 + moment.minute * 60 + moment.second

    def _moment(self, value: Any) -> datetime:
        """Return the time as it stands on the clock."""
        if isinstance(value, np.datetime64):
            value = value.astype("M8[us]")
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            return value if value.tzinfo is None else value.astimezone(self._zone or UTC)
        if isinstance(value, date):
            return datetime(value.year, value.month, value.day)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.fromtimestamp(float(value // self._unit), self._zone or UTC)
        raise ValueError
