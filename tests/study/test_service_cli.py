"""The verbs submit, list and logs, as far as they need no cluster; tests/integration/test_submit.py has one."""

import json

import pytest

from study.cli import main, submitting
from study.service.client import Submitted
from study.service.jobs import Job
from study.spec import Study
from study.store import StudyFolder


def folder(storage, name, cells=2):
    """A study that was planned and has not run."""
    study = Study.of(
        {"name": name, "question": "?", "recipe": {"optimiser": "sam"}, "grid": {"gamma": [0.1, 0.2][:cells]}}
    )
    made = StudyFolder(str(storage / name))
    from study.plan import make_plan

    made.save_study(study.model_dump(mode="json"), "name: x\n", make_plan(study, made).rows())
    return made


def test_the_studies_of_a_storage_are_listed_and_what_is_none_is_left_out(tmp_path, capsys):
    folder(tmp_path, "one")
    folder(tmp_path, "two", cells=1)
    (tmp_path / "somebody's folder").mkdir()
    (tmp_path / "no_study").mkdir()
    (tmp_path / ".preflight-0").mkdir()
    assert main(["list", "--storage", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["study", "one", "two"]
    assert "2 missing of 2" in lines[1]
    assert "1 missing of 1" in lines[2]
    assert lines[1].endswith("nobody")
    assert main(["list", "--storage", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["studies"]
    assert [(row["study"], row["folder"], row["replicates"]["planned"]) for row in found] == [
        ("one", str(tmp_path / "one"), 2),
        ("two", str(tmp_path / "two"), 1),
    ]


def test_a_damaged_study_is_told_and_the_others_are_listed(tmp_path, capsys):
    folder(tmp_path, "one")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "study.json").write_text('{"schema"')
    assert main(["list", "--storage", str(tmp_path)]) == 2
    seen = capsys.readouterr()
    assert "one" in seen.out
    assert seen.err.startswith("study: ")
    assert "bad/study.json is damaged" in seen.err


def test_a_storage_that_is_empty_has_no_studies_and_none_at_all_is_no_question(tmp_path, capsys):
    assert main(["list", "--storage", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "no studies\n"
    assert main(["list"]) == 2
    assert "--address" in capsys.readouterr().err


FILE = "name: small\nquestion: '?'\nrecipe: {optimiser: sam}\ngrid: {gamma: [0.1]}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--storage", "results"], "storage: results is a relative path"),
        (["--storage", "/s", "--set", "gama=1"], "gama"),
        (["--storage", "s3://key:secret@bucket/x"], "leave credentials out"),
        (["--storage", "/s", "--restarts", "-1"], "is below 0"),
        (["--storage", "/s"], "nobody answers"),
    ],
)
def test_what_is_wrong_is_said_in_lines(arguments, said, tmp_path, capsys):
    (tmp_path / "s.yaml").write_text(FILE)
    try:
        code = main(["submit", str(tmp_path / "s.yaml"), "--address", "http://127.0.0.1:1", *arguments])
    except SystemExit as error:
        code = error.code
    assert code == 2
    seen = capsys.readouterr()
    assert said in seen.err
    assert "secret" not in seen.err
    assert seen.out == ""


class Fake:
    """A cluster that answers as it is told."""

    address = "http://127.0.0.1:8265"
    done = Submitted("small-1", "small", "/s/small", None, "job small-1 runs small in /s/small")

    def submit(self, file, *, show, **more):
        self.asked = more
        show("the table")
        return self.done

    def jobs(self):
        return [
            Job("small-1", "small", "/s/small", "failed", "2026-11-25T14:36:02+00:00", None, "stopped by its budget")
        ]

    def job(self, name):
        return self.jobs()[0]

    def logs(self, job, follow):
        yield from ("one", "two")


@pytest.fixture
def fake(monkeypatch):
    cluster = Fake()
    monkeypatch.setattr(submitting, "reached", lambda address: cluster)
    return cluster


def submit(tmp_path, *arguments):
    (tmp_path / "s.yaml").write_text(FILE)
    return main(["submit", str(tmp_path / "s.yaml"), "--address", Fake.address, "--storage", "/s", *arguments])


def test_a_submission_prints_its_job_and_what_to_do_next(fake, tmp_path, capsys):
    assert submit(tmp_path, "--restarts", "3", "--set", "epochs=2", "--data", "/sets") == 0
    assert capsys.readouterr().out.splitlines() == [
        "the table",
        "job small-1 runs small in /s/small",
        "  study watch /s/small --wait 300",
        "  study logs small-1 --address http://127.0.0.1:8265 --follow",
        "  study stop /s/small",
        "  http://127.0.0.1:8265/#/jobs",
    ]
    assert fake.asked == {"storage": "/s", "settings": ["epochs=2"], "restarts": 3, "small": False, "data": "/sets"}


def test_as_json_standard_output_is_one_document(fake, tmp_path, capsys):
    assert submit(tmp_path, "--json") == 0
    seen = capsys.readouterr()
    assert json.loads(seen.out)["job"] == "small-1"
    assert seen.err == "the table\n"


def test_a_finished_study_is_to_be_read_and_not_to_be_watched(fake, tmp_path, capsys):
    fake.done = Submitted(None, "small", "/s/small", "finished", "nothing is missing")
    assert submit(tmp_path) == 0
    assert capsys.readouterr().out.splitlines() == ["the table", "nothing is missing", "  study report /s/small"]


def test_a_study_that_runs_without_a_job_has_no_log_to_follow(fake, tmp_path, capsys):
    fake.done = Submitted(None, "small", "/s/small", "running", "it is being run by ann@node7")
    assert submit(tmp_path) == 0
    assert "study logs" not in capsys.readouterr().out


def test_jobs_are_listed_with_how_they_ended(fake, capsys):
    assert main(["list", "--address", Fake.address]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["job", "study", "state", "started", "ended"]
    assert row.split() == [
        "small-1",
        "small",
        "failed",
        "2026-11-25",
        "14:36:02",
        "UTC",
        "stopped",
        "by",
        "its",
        "budget",
    ]


def test_a_log_that_was_followed_ends_with_how_the_job_did(fake, capsys):
    assert main(["logs", "small", "--address", Fake.address]) == 0
    assert capsys.readouterr().out == "one\ntwo\n"
    assert main(["logs", "small", "--address", Fake.address, "--follow"]) == 0
    assert capsys.readouterr().out == "one\ntwo\njob small-1 failed: stopped by its budget\n"
