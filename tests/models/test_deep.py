from pathlib import Path
from typing import Any

import pytest

from tests.models.streams import line, model

OWN = "tests.models.own"

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"groups": {"9.*": {"lr": 1}}}, "groups: expected patterns of parameter names, the first ma"),
    ({"groups": {"0.*": {"rate": 1}}}, "groups.0.*: expected options that SGD takes, found {"),
    ({"state": ("h",)}, "state: expected names of the network's buffers, found 'h'; it has none; "),
    ({"devices": "cuda:99"}, "devices: expected devices of this machine, found 'cuda:99': "),
    (
        {"optimizer": ("SGD", "Adam")},
        "optimizer: expected one per stage, 1, found 2; pass as many, or a single one for all",
    ),
    (
        {"scheduler": "StepLRR"},
        "scheduler: expected a schedule of torch.optim.lr_scheduler, found StepLRR; did you mean ",
    ),
    (
        {"scheduler": {"StepLR": {"step": 1}}},
        "scheduler.StepLR: expected options that StepLR takes, found {'step': 1}: ",
    ),
    (
        {"clip_norm": 1.0, "clip_over": "network", "stages": 2},
        "clip_over: expected 'stage' with 2 stages in 1f1b, found 'network', whose norm is known",
    ),
    (
        {"loss": f"{OWN}:output_loss", "task": "classification"},
        "loss: expected a loss of (output, target), found one of the output alone; remove the ",
    ),
    (
        {"loss": f"{OWN}:loss", "target": None},
        "loss: expected a loss of the output alone, as there is no target, found one of both; ",
    ),
    (
        {"network": ({"Liner": [5, 2]},)},
        "network.0: expected a layer of torch.nn, found Liner; did you mean Linear?",
    ),
    (
        {"network": ("ReLU", {"Linear": [5]})},
        "network.1.Linear: expected arguments that Linear takes, found [5]: ",
    ),
    (
        {"network": ({"Linear": {"in_features": 5, "out": 2}},)},
        "network.0.Linear: expected arguments that Linear takes, found {'in_features': 5, ",
    ),
    (
        {"network": "nowhere:build"},
        "network: expected nowhere:build to import, found ModuleNotFoundError: ",
    ),
    ({"network": f"{OWN}:absent"}, f"network: expected {OWN}:absent to import, found Attribute"),
    ({"network": f"{OWN}:NUMBER"}, f"network: expected {OWN}:NUMBER to be callable, found int; "),
    ({"network": f"{OWN}:no_network"}, "network: expected a callable that returns a torch.nn.Mo"),
    (
        {"network": f"{OWN}:broken_network"},
        "network: expected the network to build, found OSError: no such file",
    ),
    (
        {"loss": "cros_entropy", "task": "classification"},
        "loss: expected a loss of torch.nn.functional, found cros_entropy; did you mean cross_ent",
    ),
    (
        {"loss": {"cross_entropy": {"smoothing": 0.1}}},
        "loss: expected options with which cross_entropy takes output and target, found ",
    ),
    (
        {"loss": f"{OWN}:absent", "task": "regression"},
        f"loss: expected {OWN}:absent to import, found AttributeError: ",
    ),
    (
        {"optimizer": "SDG"},
        "optimizer: expected an optimizer of torch.optim, found SDG; did you mean SGD?",
    ),
    (
        {"optimizer": {"SGD": {"rate": 1}}},
        "optimizer.SGD: expected options that SGD takes, found {'rate': 1}: ",
    ),
    ({"optimizer": {"SGD": {"lr": -1}}}, "optimizer.SGD: expected options that SGD takes, found "),
    ({"stages": ("7",)}, "stages: expected names of modules, found '7'; known are 0, 1, 2"),
    ({"stages": 4}, "stages: expected at most 3 for this network, found 4; "),
    ({"weights": "none.safetensors"}, "weights: expected a file of weights, found none at "),
    (
        {"network": ({"Linear": [5, 64]}, "ReLU", {"Linear": [65, 2]})},
        "network.2: expected a layer that takes what the layers before it give, of the shape (1, ",
    ),
    (
        {"network": ({"Linear": [5, 2]}, {f"{OWN}:Absent": 1})},
        f"network.1: expected {OWN}:Absent to import, found AttributeError: ",
    ),
    ({"classes": (1, 2, 3)}, "network: expected as many outputs as classes, 3, found 2; change "),
]


def problems(folder: Path, *, only_scalars: bool = False, **options: Any) -> list[str]:
    found = model(**options).deep_problems(folder, only_scalars=only_scalars)
    return [str(problem) for problem in found]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_each_problem_is_found(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    (found,) = problems(tmp_path, **options)
    assert found.startswith(message)


def test_all_problems_are_found_at_once(tmp_path: Path) -> None:
    network = ("Relu", {"Linear": [5, 2]}, {"Linear": 5})
    found = problems(tmp_path, network=network, loss={"cross_entropy": {"a": 1}}, optimizer="X")
    places = [problem.split(":")[0] for problem in found]
    assert places == ["network.0", "network.2.Linear", "loss", "optimizer"]


def test_features_and_optimizers_are_wrong_at_once(tmp_path: Path) -> None:
    optimizers = ({"SGD": {"rate": 1}}, "SGD", "X")
    groups: dict[str, Any] = {"0.*": {"rate": 1}, "2.*": {"momentum": 0.9}, "1.*": {"a": 1}}
    found = problems(tmp_path, features=tuple("abcdef"), optimizer=optimizers)
    places = [problem.split(":")[0] for problem in found]
    assert places == ["optimizer.0.SGD", "optimizer.2", "features"]
    found = problems(tmp_path, groups=groups)
    assert [problem.split(":")[0] for problem in found] == ["groups.0.*", "groups.1.*"]


@pytest.mark.parametrize("only_scalars", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stages": 3},
        {"stages": ("2",)},
        {"network": f"{OWN}:network"},
        {"network": f"{OWN}:computed_network"},
        {"network": ({"Conv2d": [1, 2, 3]}, "Flatten", {"Linear": [8, 2]}), "features": "image"},
        {"network": ({"LazyLinear": 8}, {"LayerNorm": 8}, {"LazyLinear": 2})},
    ],
)
def test_what_is_fine_has_no_problems(
    tmp_path: Path, options: dict[str, Any], only_scalars: bool
) -> None:
    assert problems(tmp_path, only_scalars=only_scalars, **options) == []


TOO_FEW = "features: expected 5 features to fit Linear(in_features=5, out_features=64, bias=True)"


@pytest.mark.parametrize(("count", "only_scalars"), [(4, True), (6, True), (6, False)])
def test_features_that_do_not_fit(tmp_path: Path, count: int, only_scalars: bool) -> None:
    (found,) = problems(tmp_path, only_scalars=only_scalars, features=tuple("abcdef"[:count]))
    assert found == f"{TOO_FEW}, found {count}; change the features or the first layer"


def test_the_first_layer_of_an_own_network_may_take_something_else(tmp_path: Path) -> None:
    gated = f"{OWN}:Gated"
    assert problems(tmp_path, network=gated, features=("a", "b", "c", "d")) == []
    (found,) = problems(tmp_path, only_scalars=True, network=gated, features=("a", "b", "c", "d"))
    assert found.startswith("network: expected a layer that takes what the features give, of the ")


def test_few_features_may_be_arrays(tmp_path: Path) -> None:
    assert problems(tmp_path, features=("a", "b")) == []


def test_outputs_must_fit_the_task(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, only_scalars=True, classes=(1, 2, 3))
    assert found.startswith("network: expected as many outputs as classes, 3, found 2; ")
    (other,) = line(loss="cross_entropy").deep_problems(tmp_path, only_scalars=True)
    assert str(other).startswith("network: expected one output for each of at least two classes")
