"""The benchmark of what delayed learning costs: what its figures rest on, and that it runs."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.quality import __main__ as program
from benchmarks.quality import checks, loads, plots, results, stability, streams, tuning
from benchmarks.quality.clock import Answers, Clock, Durations
from benchmarks.quality.learning import Scheme, Scores, build, learn, replicate
from benchmarks.quality.streams import Stream, StreamSpec

ELECTRICITY = "nswprice,nswdemand,vicprice,vicdemand,transfer,class\n"
WEATHER = ",".join(f"feat_{number}" for number in range(1, 9)) + ",target\n"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for tensors as small as these, more only get in each other's way
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def stream() -> Stream:
    return streams.build(StreamSpec(("independent", "AR 0.9"), 60, seeds=2))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", checks.SCHEMES)
@pytest.mark.parametrize("num_stages", [1, 2, 8])
def test_a_replica_equals_a_pipeline_of_its_own(
    stream: Stream, scheme: tuple[str, str], num_stages: int
) -> None:
    for index in (0, 3, 6):
        assert checks.replica_error(stream, Scheme(*scheme, num_stages), index) < 1e-5


def test_a_replica_of_a_classifier_equals_a_pipeline_of_its_own(tmp_path: Path) -> None:
    stream = streams.build(StreamSpec(("electricity",), 50, 2, electricity(tmp_path)))
    assert checks.replica_error(stream, Scheme("1f1b", "own", 4), 2) < 1e-5


def test_replicas_differ_by_stream_seed_and_rate(stream: Stream) -> None:
    last_R = learn(stream, checks.SEQUENTIAL, checks.RATES)[-1, :, 0]
    assert len(set(last_R.tolist())) == 8


def test_without_lag_every_scheme_is_sequential_to_the_bit(stream: Stream) -> None:
    assert checks.one_stage_is_sequential(stream)


def test_greedy_with_time_enough_is_sequential_to_the_bit(stream: Stream) -> None:
    assert checks.unhurried_greedy_is_sequential(stream)


@pytest.mark.slow
def test_virtual_time_changes_no_deterministic_schedule(stream: Stream) -> None:
    assert checks.virtual_order_is_the_schedule(stream)


def test_greedy_under_pressure_is_late(stream: Stream) -> None:
    hurried = checks.in_virtual_time(stream, Scheme("greedy", "own", 8), 3.1)
    assert not torch.equal(hurried, learn(stream, checks.SEQUENTIAL, checks.RATES))


def part(stream: Stream, numbers: Tensor) -> Stream:
    return replace(stream, inputs_NKD=stream.inputs_NKD[numbers], targets=stream.targets[numbers])


def overloaded(stream: Stream, count: int) -> Answers:
    clock = Clock(build(stream, checks.SEQUENTIAL, [0.01]), "sequential", [Durations(1, 2, 2)])
    return clock.run(stream.inputs_NKD[:count], stream.targets[:count], 1.0)


def test_a_slow_loop_takes_the_newest_waiting_sample_and_skips_the_others(stream: Stream) -> None:
    answers = overloaded(stream, 8)
    assert answers.is_taken_N.nonzero().flatten().tolist() == [0, 2, 5, 7]
    taken = torch.tensor([0, 2, 5, 7])
    alone = part(stream, taken)
    expected = learn(alone, checks.SEQUENTIAL, [0.01])
    assert torch.equal(answers.held_NRO[taken], expected)
    assert torch.equal(answers.fresh_NRO[taken], expected)


def test_a_skipped_sample_gets_the_newest_prediction_or_that_of_the_weights_of_the_moment(
    stream: Stream,
) -> None:
    answers = overloaded(stream, 8)
    held = answers.held_NRO
    for skipped, newest in ((1, 0), (3, 2), (4, 2), (6, 5)):
        assert torch.equal(held[skipped], held[newest])
    # The update of sample 0 ends when second 3 begins: after sample 1 is given up, before 3 is.
    for skipped, learned in ((1, []), (3, [0]), (4, [0])):
        order = torch.tensor([*learned, skipped])
        expected = learn(part(stream, order), checks.SEQUENTIAL, [0.01])[-1]
        assert torch.equal(answers.fresh_NRO[skipped], expected)


def test_a_late_backward_takes_its_own_time(stream: Stream) -> None:
    # Were it as quick as the other, two stages would keep up with a sample every 3 s.
    clock = Clock(build(stream, Scheme("1f1b", "own", 2), [0.01]), "1f1b", [Durations(1, 2, 4)] * 2)
    answers = clock.run(stream.inputs_NKD, stream.targets, 3.0)
    assert 0.5 < float(answers.is_taken_N.double().mean()) < 0.7


def test_a_plan_has_the_fewest_stages_that_keep_up() -> None:
    costs = {
        count: [loads.StageCosts(1 / count, 1 / count, 2 / count, 3 / count)] * count
        for count in loads.STAGE_COUNTS
    }
    assert loads.capacity(costs, Scheme("greedy", "own", 4)) == pytest.approx(3.0)
    planned = {load: loads.plan(costs, load).num_stages for load in (0.5, 1.0, 1.4, 2.9, 3.1, 99)}
    assert planned == {0.5: 1, 1.0: 1, 1.4: 2, 2.9: 4, 3.1: 8, 99: 8}


@pytest.mark.parametrize("grid", [(-30, -29, -28), (-3, -2)])
def test_the_grid_grows_for_all_of_a_group_until_the_best_rate_is_inside(
    grid: tuple[int, ...],
) -> None:
    spec = StreamSpec(("independent",), 40, seeds=1)
    trials = [tuning.Trial(spec, Scheme("1f1b", "own", stages)) for stages in (1, 2)]
    said: list[str] = []
    scores = tuning.tune(trials, grid=grid, say=said.append)
    found = [scored["independent", "all"] for scored in scores]
    exponents = found[0].exponents
    assert exponents == found[1].exponents == tuple(range(exponents[0], exponents[-1] + 1))
    assert len(exponents) > len(grid)
    assert not any(tuned.missing for tuned in found)
    assert said
    assert all("extended" in line for line in said)
    at_once = tuning.tune(trials, grid=exponents, say=said.append)
    for tuned, scored in zip(found, at_once, strict=True):
        expected = scored["independent", "all"].scores
        torch.testing.assert_close(tuned.scores.loss_LS, expected.loss_LS)


def test_a_best_rate_on_the_edge_is_said() -> None:
    losses = torch.tensor([[3.0, 3.0], [math.inf, 1.0], [2.0, 1.0]])
    tuned = tuning.Tuned((-6, -5, -4), Scores(losses))
    assert tuned.best == 2
    assert tuned.missing == [-3, -2, -1, 0]
    said: list[str] = []
    trials = [tuning.Trial(StreamSpec(("independent",), 20, 1), Scheme("sequential", "own", 1))]
    tuning.tune(trials, grid=[-40, -39], max_extensions=0, say=said.append)
    assert len(said) == 1
    assert said[0].endswith("edge (sequential in 1 on independent, all): left so")


def test_generated_streams_have_variance_one_and_the_autocorrelation_of_their_name() -> None:
    spec = StreamSpec(tuple(streams.GENERATED), 20_000, 1)
    columns = streams.build(spec).inputs_NKD.unbind(1)
    for rho, x_ND in zip(streams.GENERATED.values(), columns, strict=True):
        variance = float(x_ND.square().mean())
        assert variance == pytest.approx(1.0, abs=0.2)
        assert float((x_ND[1:] * x_ND[:-1]).mean()) / variance == pytest.approx(rho, abs=0.03)


def test_a_recorded_stream_is_scaled_by_what_came_before(tmp_path: Path) -> None:
    whole = streams.build(StreamSpec(("electricity",), 300, 1, electricity(tmp_path)))
    part = streams.build(StreamSpec(("electricity",), 40, 1, electricity(tmp_path)))
    assert torch.equal(whole.inputs_NKD[:40], part.inputs_NKD)
    assert float(whole.inputs_NKD[50:].std()) == pytest.approx(1.0, abs=0.2)


def test_impossible_weather_is_left_out_and_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weather.csv"
    rows = ["1,2,1000,4,5,6,7,8,0\n", "1,2,5503.8,4,5,6,7,8,0\n", "1,2,1001,4,5,6,7,8,1\n"]
    path.write_text(WEATHER + "".join(rows))
    assert streams.recorded(str(path)) == "weather"
    stream = streams.build(StreamSpec(("weather",), 10, 1, str(path)))
    assert stream.targets.flatten().tolist() == [0, 1]
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="expected the columns of"):
        streams.recorded(str(path))


def electricity(folder: Path) -> str:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(300, 5, generator=generator).tolist()
    path = folder / "elec.csv"
    lines = [",".join(f"{value:.4f}" for value in row) + f",{int(row[0] > 0.5)}" for row in values]
    path.write_text(ELECTRICITY + "\n".join(lines) + "\n")
    return str(path)


@pytest.mark.slow
@pytest.mark.timeout(600)  # half a minute on a free machine
def test_a_quick_run_tells_and_draws_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "quality.json"
    try:
        program.main([electricity(tmp_path), "--quick", "--jobs", "1", "--results", str(kept)])
    finally:
        torch.set_flush_denormal(False)
    printed = capsys.readouterr().out
    titles = [line for line in printed.splitlines() if line.startswith("## ")]
    assert titles == [
        "## Checks",
        "## What the stages take",
        "## What delay costs",
        "## What a load costs",
        "## Where the plan is worse",
    ]
    found = results.load(kept)
    delayed = {(c.stream, c.contestant, c.stages) for c in found.cells if c.load is None}
    names = [*streams.GENERATED, "electricity"]
    assert delayed == {(name, "sequential", 1) for name in names} | {
        (name, f"{schedule} + {backward}", stages)
        for name in names
        for schedule, backward in program.DELAYED
        for stages in (2, 4, 8)
    }
    loaded = {(c.stream, c.contestant, c.load, c.way) for c in found.cells if c.load is not None}
    assert loaded == {
        (name, contestant, load, way)
        for name in streams.GENERATED
        for contestant in (*loads.FIXED, loads.PLAN)
        for load in program.QUICK.loads
        for way in ("held", "fresh")
    }
    assert all(math.isfinite(loss) for cell in found.cells for loss in cell.losses)
    plots.main(kept, tmp_path)
    assert "loss / sequential loss" in (tmp_path / "quality-delay.svg").read_text()
    assert "mean squared error" in (tmp_path / "quality-load.svg").read_text()


def test_the_table_at_equal_rates_has_a_ratio_for_every_seed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    try:
        stability.main(40, [-30])
    finally:
        torch.set_flush_denormal(False)
    *_, row = capsys.readouterr().out.strip().splitlines()
    # At a rate this small nobody has learned anything yet.
    assert row == "| 0.0000 | 1.00, 1.00, 1.00 | 1.00, 1.00, 1.00 | 1.00, 1.00, 1.00 |"


def test_rows_of_a_chunk_reach_their_replicas() -> None:
    x = torch.arange(6.0).view(1, 2, 3)
    assert torch.equal(replicate(x, 2), torch.cat([x, x], 1))
