"""Does delay cost anything on independent samples at equal learning rates?

    python -m benchmarks.quality.stability

Prints the loss of ``1f1b`` + ``own`` by that of ``sequential`` at the same rate, seed by seed, up
to the greatest rate of the grid at which ``sequential`` does not diverge.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.quality.learning import Scheme, learn, score
from benchmarks.quality.loads import SEQUENTIAL, STAGE_COUNTS
from benchmarks.quality.streams import StreamSpec, build
from benchmarks.quality.tables import table
from benchmarks.quality.tuning import prepare_process, rate_of

NAME, COUNT = "independent", 12_000
EXPONENTS = range(-16, -11)


def main(count: int = COUNT, exponents: Sequence[int] = EXPONENTS) -> None:
    """Learn with every number of stages and print a table, one row per rate."""
    prepare_process()
    stream = build(StreamSpec((NAME,), count))
    rates = [rate_of(exponent) for exponent in exponents]
    sequential_LS = score(stream, learn(stream, SEQUENTIAL, rates))[NAME].loss_LS
    rows = [[f"{rate:.4f}"] for rate in rates]
    for stages in STAGE_COUNTS[1:]:
        loss_LS = score(stream, learn(stream, Scheme("1f1b", "own", stages), rates))[NAME].loss_LS
        for row, ratios in zip(rows, (loss_LS / sequential_LS).tolist(), strict=True):
            row.append(", ".join(f"{ratio:.2f}" for ratio in ratios))
    print(table(["rate", *(f"{stages} stages" for stages in STAGE_COUNTS[1:])], rows))


if __name__ == "__main__":
    main()
