"""Recorded graphs that travel to the process that compiles them."""

import pickle

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from streamflow.pipeline import torch_private
from streamflow.pipeline.capture import graphs
from streamflow.pipeline.capture.held_tensors import Unsupported


def test_a_graph_is_the_same_afterwards() -> None:
    def function(x: Tensor) -> list[Tensor]:
        wide = torch.cat([x, torch.zeros(1, 2), torch.arange(2.0)[None]], 1)
        parts = torch.split(wide, 3, dim=1)
        return [*parts, torch.where(x > 0, x, torch.full_like(x, -1, dtype=torch.float32))]

    x = torch.randn(1, 2)
    graph = graphs.plain(torch_private.record(function, [x]))
    sent = pickle.loads(pickle.dumps(graphs.serialize(graph)))
    found = graphs.deserialize(sent)
    assert not found.graph.find_nodes(op="get_attr")
    assert [str(node.target) for node in found.graph.nodes] == [
        str(node.target) for node in graph.graph.nodes
    ]
    for result, wanted in zip(found(x), function(x), strict=True):
        assert torch.equal(result, wanted)


def test_what_has_no_name_cannot_travel() -> None:
    graph = torch.fx.Graph()
    graph.output(graph.call_function(divmod, (graph.placeholder("x"), 2)))
    with pytest.raises(Unsupported, match="it calls <built-in function divmod>"):
        graphs.serialize(GraphModule(torch.nn.Module(), graph))
