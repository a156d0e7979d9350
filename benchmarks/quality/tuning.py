"""Every contestant at its own best learning rate, found on one grid for all of a kind.

Shapes: S seeds, L learning rates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import lru_cache

import torch

from benchmarks.quality.learning import Scheme, Scores, learn, score
from benchmarks.quality.loads import Costs, learn_under_load
from benchmarks.quality.streams import Stream, StreamSpec, build

# Rates are powers of the square root of two; these are their exponents.
GRID = range(-24, -8)
EXTENSION, MAX_EXTENSIONS = 4, 4


@dataclass(frozen=True, slots=True)
class Trial:
    """A scheme that learns streams, at a load or with all the time it needs."""

    streams: StreamSpec
    scheme: Scheme
    load: float | None = None
    costs: Costs | None = None

    @property
    def group(self) -> str:
        """Name of the group of trials that share a grid."""
        names = ", ".join(self.streams.names)
        return names if self.load is None else f"{names} at load {self.load:g}"


@dataclass(frozen=True, slots=True)
class Tuned:
    """Scores on a grid of learning rates.

    Attributes:
        exponents: Of the square root of two, ascending.
        scores: One row per exponent.
    """

    exponents: tuple[int, ...]
    scores: Scores

    @property
    def best(self) -> int:
        """Index of the rate with the least mean loss over the seeds."""
        return int(self.scores.loss_LS.mean(1).argmin())

    @property
    def missing(self) -> list[int]:
        """Exponents beyond the edge that the best rate lies on, or none."""
        if self.best == 0:
            return list(range(self.exponents[0] - EXTENSION, self.exponents[0]))
        if self.best == len(self.exponents) - 1:
            return list(range(self.exponents[-1] + 1, self.exponents[-1] + 1 + EXTENSION))
        return []

    def merged(self, other: Tuned) -> Tuned:
        """Join with scores at other rates."""
        exponents = (*self.exponents, *other.exponents)
        order = sorted(range(len(exponents)), key=exponents.__getitem__)
        accuracy = None
        if self.scores.accuracy_LS is not None and other.scores.accuracy_LS is not None:
            accuracy = torch.cat([self.scores.accuracy_LS, other.scores.accuracy_LS])[order]
        loss = torch.cat([self.scores.loss_LS, other.scores.loss_LS])[order]
        return Tuned(
            tuple(exponents[index] for index in order),
            Scores(loss, accuracy, self.scores.taken),
        )


Found = dict[tuple[str, str], Tuned]
"""What a trial gave, by stream and by the way in which skipped samples are answered."""


def rate_of(exponent: int) -> float:
    """Return the learning rate of an exponent."""
    return float(2.0 ** (exponent / 2))


def tune(
    trials: Sequence[Trial],
    *,
    grid: Iterable[int] = GRID,
    pool: Executor | None = None,
    max_extensions: int = MAX_EXTENSIONS,
    say: Callable[[str], None] = print,
) -> list[Found]:
    """Score every trial on the grid, extended until no best rate lies on its edge.

    The grid is extended for all trials of a group alike. ``say`` hears of every extension, and of
    what is still on the edge after the last.
    """
    found = _evaluate_all(trials, [tuple(grid)] * len(trials), pool)
    for _ in range(max_extensions):
        missing = _missing(trials, found, lambda text: say(f"{text}: extended"))
        if not any(missing):
            break
        chosen = [index for index, exponents in enumerate(missing) if exponents]
        more = _evaluate_all(
            [trials[index] for index in chosen], [missing[index] for index in chosen], pool
        )
        for index, extra in zip(chosen, more, strict=True):
            found[index] = {key: tuned.merged(extra[key]) for key, tuned in found[index].items()}
    _missing(trials, found, lambda text: say(f"{text}: left so"))
    return found


def _missing(
    trials: Sequence[Trial], found: Sequence[Found], say: Callable[[str], None]
) -> list[tuple[int, ...]]:
    """Return for every trial the exponents that its group still has to try."""
    wanted: dict[str, set[int]] = {trial.group: set() for trial in trials}
    names: dict[str, list[str]] = {}
    for trial, scored in zip(trials, found, strict=True):
        for (stream, way), tuned in scored.items():
            wanted[trial.group].update(tuned.missing)
            if tuned.missing:
                name = f"{trial.scheme.label} in {trial.scheme.num_stages} on {stream}, {way}"
                names.setdefault(trial.group, []).append(name)
    for group, schemes in names.items():
        say(f"- {group}: a best rate on the grid's edge ({'; '.join(schemes)})")
    return [tuple(sorted(wanted[trial.group])) for trial in trials]


def _evaluate_all(
    trials: Sequence[Trial], exponents: Sequence[tuple[int, ...]], pool: Executor | None
) -> list[Found]:
    mapped = map if pool is None else pool.map
    return list(mapped(_evaluate, trials, exponents))


def _evaluate(trial: Trial, exponents: tuple[int, ...]) -> Found:
    stream, rates = _stream(trial.streams), [rate_of(exponent) for exponent in exponents]
    if trial.load is None or trial.costs is None:
        scored = score(stream, learn(stream, trial.scheme, rates))
        scores = {(name, "all"): found for name, found in scored.items()}
    else:
        scores = learn_under_load(stream, trial.scheme, rates, trial.costs, trial.load)
    return {key: Tuned(exponents, found) for key, found in scores.items()}


@lru_cache(maxsize=1)
def _stream(spec: StreamSpec) -> Stream:
    return build(spec)


def prepare_process() -> None:
    """Set up a process that evaluates: one thread, and no slow arithmetic near zero."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
