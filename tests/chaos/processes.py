"""Runs in processes of their own, killed at random moments, and what each was at just then.

Those that are to be killed are forked off a server that has imported what the command imports, for
it would else spend most of its short life on that; the command itself runs what remains.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch

from streamflow.checkpoints import reading
from streamflow.cli import main

KILLS = int(os.environ.get("STREAMFLOW_TEST_KILLS", "8"))
SEED = int(os.environ.get("STREAMFLOW_TEST_SEED", str(random.SystemRandom().randrange(10**6))))
SHARE = max(1, KILLS // 4)
"""Kills for each of the four graphs."""

IS_LONG = KILLS >= 40

PATIENCE = 60 * (SHARE + 5)
"""Seconds after which a test is given up, on a machine that is busy with other things."""

ROOT = Path(__file__).parents[2]
POLL = 0.0005
STARTING = 2.0
"""Seconds within which a run has opened its nodes on most machines."""

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["pytest", "torch._dynamo", "streamflow.cli", "aiokafka"])


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
        variables: Of its environment.
    """

    graph: Path
    progress: Path
    checkpoints: Path
    instance: str = "0"
    variables: Mapping[str, str] = field(default_factory=dict)

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

    def start(self) -> ForkServerProcess:
        """Begin what the command does, in a process that has made its imports."""
        process = FORKS.Process(target=_run, args=(self,), daemon=True)
        process.start()
        return process

    def run(self) -> None:
        """Run the command to its end, which must be a good one."""
        with self._log.open("ab") as log:
            done = subprocess.run(
                [sys.executable, "-m", "streamflow", *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", **self.variables},
                check=False,
            )
        assert done.returncode == 0, self.log

    @property
    def _arguments(self) -> list[str]:
        return ["run", str(self.graph), "--instance", self.instance]

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


def _run(job: Job) -> None:
    """Do what the command does; the process is a new one."""
    os.environ.update(job.variables)
    torch.set_num_threads(1)
    log = os.open(job._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(log, 2)
    sys.argv = ["streamflow", *job._arguments]
    main()


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
    disturb: Callable[[ForkServerProcess], object] | None = None,
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
        process = job.start()
        if disturb is not None:
            disturb(process)
        if kill(job, process, chance, step):
            phases[Traces.of(job).phase_since(before) + look()] += 1
        else:
            assert process.exitcode == 0, job.log
    print(f"killed {SHARE} times: {dict(phases)}")  # noqa: T201


def kill(
    job: Job,
    process: ForkServerProcess,
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
    return ended(process) == -signal.SIGKILL


def ended(process: ForkServerProcess) -> int:
    """Wait for the end of a process; return its exit code."""
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def reaches_moment(
    job: Job,
    process: ForkServerProcess,
    chance: random.Random,
    step: int,
    patience: float = PATIENCE,
) -> bool:
    """Wait for a random moment; return whether the process has lived to see it."""
    is_time = _moment(job, chance, step)
    latest = time.monotonic() + patience
    while process.is_alive():
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
