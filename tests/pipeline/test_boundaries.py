"""What crosses a cut, and what stages must not share."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamflow.errors import PartitionError
from streamflow.pipeline import Pipeline
from tests.pipeline.networks import chain, stream


class Named(nn.Module):
    """Passes on a dict, and a layer that takes one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = chain(["linear"] * 2, 0)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"h": self.first(x)}


class Taking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = chain(["linear"], 1)[0]

    def forward(self, named: dict[str, Tensor]) -> Tensor:
        y: Tensor = self.layer(named["h"])
        return y


def test_a_dict_that_crosses_a_cut_is_one_argument() -> None:
    inputs, targets = stream(4, seed=0)
    outputs = []
    for stages in ([], ["1"]):
        net = nn.Sequential(Named(), Taking())
        with Pipeline(
            net,
            loss=F.mse_loss,
            optimizer=partial(torch.optim.SGD, lr=0.1),
            stages=stages,
            schedule="sequential",
        ) as pipe:
            outputs.append(pipe.process(inputs, targets))
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("ends", ["infer", "drain", "close", "state_dict"])
def test_what_is_in_flight_is_learned_in_its_own_mode(ends: str) -> None:
    inputs, targets = stream(6, seed=0)
    learned = []
    for drains in (True, False):
        net = nn.Sequential(*chain(["linear"], 0), nn.Dropout(0.5), *chain(["linear"] * 2, 1))
        pipe = Pipeline(
            net,
            loss=F.mse_loss,
            optimizer=partial(torch.optim.SGD, lr=0.1),
            stages=["2", "3"],
        )
        pipe.process(inputs, targets)
        if drains:
            pipe.drain()
        net.eval()
        _ = pipe.infer(inputs) if ends == "infer" else getattr(pipe, ends)()
        assert not net[1].training
        learned.append(net.get_parameter("0.weight").detach().clone())
    assert torch.equal(*learned)


class Aliasing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = chain(["linear"] * 2, 0)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.a(x) * 1.0
        v = y.view(-1)
        z: Tensor = self.b(x)
        v.mul_(2.0)
        return z + y


class Count(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("n", torch.zeros(1, dtype=torch.float64))
        self.n: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.n.add_(1)
        return x * self.n.clone()


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = chain(["linear"] * 2, 0)
        self.k = Count()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.k(self.b(self.k(self.a(x))))
        return y


@pytest.mark.parametrize(
    ("net", "message"),
    [(Aliasing(), "two that share memory"), (Counting(), "k.n written in stage 0 and used in")],
)
def test_writes_that_stages_would_see_by_chance_are_refused(net: nn.Module, message: str) -> None:
    inputs, _ = stream(2, seed=0)
    pipe = Pipeline(net, stages=["b"])
    with pytest.raises(PartitionError, match=message):
        pipe.infer(inputs)
    with pytest.raises(PartitionError, match=message):
        pipe.process(inputs)
