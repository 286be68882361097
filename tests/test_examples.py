"""The notebook runs, and is committed as a run left it."""

from pathlib import Path

import nbformat
import pytest

PATH = Path(__file__).resolve().parents[1] / "examples/python.ipynb"


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell: nbformat.NotebookNode) -> list[str]:
    """The kinds of a cell's outputs; a warning would be a stream called stderr."""
    return [output.get("name", output.output_type) for output in cell.outputs]


def test_its_outputs_are_those_of_one_run_from_the_top():
    cells = code_cells(nbformat.read(PATH, as_version=4))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell.outputs for cell in cells)
    assert {kind for cell in cells for kind in kinds(cell)} <= {
        "stdout",
        "execute_result",
        "display_data",
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("default:::(zmq|jupyter_client|nbclient|tornado)")
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(PATH, as_version=4)
    before = [kinds(cell) for cell in code_cells(notebook)]
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert [kinds(cell) for cell in code_cells(notebook)] == before
    assert list(tmp_path.iterdir()) == []
