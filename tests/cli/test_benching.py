import json
import os
import pty
import re
import shlex
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from streamflow.bench.ways import all_ways
from streamflow.cli.app import app
from tests.cli.programs import COMMAND, streamflow
from tests.cli.test_planning import GRAPH, IMAGES, Done
from tests.cli.test_terminal import read_all

ROOT = Path(__file__).parent.parent.parent
BRIEF = ("--rounds", "1", "--seconds", "0.01", "--ways", "eager")
NETWORK = """\
import multiprocessing
from torch import nn

class Tells(nn.Linear):
    def __init__(self):
        super().__init__(3, 1)

    def forward(self, x):
        if multiprocessing.parent_process() is not None:
            open("reached.pipe", "w").close()
        return super().forward(x)

def frozen():
    return nn.Linear(3, 1).requires_grad_(False)
"""

Bench = Callable[..., Done]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with two graphs and a module."""
    (tmp_path / "graph.yaml").write_text(GRAPH, encoding="utf-8")
    (tmp_path / "images.yaml").write_text(IMAGES, encoding="utf-8")
    (tmp_path / "benched.py").write_text(NETWORK, encoding="utf-8")
    return tmp_path


@pytest.fixture
def bench(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Bench:
    """Return the command in that folder, without the start of a process for each call."""
    monkeypatch.chdir(folder)

    def run(*arguments: str) -> Done:
        code = app(["bench", *arguments], exit_on_error=False)
        return Done(code, *capsys.readouterr())

    return run


@pytest.mark.slow
def test_a_graph_is_measured_and_nothing_opened(folder: Path, bench: Bench) -> None:
    done = bench("graph.yaml", *BRIEF)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("price: input 3, 41 parameters, ")
    names = [line.split()[1] for line in lines if line.startswith("│")]
    assert names[0] == "loop-1"
    assert names[-1] == "eager"
    assert max(map(len, lines)) <= 100
    assert {path.name for path in folder.iterdir()} == {"graph.yaml", "images.yaml", "benched.py"}


@pytest.mark.slow
def test_figures_are_json_on_stdout_and_a_picture_in_a_file(folder: Path, bench: Bench) -> None:
    done = bench("graph.yaml", *BRIEF, "--json", "--plot", "ratios.png")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert (report["target"], report["failure"]) == ("graph.yaml", None)
    price = report["models"]["price"]
    assert all(way["figures"]["rate"] > 0 for way in price["ways"])
    best = next(way for way in price["ways"] if way["name"] == price["best_loop"])
    assert best["figures"]["ratio"] == 1.0
    assert (folder / "ratios.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_network_needs_no_graph(bench: Bench) -> None:
    network = ("tests.bench.networks:deadly", "--loss", "l1_loss", "--optimizer", "Adam")
    done = bench(*network, *BRIEF, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    (found,) = json.loads(done.stdout)["models"].values()
    assert (found["shape"], found["parameters"]) == ([3], 11)


@pytest.mark.slow
def test_a_network_that_learns_in_no_way_fails(folder: Path, bench: Bench) -> None:
    done = bench("benched:frozen", *BRIEF[:4], "--ways", "loop-1")
    assert done.returncode == 1
    assert "loop-1: " in done.stdout
    assert "expected a way that works, got none" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["graph.yaml", "--model", "prize"], "did you mean price?"),
        (["graph.yaml", "--shape", "3,x"], "--shape: expected sizes like 3,32,32, got 3,x"),
        (["graph.yaml", "--shape", "7"], "price: expected a network that takes features of shape"),
        (["graph.yaml", "--ways", "fast"], "price: --ways: expected a name or pattern of loop-1"),
        (["graph.yaml", "--plot", "ratios.txt"], "--plot: expected a file .png or .svg or .pdf"),
        (["graph.yaml", "--loss", "mse_loss"], "--loss: expected none with a graph, got one"),
        (["images.yaml", "--shape", "1,4,4"], "expected one model for --shape, got 2; add --model"),
        (["images.yaml", "--plot", "a.svg"], "expected one model for --plot, got 2; add --model"),
        (["benched:Tells", "--model", "m"], "--model: expected none with a network, got one"),
        (["benched:Tells", "--loss", "mse_los"], "did you mean mse_loss?"),
        (["benched:Tells", "--optimizer", "Sgd"], "did you mean SGD?"),
    ],
)
def test_wrong_arguments_end_with_2(bench: Bench, arguments: list[str], message: str) -> None:
    done = bench(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_network_that_does_not_import_fails(bench: Bench) -> None:
    done = bench("benched:none")
    assert (done.returncode, done.stdout) == (1, "")
    assert "failed: benched:none: expected benched:none to import" in done.stderr


def test_a_graph_that_cannot_run_is_not_measured(bench: Bench) -> None:
    done = bench("graph.yaml", "--set", "models.price.stages=9")
    assert (done.returncode, done.stdout) == (78, "")
    assert "expected at most 3" in done.stderr
    assert bench("none.yaml").returncode == 78


@pytest.mark.slow
def test_ctrl_c_ends_it_with_all_its_processes(folder: Path) -> None:
    os.mkfifo(folder / "reached.pipe")
    terminal, other = pty.openpty()
    command = [*COMMAND, "bench", "benched:Tells", "--ways", "eager"]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=other, env=environment
    )
    os.close(other)
    try:
        (folder / "reached.pipe").read_bytes()  # a way has begun, and learns the next sample
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        shown = read_all(terminal).decode()
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
    assert (process.returncode, out) == (130, b"")
    assert children
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    assert "benched:Tells: preparing loop-1" in shown
    assert "failed: benched:Tells: stopped by SIGINT" in shown
    assert "Traceback" not in shown


@pytest.mark.slow
def test_the_overview_tells_what_it_does(folder: Path) -> None:
    done = streamflow(folder, "--help")
    assert "Measure how fast models learn" in done.stdout


@pytest.mark.slow
def test_the_documentation_shows_what_is_printed(bench: Bench) -> None:
    page = (ROOT / "docs/speed.md").read_text(encoding="utf-8")
    commands = re.findall(r"^\$ streamflow (bench .*)$", page, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        app.parse_args(shlex.split(command), exit_on_error=False)
    shown = page[page.index("\n", page.index(commands[0])) + 1 :].partition("```")[0].splitlines()
    done = bench(str(ROOT / "examples/electricity/graph.yaml"), *BRIEF)
    printed = done.stdout.splitlines()
    waiting = r"\d+ samples waiting"
    assert re.sub(waiting, "", printed[0]) == re.sub(waiting, "", shown[0])
    titles = [[cell.strip() for cell in lines[2].split("┃")] for lines in (printed, shown)]
    assert titles[0] == titles[1]
    names = [line.split()[1] for line in shown if line.startswith("│")]
    assert names == [way.name for way in all_ways(num_cores=2, num_layers=3)]
