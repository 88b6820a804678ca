"""What is written on a study's job, how one is read back, and what is uploaded."""

import hashlib
import json
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from study.files import StoreError
from study.service.client import apart
from study.service.jobs import MARK, job_of, metadata
from study.service.parcel import FILE, MOST, check_places, pack
from study.spec import Study, StudyError
from study.store import child

TEXT = """\
name: small
question: Does it work?   # kept as it is written
recipe: {dataset: digits, model: digits_cnn, epochs: 2, optimiser: sam}
grid: {gamma: [0.05, 0.1]}
storage: /shared/studies
"""


def study(**more):
    return Study.of(
        {
            "name": "small",
            "question": "?",
            "recipe": {"optimiser": "sam"},
            "grid": {"gamma": [0.05]},
            "storage": "/shared",
            **more,
        }
    )


def listed(**more):
    """A job as Ray's REST interface gives it."""
    written = metadata("small", "/shared/small", "/shared", TEXT)
    return {"submission_id": "small-1", "status": "RUNNING", "message": "Job is currently running.",
            "metadata": written, "start_time": 1_764_081_362_907, "end_time": None, "driver_exit_code": None,
            **more}  # fmt: skip


def test_a_job_says_whose_study_of_what_file_it_runs_and_is_read_back():
    written = listed()["metadata"]
    assert all(isinstance(value, str) for value in written.values())  # Ray takes nothing else
    assert written["file_sha256"] == hashlib.sha256(TEXT.encode()).hexdigest()
    assert "@" in written["submitted_by"]
    job = job_of(listed())
    assert (job.job, job.study, job.folder, job.state, job.message) == (
        "small-1",
        "small",
        "/shared/small",
        "running",
        "",
    )
    assert job.started == "2025-11-25T14:36:02+00:00"
    assert job.ended is None
    assert job.is_live


def test_no_secret_of_the_environment_is_written_on_a_job(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "s3cr3t-token")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t-key")
    assert "s3cr3t" not in json.dumps(metadata("small", "s3://b/small", "s3://b", TEXT))


@pytest.mark.parametrize(
    "other", [{}, None, {"name": "x"}, {MARK: "0.1"}, {"study": "small", "folder": "/shared/small"}]
)
def test_jobs_of_others_are_not_ours(other):
    assert job_of(listed(metadata=other)) is None


def test_a_driver_without_a_submission_is_not_ours():
    assert job_of(listed(submission_id=None)) is None


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        ("SUCCEEDED", 0, "done"),
        ("FAILED", 1, "some trials failed"),
        ("FAILED", 2, "its log says why"),
        ("FAILED", 3, "stopped by its budget"),
        ("FAILED", 130, "interrupted"),
        ("FAILED", 128 + signal.SIGKILL, "killed (SIGKILL)"),
        ("FAILED", -signal.SIGSEGV, "killed (SIGSEGV)"),
        ("STOPPED", None, "stopped at once"),
    ],
)
def test_how_a_job_ended_is_said_in_words(status, code, said):
    job = job_of(listed(status=status, driver_exit_code=code, message="Job entrypoint command failed\nwith its log"))
    assert said in job.message
    assert not job.is_live


def test_what_ray_says_of_a_job_that_never_began_is_kept_to_a_line():
    said = "Failed to start supervisor actor: no node\nTraceback ..." + "x" * 500
    assert job_of(listed(status="FAILED", message=said)).message == "Failed to start supervisor actor: no node"
    assert len(job_of(listed(status="FAILED", message="x" * 500)).message) == 200


# What is uploaded


def test_the_study_file_is_uploaded_as_it_was_written_and_nothing_else(tmp_path):
    pack(study(), TEXT, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert (tmp_path / FILE).read_text() == TEXT


def pretrained(path):
    recipe = {
        "dataset": "cifar10",
        "model": "resnet20",
        "optimiser": "sam",
        "pretrained": path,
        "validation_size": 5000,
        "augmentation": [],
    }
    return study(recipe=recipe)


def test_weights_with_a_relative_path_are_uploaded_under_that_path(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "weights").mkdir(parents=True)
    there.mkdir()
    (here / "weights" / "w.pt").write_bytes(b"weights")
    (here / "weights" / "other.pt").write_bytes(b"not named")
    monkeypatch.chdir(here)
    pack(pretrained("weights/w.pt"), TEXT, there)
    files = {str(p.relative_to(there)): p.read_bytes() for p in there.rglob("*") if p.is_file()}
    assert files == {FILE: TEXT.encode(), "weights/w.pt": b"weights"}


@pytest.mark.parametrize("path", ["/shared/w.pt", "hub:default", "hub:owner/name"])
def test_weights_that_every_node_finds_are_not_uploaded(path, tmp_path):
    if path == "hub:default":
        path = "hub:resnet18.tv_in1k"
    pack(pretrained(path), TEXT, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [FILE]


def test_more_than_the_head_takes_is_refused_with_its_size(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open("w.pt", "wb") as file:
        file.truncate(MOST + 1)
    (tmp_path / "there").mkdir()
    with pytest.raises(StudyError, match=r"w\.pt: 99\.9 MiB of 99\.9 MiB to upload, and the cluster takes 99\.9 MiB"):
        pack(pretrained("w.pt"), TEXT, tmp_path / "there")


def test_weights_that_are_missing_are_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StudyError, match=r"cannot read w\.pt: No such file"):
        pack(pretrained("w.pt"), TEXT, tmp_path)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: study(storage="results"), "storage: results is a relative path"),
        (lambda: study(data="sets"), "data: sets is a relative path"),
        (lambda: pretrained("../w.pt"), "leads out of this folder"),
    ],
)
def test_places_that_differ_from_node_to_node_are_refused(made, said):
    with pytest.raises(StudyError, match=said):
        check_places(made())


def test_places_that_all_nodes_see_are_taken():
    check_places(study(storage="s3://bucket/studies", data="~/sets"))
    check_places(study(storage="/shared", data="/sets"))


def test_a_storage_with_credentials_is_refused():
    with pytest.raises(StoreError, match="leave credentials out"):
        check_places(study(storage="s3://key:secret@bucket/studies"))


# A folder and its name


@given(
    st.sampled_from(
        ["/shared", "/a b/c", "s3://bucket", "s3://bucket/a/b", "s3://bucket/a?region=eu-north-1", "gs://b"]
    ),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,20}", fullmatch=True),
)
def test_a_folder_is_taken_apart_as_it_was_put_together(storage, name):
    assert apart(child(storage, name)) == (storage, name)


@pytest.mark.parametrize("uri", ["/shared/..", "/shared/.preflight-1", "s3://bucket/a b", "/shared/$(x)", "/"])
def test_a_folder_whose_name_is_no_studys_is_refused(uri):
    with pytest.raises(StoreError, match="no study's folder"):
        apart(uri)
