from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from streamflow.contracts import Context
from streamflow.records import Batch
from tests.models.streams import FEATURES, PARTITION, Outcome, line, model, numbers, readings, run


def plain_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 64), nn.ReLU(), nn.Linear(64, 2))


def samples(rows: list[dict[str, Any]]) -> list[tuple[Tensor, Tensor]]:
    return [
        (torch.tensor([[row[name] for name in FEATURES]]), torch.tensor([row["class"]]))
        for row in rows
    ]


def assert_same(outcome: Outcome, expected: list[list[float]], tolerance: float) -> None:
    torch.testing.assert_close(
        torch.tensor(outcome.each("scores")), torch.tensor(expected), rtol=0, atol=tolerance
    )
    assert outcome.each("prediction") == [int(np.argmax(scores)) for scores in expected]


@pytest.mark.parametrize("cuts", [(), (1, 2, 17), range(40)])
def test_scores_are_those_of_a_plain_loop(cuts: Any) -> None:
    network = plain_network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    expected = []
    for x, y in samples(readings()):
        output = network(x)
        expected.append(output.softmax(dim=1)[0].tolist())
        optimizer.zero_grad()
        torch.autograd.backward(functional.cross_entropy(output, y))
        optimizer.step()
    outcome = run(model(), readings(), cuts=cuts)
    assert_same(outcome, expected, 1e-5)
    assert outcome.each("step") == list(range(40))
    assert outcome.each("target") == [row["class"] for row in readings()]
    assert outcome.report["updates"] == [40]


def delayed_scores(rows: list[dict[str, Any]]) -> list[list[float]]:
    """Learn as two stages do that forward a sample before the last one's gradient is there."""
    network = plain_network()
    first, second = network[:2], network[2:]
    of_first = torch.optim.SGD(first.parameters(), lr=0.05)
    of_second = torch.optim.SGD(second.parameters(), lr=0.05)
    scores: list[list[float]] = []
    before: tuple[Tensor, Tensor, Tensor] | None = None
    for x, y in samples(rows):
        hidden = first(x).detach().requires_grad_()
        if before is not None:
            _, last_hidden, last_y = before
            of_second.zero_grad()
            torch.autograd.backward(functional.cross_entropy(second(last_hidden), last_y))
            of_second.step()
        scores.append(second(hidden).softmax(dim=1)[0].tolist())
        if before is not None:
            last_x, last_hidden, _ = before
            of_first.zero_grad()
            torch.autograd.backward(first(last_x), last_hidden.grad)
            of_first.step()
        before = (x, hidden, y)
    return scores


@pytest.mark.parametrize("cuts", [(), (1, 2, 17), range(40)])
def test_two_stages_have_exactly_one_sample_of_delay(cuts: Any) -> None:
    outcome = run(model(stages=("2",), schedule="1f1b"), readings(), cuts=cuts)
    assert_same(outcome, delayed_scores(readings()), 1e-4)
    assert outcome.each("step") == [0, *range(39)]
    assert outcome.report["updates"] == [40, 40]


@pytest.mark.slow
def test_delay_makes_a_difference() -> None:
    one, two = run(model(), readings()), run(model(stages=2), readings())
    assert one.each("scores")[0] == two.each("scores")[0]
    assert one.each("scores")[2] != two.each("scores")[2]


def test_output_records_keep_what_they_are_about() -> None:
    outcome = run(model(carry=("a", "note")), [{**row, "note": "n"} for row in readings(3)])
    assert outcome.each("a") == [row["a"] for row in readings(3)]
    assert outcome.each("note") == ["n"] * 3
    assert outcome.each("source") == [{"path": "a.csv", "line": line} for line in range(3)]
    assert [record.timestamp_ms for record in outcome.records] == [1000, 1001, 1002]
    names = ["prediction", "scores", "target", "step", "source", "a", "note"]
    assert list(outcome.records[0].value) == names


def test_output_records_keep_keys() -> None:
    outcome = run(model(), readings(4), cuts=[2], keys=["k", None, "l", "k"])
    assert [record.key for record in outcome.records] == ["k", None, "l", "k"]


def test_missing_target_is_predicted_and_not_learned() -> None:
    rows = readings(6)
    del rows[2]["class"]
    rows[3]["class"] = None
    outcome = run(model(), rows, cuts=[3])
    assert ["target" in record.value for record in outcome.records] == [True] * 2 + [False] * 2 + [
        True
    ] * 2
    assert outcome.each("step") == [0, 1, 2, 2, 2, 3]
    without = run(model(), [*rows[:2], *rows[4:]])
    assert outcome.each("scores")[4:] == without.each("scores")[2:]
    assert outcome.report["score"]["scored"] == without.report["score"]["scored"] == 3


def test_a_model_that_does_not_learn_predicts_and_scores() -> None:
    outcome = run(model(learn=False), readings(10))
    network = plain_network()
    expected = [network(x).softmax(dim=1)[0].tolist() for x, _ in samples(readings(10))]
    assert_same(outcome, expected, 1e-6)
    assert outcome.each("step") == [0] * 10
    assert outcome.report["score"]["scored"] == 9


def test_without_a_target_there_is_only_a_prediction() -> None:
    declared = model(learn=False, target=None, loss=None, classes=("down", "up"))
    outcome = run(declared, readings(2))
    assert set(outcome.each("prediction")) <= {"down", "up"}
    assert list(outcome.records[0].value) == ["prediction", "scores", "step", "source"]
    assert "score" not in outcome.report


def test_classes_may_be_text() -> None:
    names = ["down", "up"]
    rows = [{**row, "class": names[row["class"]]} for row in readings()]
    named, numbered = run(model(classes=names), rows), run(model(), readings())
    assert named.each("scores") == numbered.each("scores")
    assert named.each("prediction") == [names[label] for label in numbered.each("prediction")]
    assert named.report["score"] == numbered.report["score"]


def test_regression_is_a_plain_loop() -> None:
    torch.manual_seed(0)
    network = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    expected = []
    for row in numbers():
        output = network(torch.tensor([[row["x"]]]))
        expected.append(output.item())
        optimizer.zero_grad()
        torch.autograd.backward(functional.mse_loss(output, torch.tensor([[row["y"]]])))
        optimizer.step()
    outcome = run(line(optimizer={"SGD": {"lr": 0.01}}), numbers())
    assert outcome.each("prediction") == pytest.approx(expected, abs=1e-5)


def test_several_outputs_are_a_list() -> None:
    rows = [{"x": row["x"], "y": [row["y"], -row["y"]]} for row in numbers()]
    outcome = run(line(network=({"Linear": [1, 2]},)), rows, cuts=[1, 5])
    single = run(line(network=({"Linear": [1, 2]},)), rows)
    assert outcome.each("prediction") == single.each("prediction")
    assert outcome.each("target") == [row["y"] for row in rows]
    assert [len(prediction) for prediction in outcome.each("prediction")] == [2] * 12
    assert outcome.report["score"]["scored"] == 11
    assert (
        "expected 2 numbers for y"
        in run(line(network=({"Linear": [1, 2]},)), [{"x": 1.0, "y": 1.0}]).causes[0]
    )


@pytest.mark.parametrize("is_logit", [True, False])
def test_binary_scores_are_both_probabilities(is_logit: bool) -> None:
    suffix = "_with_logits" if is_logit else ""
    layers = ({"Linear": [5, 1]}, *(() if is_logit else ("Sigmoid",)))
    outcome = run(model(network=layers, loss=f"binary_cross_entropy{suffix}"), readings())
    torch.manual_seed(0)
    network = nn.Linear(5, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    expected = []
    for x, y in samples(readings()):
        second = torch.sigmoid(network(x))
        expected.append([1 - second.item(), second.item()])
        optimizer.zero_grad()
        torch.autograd.backward(functional.binary_cross_entropy(second, y[None].float()))
        optimizer.step()
    assert_same(outcome, expected, 1e-5)


def test_probabilities_of_logarithms() -> None:
    layers = ({"Linear": [5, 2]}, {"LogSoftmax": {"dim": 1}})
    logarithms = run(model(network=layers, loss="nll_loss"), readings())
    logits = run(model(network=layers[:1]), readings())
    torch.testing.assert_close(
        torch.tensor(logarithms.each("scores")), torch.tensor(logits.each("scores"))
    )


def standardized_reference(rows: list[dict[str, Any]], rate: float) -> list[float]:
    torch.manual_seed(0)
    network = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=rate)
    seen: list[float] = []
    predictions = []

    def statistics() -> tuple[float, float]:
        return (float(np.mean(seen)), float(np.std(seen)) or 1.0) if seen else (0.0, 1.0)

    for row in rows:
        output = network(torch.tensor([[row["x"]]]))
        mean, deviation = statistics()
        predictions.append(output.item() * deviation + mean)
        if row.get("y") is None:
            continue
        seen.append(row["y"])
        mean, deviation = statistics()
        optimizer.zero_grad()
        torch.autograd.backward(
            functional.mse_loss(output, torch.tensor([[(row["y"] - mean) / deviation]]))
        )
        optimizer.step()
    return predictions


@pytest.mark.parametrize("cuts", [(), (1, 4, 5), range(12)])
def test_standardized_target(cuts: Any) -> None:
    rows = numbers()
    del rows[4]["y"]
    rows[7]["y"] = None
    outcome = run(line(standardize_target=True), rows, cuts=cuts)
    expected = standardized_reference(rows, 0.05)
    assert outcome.each("prediction") == pytest.approx(expected, abs=1e-4)
    assert outcome.each("target") == [row.get("y") for row in rows]


def test_first_prediction_does_not_know_its_target() -> None:
    near, far = ([{"x": 0.5, "y": y}, {"x": 0.5, "y": y}] for y in (1.0, 1000.0))
    declared = line(standardize_target=True)
    assert run(declared, near).each("prediction")[0] == run(declared, far).each("prediction")[0]
    assert run(declared, near).each("prediction")[1] != run(declared, far).each("prediction")[1]


def test_array_features() -> None:
    rows = readings(12)
    lists = [
        {"v": [row["a"], row["b"]], "c": row["c"], "w": np.array([[row["d"]], [row["e"]]])}
        for row in rows
    ]
    for part, row in zip(lists, rows, strict=True):
        part["class"] = row["class"]
    outcome = run(model(features=("v", "c", "w")), lists, cuts=[5])
    assert outcome.each("scores") == run(model(), rows).each("scores")


def test_a_single_array_keeps_its_shape() -> None:
    rows = [
        {"image": [[[float(i + x + y) / 9 for x in range(4)] for y in range(4)]], "class": i % 2}
        for i in range(6)
    ]
    layers = ({"Conv2d": [1, 2, 3]}, "Flatten", {"Linear": [8, 2]})
    outcome = run(model(network=layers, features="image"), rows, cuts=[2])
    assert not outcome.causes
    flat = [{**row, "image": [float(i)] * 16} for i, row in enumerate(rows)]
    assert len(run(model(network=layers, features="image"), flat).causes) == 6


def test_columns_of_arrays_are_features() -> None:
    x_NF = np.array([[row[name] for name in FEATURES] for row in readings(8)], dtype=np.float32)
    classes = np.array([row["class"] for row in readings(8)])
    batch = Batch({"x": x_NF, "class": classes}, [PARTITION] * 8, range(8))
    outcome = Outcome()
    with model(features="x").open(Context("model")) as processor:
        for start, stop in pairwise((0, 3, 8)):
            outcome.take(processor.process(batch.slice(start, stop)))
    assert outcome.each("scores") == run(model(), readings(8)).each("scores")
    assert outcome.each("target") == classes.tolist()


def test_a_loss_of_the_output_alone_needs_no_target() -> None:
    def loss(output: Tensor) -> Tensor:
        return output.square().mean()

    outcome = run(line(target=None, loss=loss), [{"x": 1.0}] * 30)
    predictions = outcome.each("prediction")
    assert abs(predictions[-1]) < abs(predictions[0])
    assert outcome.each("step") == list(range(30))
