import json
import math
import subprocess
import sys
from collections import OrderedDict, deque, namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from streamflow.checkpoints import tensors, trees
from streamflow.errors import CheckpointError
from tests.checkpoints.sameness import are_same, bits

Pair = namedtuple("Pair", ["one", "other"])


def round_trip(tree: Any, path: Path) -> Any:
    encoded = trees.encode(tree, where="m")
    text = json.dumps(encoded.json, allow_nan=False)
    if not encoded.tensors:
        return trees.decode(json.loads(text), trees.without_tensors)
    tensors.write(path, encoded.tensors)
    with tensors.reading(path) as load:
        return trees.decode(json.loads(text), load)


DTYPES = [
    getattr(torch, name) for name in tensors.DTYPES if isinstance(getattr(torch, name), torch.dtype)
]


def tensor_of(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a tensor whose bits are all sorts of values of the dtype, some not finite."""
    count = math.prod(shape)
    width = torch.empty(0, dtype=dtype).element_size()
    numbers = torch.arange(count * width) * 37 % 256
    if dtype == torch.bool:
        return (numbers % 2 == 0).reshape(shape)
    return numbers.to(torch.uint8).view(dtype).reshape(shape)


def arrays() -> st.SearchStrategy[Any]:
    dtypes = st.sampled_from(
        ["?", "u1", "<i2", ">i4", "<u8", "<f2", ">f4", "<f8", ">f8", "<c8", "<u4", "<i8"]
    )
    return st_numpy.arrays(dtypes, st_numpy.array_shapes(min_dims=0, min_side=0, max_side=3))


leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=2**62, max_value=2**70)
    | st.floats()
    | st.text(st.characters())  # lone surrogates, too
    | st.binary()
    | st.sampled_from([np.float32(0.1), np.float64(math.inf), np.int64(-5), np.True_, np.uint8(3)])
    | st.builds(
        tensor_of, st.sampled_from(DTYPES), st.sampled_from([(), (0,), (2,), (3, 2), (2, 0, 4)])
    )
    | arrays()
)
keys = st.text(st.characters(), max_size=4) | st.sampled_from(
    ["$tuple", "$tensor", "$dict", "$", "a.b", "__metadata__", "a", "b", "0"]
)
states = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=12,
)


@given(state=st.dictionaries(keys, states, max_size=4))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # of the machine, not ours
def test_a_tree_comes_back_as_it_was(
    state: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    assert are_same(round_trip(state, folder / "tree.safetensors"), state)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 4)])
def test_a_tensor_of_any_dtype_comes_back(
    dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path
) -> None:
    state = {"a": tensor_of(dtype, shape), "b": tensor_of(torch.bool, (3,))}
    assert are_same(round_trip(state, tmp_path / "m.safetensors"), state)


@pytest.mark.parametrize(
    "value",
    [
        2**63 - 1,
        2**64,
        -(2**63) - 1,
        10**5000,
        -0.0,
        5e-324,
        1.0,
        1,
        True,
        (),
        [],
        {},
        {"$tuple": [1]},
        {"$dict": {"$dict": {}}},
        {"": {"": 1}, ".": 2},
        (1, [2, (3,)], {"a": (4.0,)}),
        "\ud800\u2028\x00",
        b"\x00\xff",
        np.float16(0.1),
        np.bool_(False),
    ],
    ids=lambda value: type(value).__name__,  # some have too many digits to show
)
def test_what_json_confuses_comes_back_as_it_was(value: Any, tmp_path: Path) -> None:
    assert are_same(round_trip({"value": value}, tmp_path / "m"), {"value": value})


def test_tensors_that_share_memory_come_back_each_with_its_own(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    state = {
        "whole": whole,
        "same": whole,
        "transposed": whole.T,
        "row": whole[1],
        "column": whole[:, 2],
        "repeated": whole[0].expand(5, 4),
        "flat": whole.view(-1)[5:9],
        "parameter": torch.nn.Parameter(whole),
        "array": whole.numpy(),
        "backwards": whole.numpy()[::-1],
        "conjugate": torch.complex(whole, whole).conj(),
    }
    found = round_trip(state, tmp_path / "m.safetensors")
    expected = {**state, "parameter": whole}
    assert are_same(found, expected)
    found["whole"].zero_()
    found["array"][:] = 0
    assert are_same({**found, "whole": whole, "array": whole.numpy()}, expected)


def test_what_is_read_does_not_change_with_its_file(tmp_path: Path) -> None:
    state = {"a": torch.arange(10_000), "b": np.arange(10_000)}
    found = round_trip(state, tmp_path / "m")
    size = (tmp_path / "m").stat().st_size
    with (tmp_path / "m").open("r+b") as file:
        file.write(bytes(size))
    assert are_same(found, state)


def test_arrays_that_may_not_be_written_are_saved_beside_tensors(tmp_path: Path) -> None:
    array = np.arange(3)
    array.flags.writeable = False
    state = {"a": array, "b": torch.zeros(2)}
    found = round_trip(state, tmp_path / "m")
    assert are_same(found, state)
    assert found["a"].flags.writeable


def test_a_file_is_one_that_other_programs_read(tmp_path: Path) -> None:
    weight, bias = torch.randn(3, 2), torch.randn(3, dtype=torch.bfloat16)
    state = {"pipeline": {"module": {"0.weight": weight, "0.bias": bias}}, "x": [np.arange(4)]}
    round_trip(state, tmp_path / "m.safetensors")
    found = safetensors.torch.load_file(tmp_path / "m.safetensors")
    assert sorted(found) == ["pipeline.module.0.bias", "pipeline.module.0.weight", "x.0"]
    assert bits(found["pipeline.module.0.bias"]) == bits(bias)
    assert bits(found["x.0"]) == np.arange(4).tobytes()


def test_ways_through_the_tree_that_read_alike_are_kept_apart(tmp_path: Path) -> None:
    state = {"a": {"b": torch.zeros(1)}, "a.b": torch.ones(1), "__metadata__": torch.ones(2)}
    assert are_same(round_trip(state, tmp_path / "m"), state)


def cyclic() -> dict[str, Any]:
    state: dict[str, Any] = {}
    state["again"] = state
    return state


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({1, 2}, "m.a.0: expected numbers, text, .* in the state, found a set; return plain data"),
        (deque(), "found a deque"),
        (OrderedDict(), "found a OrderedDict"),
        (Pair(1, 2), "found a Pair"),
        (Path(), "found a PosixPath"),
        (bytearray(), "found a bytearray"),
        (1j, "found a complex"),
        ({1: 2}, "m.a.0: expected text as keys in the state, found 1, a int; keep a list of pairs"),
        (cyclic(), "expected at most 100 levels in the state, found more; flatten it"),
        (np.array([object()]), "expected arrays of numbers .* found the dtype object; convert it"),
        (np.zeros(2, [("x", "f4")]), "found the dtype void"),
        (np.array(["a"]), "found the dtype str"),
        (np.array(["2020-01-01"], "M8[D]"), "found the dtype datetime64"),
        (np.zeros(2, np.complex128), "found the dtype complex128"),
        (np.ma.masked_array([1], [True]), "expected plain arrays in the state, found a Masked"),
        (np.str_("a"), "found a numpy str"),
        (np.datetime64("2020"), "found a numpy datetime64"),
        (np.longdouble(1), "expected a number of at most 64 bits"),
        (torch.zeros(2, dtype=torch.complex128), "expected tensors of numbers .* complex128"),
        (torch.zeros(2).to_sparse(), "expected dense tensors in the state, found the layout"),
        (torch.empty(2, device="meta"), "expected dense tensors .* found one without data"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_its_place(value: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        trees.encode({"a": [value]}, where="m")


def test_a_marker_of_a_later_version_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"expected a marker that is known, found \$set"):
        trees.decode({"$set": [1]}, trees.without_tensors)


def test_states_without_tensors_need_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, numpy as np; from streamflow.checkpoints import *\n"
        "identity = Identity('g', {})\n"
        f"with open_store(pathlib.Path({str(tmp_path)!r}), identity=identity, keep=1) as store:\n"
        "    store.write(Snapshot(states={'m': {'a': np.arange(3)}}))\n"
        "    found = store.latest()\n"
        "    assert found.state('m')['a'].tolist() == [0, 1, 2]\n"
        "    assert str(found.outline('m')['a']) == 'I64 (3)'\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
