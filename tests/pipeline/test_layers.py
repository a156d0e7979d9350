import pytest
import torch
from torch import Tensor, nn

from streamflow.errors import PartitionError
from streamflow.pipeline.network.layers import layer_names
from streamflow.pipeline.network.partition import partition


class Tied(nn.Module):
    """Decodes with the weights of its encoder; a layer stands before and after both."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.encode = nn.Linear(4, 4)
        self.middle = nn.Tanh()
        self.decode = nn.Linear(4, 4)
        self.decode.weight = self.encode.weight
        self.last = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.decode(self.middle(self.encode(self.first(x))))
        y: Tensor = self.last(x)
        return y


class Twice(nn.Module):
    """Runs a layer, another, and the first one again, on a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.one, self.two, self.three = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(self.two(self.one(x)))
        y: Tensor = self.three(x * self.scale) * self.scale
        return y


class Choosing(nn.Module):
    """Cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.one(x) if x.sum() > 0 else self.two(x)
        return y


def nested() -> nn.Sequential:
    inner = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    return nn.Sequential(nn.Linear(4, 4), inner, nn.Linear(4, 4))


def test_layers_are_named_in_the_order_in_which_they_run() -> None:
    assert layer_names(nested()) == ["0", "1.0", "1.1", "2"]
    assert layer_names(nn.Linear(4, 4)) == ["Linear"]


def test_what_shares_weights_is_one_layer() -> None:
    assert layer_names(Tied()) == ["first", "encode", "last"]
    # "one" runs again after "two"; what reads the scale stands before and after "three".
    assert layer_names(Twice()) == ["one"]


def test_a_number_of_stages_keeps_together_what_shares_weights() -> None:
    assert partition(Tied(), 2).names == ("first", "encode")
    assert partition(Tied(), 3).names == ("first", "encode", "last")
    with pytest.raises(PartitionError, match=r"at most 3 for this network, got 4; .* shares"):
        partition(Tied(), 4)


class Carrying(nn.Module):
    """Writes a buffer at its end that it read at its beginning."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.read, self.write = (nn.Linear(4, 4) for _ in range(3))
        self.register_buffer("memory", torch.zeros(1, 4))
        self.memory: Tensor

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(self.first(x) + self.memory)
        y: Tensor = self.write(x) + self.memory
        return y


def test_recurrent_state_stays_in_one_stage_and_constants_do_not() -> None:
    assert layer_names(Carrying()) == ["first", "read", "write"]
    assert layer_names(Carrying(), state=["memory"]) == ["first"]


@pytest.mark.parametrize("make", [nested, Tied, Carrying])
def test_all_cuts_can_be_made_at_once(make: type[nn.Module]) -> None:
    net = make()
    names = layer_names(net)
    assert len(partition(net, names[1:]).modules) == len(names)


def test_a_cut_gives_its_name_to_the_layer_that_it_begins_with() -> None:
    assert layer_names(nested(), cuts=["1"]) == ["0", "1", "1.1", "2"]
    assert layer_names(nested(), cuts=["1.1", "2"]) == ["0", "1.0", "1.1", "2"]


def test_a_cut_within_a_layer_makes_layers_of_the_stages() -> None:
    encoder = nn.TransformerEncoderLayer(4, 2, 8)
    net = nn.Sequential(nn.Linear(4, 4), encoder, nn.Linear(4, 4))
    assert layer_names(net) == ["0", "1", "2"]
    assert layer_names(net, cuts=["1.linear1"]) == ["0", "1.linear1"]


def test_a_network_that_cannot_be_traced_is_refused() -> None:
    with pytest.raises(PartitionError, match="Choosing"):
        layer_names(Choosing())
