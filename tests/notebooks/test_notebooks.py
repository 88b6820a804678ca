"""Every notebook runs from start to end with the project's packages alone, in an empty folder, and says what it did.

Notebooks are committed without outputs: what they show is made where they run, and a change of a number is a failing
test here instead of a difference in a picture's bytes.
"""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

#: What each notebook must have printed.
SAYS = {
    "theory": (
        r"limit of the ratio: 0\.500",
        r"alpha with replacement equals M: True",
        r"alpha without equals the paper's: True",
        r"E = KL\s+\(-16\.80, 12\.80\)  loss 0\.28",
        r"E = KL \+ 1/2\s+\( 19\.85, 29\.95\)  loss 0\.51  Hessian trace 0\.001",
        r"E = KL \+ 1/2\s+\(-15\.94, 13\.46\)  loss 0\.49  Hessian trace 0\.006",
        r"sam, gamma 1\.1: sharp minimum",
        r"fsam, gamma 1\.1: flat basin",
    ),
}


def printed(notebook):
    return "\n".join(
        output.text
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "text" in output
    )


def test_there_are_notebooks_to_run():
    assert set(SAYS) <= {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_without_outputs_or_machine_paths(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not re.search(r"/(home|work|root|tmp|Users)/", cell.source)
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_to_its_end_and_says_its_results(path, tmp_path, monkeypatch):
    for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(threads, "1")
    # nothing of the user's own Jupyter or IPython settings
    for variable in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
    notebook = nbformat.read(path, as_version=4)
    run = tmp_path / "run"
    run.mkdir()
    NotebookClient(notebook, timeout=180, kernel_name="python3", resources={"metadata": {"path": str(run)}}).execute()
    text = printed(notebook)
    for pattern in SAYS.get(path.stem, ()):
        assert re.search(pattern, text), f"{path.name} did not print {pattern!r}; it printed:\n{text}"
    assert list(run.iterdir()) == []  # it leaves nothing behind
    if path.stem in SAYS:
        pictures = [o for c in notebook.cells for o in c.get("outputs", ()) if "image/png" in o.get("data", {})]
        assert len(pictures) >= 6
