"""Writes made-up readings of an electricity market, one each half hour: does the price go up?

Run it, then the graph:

    python make_readings.py elec.csv
    streamflow run graph.yaml
"""

from __future__ import annotations

import csv
import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path

FIELDS = ("period", "nswprice", "nswdemand", "vicprice", "vicdemand", "transfer", "class")


def readings(count: int) -> Iterator[tuple[float, ...]]:
    """Yield readings whose price follows the demand; the class is 1 where it went up."""
    draw = random.Random(0)
    price = 0.05
    for number in range(count):
        period = number % 48 / 47
        demand = 0.5 + 0.3 * math.sin(2 * math.pi * period) + draw.gauss(0, 0.03)
        other_demand = 0.4 + 0.2 * math.sin(2 * math.pi * period + 0.5) + draw.gauss(0, 0.03)
        last, price = price, 0.8 * price + 0.03 * demand + draw.gauss(0, 0.002)
        row = (period, price, demand, 0.9 * price, other_demand, 0.5 + demand - other_demand)
        yield *(round(value, 6) for value in row), int(price > last)


def main(path: Path, count: int = 5000) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(FIELDS)
        writer.writerows(readings(count))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
