"""What docs/embedding.md says of notebooks, in a real kernel."""

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

TEXT = (Path(__file__).parents[1] / "docs/embedding.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_graph_stays_open_from_cell_to_cell(tmp_path: Path) -> None:
    section = TEXT.split("## In a notebook", 1)[1]
    cells = re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    made: Any = nbformat.v4  # its functions have no types
    notebook = made.new_notebook(cells=[made.new_code_cell(text) for text in cells])
    NotebookClient(notebook, timeout=60, resources={"metadata": {"path": tmp_path}}).execute()
    [result], [stats], ended = (cell.outputs for cell in notebook.cells[2:])
    value = eval(result.data["text/plain"])
    assert value["prediction"] == pytest.approx(value["target"], abs=0.1)
    assert value["step"] == 199
    assert "received=200, sent=200" in stats.data["text/plain"]
    assert not ended
