"""Every notebook runs from start to end on a small study that is trained here, and says what it did; and what it is
committed with are the outputs of a run to its end.

The committed numbers are of real studies that no test has: what is tested of them is that nothing failed, that they
were made in order by one run, and that no machine shows.
"""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from trained_study import LABEL_NOISE, SENSITIVITY, trained

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST = 400_000

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
    "toy_landscape": (
        r"flat: \(mu, sigma\) = \(19\.85, 29\.95\), loss 0\.51, Hessian trace 0\.001",
        r"sharp: \(mu, sigma\) = \(-15\.94, 13\.46\), loss 0\.49, Hessian trace 0\.006",
        r"sam, gamma 1\.1 +sharp +True",
        r"fsam, gamma 1\.1 +flat +False",
        r"asam_eq5, gamma 0\.6 +sharp +True",
    ),
}
#: How many pictures each shows at least, whatever study it reads.
PICTURES = {"theory": 6, "toy_landscape": 4, "sensitivity": 1, "label_noise": 1, "perturbation": 2}


def printed(notebook):
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            found += [output.get("text", ""), output.get("data", {}).get("text/plain", "")]
    return "\n".join(found)


def pictures(notebook):
    outputs = [o.get("data", {}) for c in notebook.cells for o in c.get("outputs", ())]
    return sum("image/png" in data or "image/jpeg" in data for data in outputs)


def shown(notebook):
    """The HTML with which the study shows itself."""
    outputs = [o.get("data", {}) for c in notebook.cells for o in c.get("outputs", ())]
    return next(data["text/html"] for data in outputs if "<strong>" in data.get("text/html", ""))


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Run a notebook in a folder of its own, beside a folder of results; `changed` replaces text of its cells."""
    for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(threads, "1")
    # nothing of the user's own Jupyter or IPython settings
    for variable in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))

    def run(name, changed=()):
        notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        for old, new in changed:
            (cell,) = [cell for cell in notebook.cells if old in cell.source]
            cell.source = cell.source.replace(old, new)
        folder = tmp_path / "notebooks"
        folder.mkdir()
        resources = {"metadata": {"path": str(folder)}}
        NotebookClient(notebook, timeout=180, kernel_name="python3", resources=resources).execute()
        assert list(folder.iterdir()) == []  # it leaves nothing behind
        assert pictures(notebook) >= PICTURES[name]
        return notebook

    return run


def test_these_are_the_notebooks():
    assert {path.stem for path in NOTEBOOKS} == set(PICTURES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_with_the_outputs_of_one_run_to_its_end(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [o for cell in code for o in cell.outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert pictures(notebook) >= PICTURES[path.stem]
    for pattern in SAYS.get(path.stem, ()):
        assert re.search(pattern, printed(notebook))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_committed_notebook_is_large_or_names_a_machine(path):
    text = path.read_text()
    assert len(text) < LARGEST
    without_pictures = re.sub(r'"image/\w+": "[^"]*"', "", text)
    assert not re.search(r"/(home|work|root|tmp|Users|mnt)/|\b\d+\.\d+\.\d+\.\d+\b", without_pictures)


@pytest.mark.parametrize("name", ["theory", "toy_landscape"])
def test_a_notebook_without_a_study_runs_and_says_its_results(name, execute):
    text = printed(execute(name))
    for pattern in SAYS[name]:
        assert re.search(pattern, text), f"{name} did not print {pattern!r}; it printed:\n{text}"


def test_the_sensitivity_notebook_reads_the_study_that_it_is_told(execute, tmp_path):
    study = trained(SENSITIVITY, tmp_path / "results/mine", missing=(1,))
    notebook = execute("sensitivity", [("../results/digits_sensitivity", "../results/mine")])
    text, cells = printed(notebook), study.cells()
    assert "6 of 7 cells are complete" in text
    best = cells[cells["best"]].iloc[0]
    rivals = int(cells["indistinguishable"].sum())
    assert re.search(rf"not told apart from {best['arm']}\b.*: {rivals} of 5 cells \(n=2\)", text)
    assert re.search(r"^3 pairs \(n=2\): \d above SAM, \d below, \d equal", text, re.MULTILINE)
    assert "How sensitive is &lt;Fisher SAM&gt; to gamma &amp; eta?" in shown(notebook)
    assert "7 (6 complete, 1 missing) in 3 arms" in shown(notebook)
    assert "../results/mine" in shown(notebook)


def test_the_label_noise_notebook_has_each_arm_at_each_rate(execute, tmp_path):
    study = trained(LABEL_NOISE, tmp_path / "results/table4_label_noise_small")
    notebook = execute("label_noise")
    text = printed(notebook)
    cells = study.cells()
    for _, cell in cells.iterrows():
        assert f"{100 * cell['mean']:.1f}" in text
    remembered = study.replicates().groupby("cell")["memorised"].mean().dropna()
    assert len(remembered) == 3
    for value in remembered:
        assert f"{100 * value:.1f}" in text
    assert re.search(r"rate 0\.5: least memorised by \w+, most accurate \w+; rank correlation \S+ over 3 arms", text)
    assert "validation_labels: clean" in text
    assert shown(notebook).count("best by validation") == 2  # one a rate


def test_the_perturbation_notebook_says_what_was_lost(execute, tmp_path):
    study = trained(LABEL_NOISE, tmp_path / "results/table4_label_noise_small")
    text = printed(execute("perturbation", [("ALPHA = 1.0", "ALPHA = 1.9")]))
    assert "percentage points lost at alpha 2, mean over 3 arms (n=2 each)" in text
    rows = study.measures("perturbation").query("direction == 'adversarial' and batch_norm == 'kept'")
    wide = rows.pivot_table(index=["cell", "seed"], columns="alpha", values="test_accuracy")
    lost = (wide[0.0] - wide[2.0]).groupby("cell").mean()
    for value in lost:
        assert f"{100 * value:+.2f}" in text
