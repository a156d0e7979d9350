from collections import Counter, OrderedDict
from typing import Any

import pytest
import torch

from streamflow.models.portable import original, portable
from tests.state_trees import pack, unpack


@pytest.mark.parametrize(
    "tree",
    [
        {"lr": 0.1, "betas": (0.9, 0.999), "foreach": None, "names": ["a", {"b": 1}]},
        {"milestones": Counter({3: 1, 9: 2})},
        {"by_place": {0: "first", (1, 2.5): {None: [True]}}},
        {"words": Counter("aab"), "empty": [{}, Counter(), []]},
        {"one": {"$tensor": 1}},
    ],
)
def test_what_is_portable_comes_back(tree: dict[str, Any]) -> None:
    found = original(unpack(pack(portable(tree))))
    assert repr(found) == repr(tree)  # also tells types apart


def test_tensors_pass_through() -> None:
    tensor = torch.ones(2)
    assert portable({1: [tensor]})["$dict"][0][1][0] is tensor


def test_dicts_of_other_types_become_plain() -> None:
    assert type(portable(OrderedDict(a=1))) is dict
