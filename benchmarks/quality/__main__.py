"""What does delayed learning cost? On streams of rising autocorrelation, and under load.

    python -m benchmarks.quality [elec.csv] [weather.csv] [--results FILE] [--quick]

Learns with every scheme and number of stages, each at its own best learning rate out of one grid,
and prints Markdown tables: losses relative to a sequential loop, then losses over the rate of
arrivals in virtual time. ``benchmarks/quality/plots.py`` draws what ``--results`` keeps.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from benchmarks.quality import checks, tables
from benchmarks.quality.learning import Scheme, baselines
from benchmarks.quality.loads import SEQUENTIAL, STAGE_COUNTS, contestants, measure
from benchmarks.quality.network import WIDTH
from benchmarks.quality.results import Cell, Results
from benchmarks.quality.streams import GENERATED, StreamSpec, build, recorded
from benchmarks.quality.tuning import (
    GRID,
    MAX_EXTENSIONS,
    Found,
    Trial,
    prepare_process,
    rate_of,
    tune,
)

DELAYED = (("1f1b", "own"), ("1f1b", "stashed"), ("lockstep", "newest"))


@dataclass(frozen=True, slots=True)
class Size:
    """How much is learned.

    Attributes:
        count: Samples of a generated stream without load.
        rows: Samples of a recorded stream, at most.
        load_count: Samples of a stream under load.
        seeds: Independent repetitions.
        loads: Rates of arrivals in units of a sequential loop's.
        grid: Exponents of the learning rates to begin with.
        max_extensions: How often the grid may grow.
        timed: Samples that stage costs are measured on.
    """

    count: int = 12_000
    rows: int = 100_000
    load_count: int = 4_000
    seeds: int = 3
    loads: tuple[float, ...] = (0.5, 0.9, 1.2, 1.8, 2.2, 3.5, 6.0)
    grid: Sequence[int] = GRID
    max_extensions: int = MAX_EXTENSIONS
    timed: int = 2000


QUICK = Size(
    count=300,
    rows=300,
    load_count=200,
    seeds=2,
    loads=(0.5, 2.0, 6.0),
    grid=range(-18, -9, 2),
    max_extensions=0,
    timed=100,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run everything and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality")
    parser.add_argument("paths", nargs="*", help="elec.csv, weather.csv")
    parser.add_argument("--results", type=Path, help="where to keep the results, as JSON")
    parser.add_argument("--quick", action="store_true", help="a minute's worth, without meaning")
    parser.add_argument("--jobs", type=int, default=2, help="processes; 1 for none but this one")
    options = parser.parse_args(arguments)
    prepare_process()
    size = QUICK if options.quick else Size()
    print("## Checks\n", flush=True)
    checks.check(100)
    with ExitStack() as stack:
        pool = None
        if options.jobs > 1:
            pool = stack.enter_context(
                ProcessPoolExecutor(options.jobs, get_context("spawn"), initializer=prepare_process)
            )
        run(options.paths, size, pool, options.results)


def run(paths: Sequence[str], size: Size, pool: Executor | None, kept: Path | None) -> None:
    """Learn everything, and print and keep what is found on the way."""
    results = Results(costs=measure(WIDTH, size.timed))
    print(f"\n## What the stages take\n\n{tables.cost_table(results)}")
    print("## What delay costs\n", flush=True)
    _learn_delayed(results, paths, size, pool)
    print(f"\n{tables.delay_tables(results)}", flush=True)
    _keep(results, kept)
    print("## What a load costs\n", flush=True)
    _learn_loaded(results, size, pool)
    print(f"\n{tables.load_tables(results)}")
    print(f"## Where the plan is worse\n\n{tables.verdicts(results)}")
    _keep(results, kept)


def _keep(results: Results, path: Path | None) -> None:
    if path is not None:
        results.save(path)


def _learn_delayed(
    results: Results, paths: Sequence[str], size: Size, pool: Executor | None
) -> None:
    specs = [StreamSpec(tuple(GENERATED), size.count, size.seeds)]
    specs += [StreamSpec((recorded(path),), size.rows, size.seeds, path) for path in paths]
    for spec in specs:
        results.baselines.update(baselines(build(spec)))
    schemes = [SEQUENTIAL]
    schemes += [Scheme(*scheme, count) for scheme in DELAYED for count in STAGE_COUNTS[1:]]
    trials = [Trial(spec, scheme) for spec in specs for scheme in schemes]
    found = tune(trials, grid=size.grid, pool=pool, max_extensions=size.max_extensions)
    for trial, scored in zip(trials, found, strict=True):
        results.cells += cells(trial, trial.scheme.label, scored)


def _learn_loaded(results: Results, size: Size, pool: Executor | None) -> None:
    spec = StreamSpec(tuple(GENERATED), size.load_count, size.seeds)
    named = {
        (load, contestant): Trial(spec, scheme, load, results.costs)
        for load in size.loads
        for contestant, scheme in contestants(results.costs, load).items()
    }
    # A plan is often one of the others: learn it once.
    trials = {(trial.load, trial.scheme): trial for trial in named.values()}
    found = tune(
        list(trials.values()), grid=size.grid, pool=pool, max_extensions=size.max_extensions
    )
    by_key = dict(zip(trials, found, strict=True))
    for (load, contestant), trial in named.items():
        results.cells += cells(trial, contestant, by_key[load, trial.scheme])


def cells(trial: Trial, contestant: str, scored: Found) -> list[Cell]:
    """Return what a contestant reached at its best learning rate on every stream."""
    return [
        Cell(
            stream=stream,
            contestant=contestant,
            stages=trial.scheme.num_stages,
            load=trial.load,
            way=way,
            rate=rate_of(tuned.exponents[tuned.best]),
            is_on_edge=bool(tuned.missing),
            losses=tuple(tuned.scores.loss_LS[tuned.best].tolist()),
            accuracies=None
            if tuned.scores.accuracy_LS is None
            else tuple(tuned.scores.accuracy_LS[tuned.best].tolist()),
            taken=tuned.scores.taken,
        )
        for (stream, way), tuned in scored.items()
    ]


if __name__ == "__main__":
    main()
