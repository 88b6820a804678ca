"""A study as its folder holds it is the study that was run: `study resume` needs no file."""

import json
from pathlib import Path

import pytest

from study.cli import main
from study.lock import hold
from study.spec import Study, StudyError
from study.store import StudyFolder

FILES = sorted((Path(__file__).parents[2] / "studies").glob("*.yaml"))


def stored(study):
    """As it comes back from a folder."""
    return json.loads(json.dumps(study.model_dump(mode="json")))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_study_comes_back_as_it_was(file):
    study = Study.load(file)
    again = Study.frozen(stored(study))
    assert stored(again) == stored(study)
    assert again.points == study.points
    if study.small:
        small = Study.load(file, small=True)
        assert Study.frozen(stored(small)).points == small.points


CONTENT = """\
name: n
question: q
recipe: {dataset: synthetic, model: mlp, epochs: 4, batch_size: 32}
arms: {sam: {optimiser: sam}, sgd: {optimiser: sgd}}
grid: {gamma: [0.1, 0.2]}
exceptions:
- {when: {gamma: 0.2}, set: {lr: 0.5}}
budget: {wall: 2 h}
price: 2 EUR
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "n.yaml"
    path.write_text(CONTENT)
    return path


def test_a_study_that_was_narrowed_beside_its_exceptions_can_be_resumed(file):
    study = Study.load(file, ["gamma=[0.1]"])
    with pytest.raises(StudyError):
        Study.of(stored(study))  # as a new file it would be a slip of the pen
    assert Study.frozen(stored(study)).points == study.points


def test_a_study_that_was_narrowed_to_an_arm_that_leaves_an_axis_unused_can_be_resumed(file):
    study = Study.load(file, ['arms={"sgd": {"optimiser": "sgd"}}', "exceptions=[]"])
    assert study.grid == {"gamma": [0.1, 0.2]}
    assert Study.frozen(stored(study)).points == study.points


def test_settings_above_it_are_the_files_own(file):
    study = Study.load(file)
    more = Study.frozen(stored(study), ["budget.wall=4 h", "epochs=2", "gamma=[0.3]"])
    assert more.budget.wall == 4 * 3600
    assert {(r.epochs, r.gamma) for _, r in more.points} == {(2, 0.3), (2, None)}
    assert stored(study)["budget"]["wall"] == 2 * 3600
    for wrong, said in (("gama=1", "unknown"), ("epochs", "write key=value"), ("epochs=x", "recipe.epochs")):
        with pytest.raises(StudyError, match=said):
            Study.frozen(stored(study), [wrong])


# The verb: what is refused before anything is run


def refused(capsys, *arguments):
    assert main(["resume", *map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_what_cannot_be_resumed_is_said_in_a_line(file, tmp_path, capsys):
    folder = StudyFolder(str(tmp_path / "results" / "n"))
    assert "holds no study" in refused(capsys, folder.uri)
    folder.save_spec(stored(Study.load(file)))
    assert "holds no study yet" in refused(capsys, folder.uri), "its file is missing"
    folder.write(CONTENT.encode(), "study.yaml")
    assert "a folder keeps its study's name" in refused(capsys, folder.uri, "--set", "name=other")
    assert "--restarts is for a job" in refused(capsys, folder.uri, "--restarts", "1")
    assert "a job runs the study as its folder has it" in refused(
        capsys, folder.uri, "--set", "epochs=2", "--address", "http://127.0.0.1:1"
    )
    assert "--cpus is for a cluster of our own" in refused(
        capsys, folder.uri, "--cpus", "1", "--address", "127.0.0.1:1"
    )
    with hold(folder, "r1"):
        assert "is being run by" in refused(capsys, "n", "--storage", tmp_path / "results")
