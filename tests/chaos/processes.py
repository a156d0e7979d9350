"""Runs in processes of their own, killed at random moments, and what each was at just then."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from streamflow.checkpoints import reading

KILLS = int(os.environ.get("STREAMFLOW_TEST_KILLS", "8"))
SEED = int(os.environ.get("STREAMFLOW_TEST_SEED", str(random.SystemRandom().randrange(10**6))))
SHARE = max(1, KILLS // 4)
"""Kills for each of the four graphs."""

IS_LONG = KILLS >= 40

PATIENCE = 60 * (SHARE + 5)
"""Seconds after which a test is given up, on a machine that is busy with other things."""

ROOT = Path(__file__).parents[2]
POLL = 0.0005
STARTING = 4.0
"""Seconds within which a run has opened its nodes on most machines."""


def chance_of(test: str) -> random.Random:
    """Return the random numbers of a test; the seed is shown where it fails."""
    print(f"STREAMFLOW_TEST_SEED={SEED} STREAMFLOW_TEST_KILLS={KILLS}")  # noqa: T201
    return random.Random(f"{SEED} {test}")


@dataclass(frozen=True)
class Job:
    """A command that runs a graph, always the same, and where its progress can be seen.

    Attributes:
        graph: The YAML file.
        progress: A file that it writes as it goes.
        checkpoints: Its folder of checkpoints.
        instance: Its name.
    """

    graph: Path
    progress: Path
    checkpoints: Path
    instance: str = "0"

    @property
    def folder(self) -> Path:
        """Where the graph lies."""
        return self.graph.parent

    @property
    def log(self) -> str:
        """What all its runs have written to stderr."""
        return self._log.read_text()

    @property
    def _log(self) -> Path:
        return self.folder / f"{self.instance}.log"

    def start(self) -> subprocess.Popen[bytes]:
        """Run the command."""
        command = [sys.executable, "-m", "streamflow", "run", str(self.graph)]
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [*command, "--instance", self.instance],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1", "STREAMFLOW_INSTANCE": self.instance},
            )

    def run(self) -> None:
        """Run the command to its end, which must be a good one."""
        with self.start() as process:
            assert process.wait() == 0, self.log

    def size(self) -> int:
        """Return how large the file is that shows the progress."""
        try:
            return self.progress.stat().st_size
        except FileNotFoundError:
            return 0

    def saved(self) -> list[str]:
        """Return the names of the checkpoints."""
        return reading.names(self.checkpoints) if self.checkpoints.exists() else []

    def is_saving(self) -> bool:
        """Return whether a checkpoint is being written, or was when the process died."""
        return self.checkpoints.exists() and any(self.checkpoints.glob(".*.new"))

    def last_number(self) -> int:
        """Return the number of the newest checkpoint, 0 if there is none."""
        return int(self.saved()[-1]) if self.saved() else 0

    def newest(self) -> reading.Checkpoint:
        """Return the newest checkpoint."""
        found = reading.newest(self.checkpoints)
        assert found is not None
        return found


@dataclass(frozen=True)
class Traces:
    """What a job has left in its folder."""

    size: int
    last_number: int
    is_saving: bool

    @classmethod
    def of(cls, job: Job) -> Traces:
        return cls(job.size(), job.last_number(), job.is_saving())

    def phase_since(self, before: Traces) -> str:
        """Return what the process was at that has changed ``before`` to this, and died."""
        if (self.size, self.last_number) == (before.size, before.last_number):
            return "starting"
        return "writing a checkpoint" if self.is_saving else "at work"


def kill_often(
    job: Job,
    chance: random.Random,
    step: int,
    *,
    look: Callable[[], str] = str,
    disturb: Callable[[subprocess.Popen[bytes]], object] | None = None,
) -> None:
    """Start a job and kill it, again and again.

    Args:
        job: What runs.
        chance: Where the moments come from.
        step: By how much the progress grows from one checkpoint to the next, about.
        look: Called after each kill; returns what else the process was at.
        disturb: Called in each run before the moment is chosen.
    """
    phases: Counter[str] = Counter()
    while phases.total() < SHARE:
        before = Traces.of(job)
        with job.start() as process:
            if disturb is not None:
                disturb(process)
            is_killed = kill(job, process, chance, step)
        if is_killed:
            phases[Traces.of(job).phase_since(before) + look()] += 1
        else:
            assert process.returncode == 0, job.log
    print(f"killed {SHARE} times: {dict(phases)}")  # noqa: T201


def kill(
    job: Job,
    process: subprocess.Popen[bytes],
    chance: random.Random,
    step: int,
    patience: float = PATIENCE,
) -> bool:
    """Kill a run at a moment of one of several kinds.

    Args:
        job: What runs.
        process: The run.
        chance: Where the moment comes from.
        step: As in `kill_often`.
        patience: Seconds after which it is killed whatever it is at.

    Returns:
        Whether it was killed, and had not ended by itself.
    """
    if not reaches_moment(job, process, chance, step, patience):
        return False
    process.kill()
    return process.wait() == -signal.SIGKILL


def reaches_moment(
    job: Job,
    process: subprocess.Popen[bytes],
    chance: random.Random,
    step: int,
    patience: float = PATIENCE,
) -> bool:
    """Wait for a random moment; return whether the process has lived to see it."""
    is_time = _moment(job, chance, step)
    latest = time.monotonic() + patience
    while process.poll() is None:
        if is_time() or time.monotonic() > latest:
            return True
        time.sleep(POLL)
    return False


def _moment(job: Job, chance: random.Random, step: int) -> Callable[[], bool]:
    """Return what says that the moment has come."""
    kind = chance.choice(["time", "progress", "progress", "in a checkpoint", "after one"])
    if kind == "time":
        end = time.monotonic() + chance.uniform(0, STARTING)
        return lambda: time.monotonic() >= end
    if kind == "progress":
        return _at_progress(job, chance.randrange(2 * step))
    if kind == "in a checkpoint":
        return _in_a_checkpoint(job, chance.randrange(3))
    number = job.last_number() + chance.randrange(1, 4)
    return lambda: job.last_number() >= number


def _at_progress(job: Job, growth: int) -> Callable[[], bool]:
    """Wait until the file has grown since it was cut back, or since it was first written to."""
    before = job.size()
    goal: int | None = None

    def is_time() -> bool:
        nonlocal goal
        now = job.size()
        if goal is None and now != before:
            goal = now + growth
        return goal is not None and now >= goal

    return is_time


def _in_a_checkpoint(job: Job, skipped: int) -> Callable[[], bool]:
    """Wait until a checkpoint is being written, after so many others."""
    number = job.last_number() + skipped
    is_left_over = job.is_saving()  # by a run before, until this one removes it

    def is_time() -> bool:
        nonlocal is_left_over
        is_saving = job.is_saving()
        is_left_over = is_left_over and is_saving
        return is_saving and not is_left_over and job.last_number() >= number

    return is_time
