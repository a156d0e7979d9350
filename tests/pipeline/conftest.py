import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from streamflow.pipeline.codegen import libraries

# Read before anything runs: torch's compiler sets it where it is not set.
SET_OUTSIDE = "TORCHINDUCTOR_CACHE_DIR" in os.environ
CUDA = [pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else []


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the compiled code of all test processes together, or where is set outside."""
    if libraries.find_compiler() is None:
        pytest.skip("no C++ compiler")
    with pytest.MonkeyPatch.context() as patch:
        if not SET_OUTSIDE:
            root = tmp_path_factory.getbasetemp()
            root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
            patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(root / "compiled"))
        yield libraries.cache_folder()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small networks lose more to intra-op threads than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["cpu", *CUDA])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where a network and its samples lie."""
    return torch.device(request.param)
