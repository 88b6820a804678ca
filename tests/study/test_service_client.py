"""The client's words for what a server does: a stub that speaks as Ray's dashboard does, or as something else.

The real dashboard, with its token, is asked in tests/integration/test_submit.py. What cannot be had there is faked
here: another version of Ray, a server that is silent, one that is no dashboard at all.
"""

import json
import os
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import ray

from study.preflight import ClusterError
from study.service import client
from study.service.client import Cluster, _lines, _unanswered
from study.service.jobs import MARK


@contextmanager
def server(routes, seen=None):
    """Answers GET by path: `(status, body)`; a body that is no text is JSON."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if seen is not None:
                seen.append((self.path, dict(self.headers)))
            status, body = routes.get(self.path, (404, "404: Not Found"))
            data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", body)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}"
    finally:
        http.shutdown()
        http.server_close()
        thread.join(10)


def version(ray_version=ray.__version__):
    return {"/api/version": (200, {"version": "4", "ray_version": ray_version, "ray_commit": "c", "session_name": "s"})}


@pytest.fixture(autouse=True)
def _without_a_cluster_of_the_environment(monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


def refused(address):
    with pytest.raises(ClusterError) as error:
        Cluster(address)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_another_version_of_ray_is_named_with_ours():
    with server(version("2.9.3")) as url:
        said = refused(url)
    assert said.startswith(
        f"the cluster at {url} runs Ray 2.9.3, and this machine has {ray.__version__}; install ray==2.9.3"
    )


def test_a_version_older_than_jobs_is_refused_in_a_line():
    with server(version("1.8.0")) as url:
        assert "1.8.0" in refused(url)


@pytest.mark.parametrize(
    ("status", "said"),
    [(401, "wants a token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"), (403, "refuses this token")],
)
def test_a_server_that_refuses_is_not_quoted(status, said):
    # A server that is somebody else's could say anything.
    with server({"/api/version": (status, "call 555-0100\x1b[31m and pay")}) as url:
        line = refused(url)
    assert said in line
    assert "555" not in line


@pytest.mark.parametrize("body", ["<html>welcome</html>", "[]", "{}", '{"ray_version": "banana"}'])
def test_something_else_than_a_dashboard_is_said_to_be_none(body):
    with server({"/api/version": (200, body)}) as url:
        assert refused(url) == f"what answers at {url} is no Ray dashboard"
    with server({}) as url:
        assert refused(url) == f"what answers at {url} is no Ray dashboard"


def test_nobody_at_the_address_is_said_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        assert refused(url).startswith(f"no cluster at {url}: nobody answers")


def test_a_server_that_is_silent_is_not_waited_for_without_end(monkeypatch):
    monkeypatch.setattr(client, "ANSWER_WITHIN", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert refused(url) == f"the cluster at {url} does not answer"


@pytest.mark.parametrize(
    "address",
    ["auto", "127.0.0.1:8265", "ray://127.0.0.1:10001", "http://", "http://host:port", "http://host:8265/?x=1", "", "file:///etc",
     "http://[::1"],
)  # fmt: skip
def test_an_address_that_is_no_dashboards_is_refused_before_anything_is_asked(address):
    assert "write the address of the cluster's dashboard" in refused(address)


@pytest.mark.parametrize("rest", ["127.0.0.1:8265", "host:99999", "host:8265/?x=1", "[::1"])
def test_credentials_in_the_address_are_refused_and_not_repeated(rest):
    assert "s3cr3t" not in refused(f"http://ann:s3cr3t@{rest}")
    assert "leave credentials out" in refused("http://ann:s3cr3t@127.0.0.1:8265")


@pytest.mark.parametrize("name", ["RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"])
def test_the_environments_cluster_is_not_taken_for_the_one_that_was_named(name, monkeypatch):
    """Ray's own client would: it lets these two override its argument."""
    here, there = [], []
    with server(version(), there) as other, server(version(), here) as url:
        monkeypatch.setenv(name, other)
        Cluster(url)
        assert os.environ[name] == other
    assert here
    assert not there


def test_the_token_comes_from_rays_environment_and_is_sent_to_nobody_else(tmp_path):
    """In a process of its own: Ray reads a token once. A redirection to another host must not take it along."""
    (tmp_path / "token").write_text("b" * 64)
    seen, elsewhere = [], []
    with server(version(), elsewhere) as other:
        moved = {"/api/version": (307, f"{other.replace('127.0.0.1', 'localhost')}/api/version")}
        with server(version(), seen) as url, server(moved) as away:
            script = f"from study.service.client import Cluster; Cluster({url!r}); Cluster({away!r})"
            environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
            done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "b" * 64 not in done.stdout + done.stderr
    assert {headers.get("authorization", headers.get("Authorization")) for _, headers in seen} == {f"Bearer {'b' * 64}"}
    assert elsewhere
    assert not any("b" * 64 in str(headers) for _, headers in elsewhere)


# Jobs


def job(name, study, folder, status="RUNNING", started=1_000, **more):
    return {"type": "SUBMISSION", "submission_id": name, "status": status, "entrypoint": "x", "start_time": started,
            "metadata": {MARK: "0.1", "study": study, "folder": folder}, **more}  # fmt: skip


def cluster_of(*jobs):
    return server({**version(), "/api/jobs/": (200, list(jobs))})


def test_jobs_are_listed_latest_first_and_those_of_others_are_left_out():
    other = {**job("x", "x", "x"), "metadata": {"name": "somebody's"}}
    with cluster_of(job("a-1", "a", "/s/a", started=1_000), other, job("b-1", "b", "/s/b", started=5_000)) as url:
        assert [found.job for found in Cluster(url).jobs()] == ["b-1", "a-1"]


def test_a_study_means_its_latest_job_and_an_id_the_one_that_has_it():
    with cluster_of(job("a-1", "a", "/s/a", "FAILED", 1_000), job("a-2", "a", "/s/a", started=2_000)) as url:
        cluster = Cluster(url)
        assert cluster.job("a").job == cluster.job("/s/a").job == "a-2"
        assert cluster.job("a-1").job == "a-1"
        with pytest.raises(ClusterError, match=r"^c: no job of it at "):
            cluster.job("c")


def test_a_name_of_two_studies_has_to_be_told_apart():
    with cluster_of(job("a-1", "a", "/s/a"), job("a-2", "a", "/t/a")) as url:
        with pytest.raises(ClusterError, match="could be /s/a or /t/a"):
            Cluster(url).job("a")
        assert Cluster(url).job("/t/a").job == "a-2"


@pytest.mark.parametrize("name", ["../../api/version", "a/../b", "x?y", "", "nobody"])
def test_a_job_that_is_not_there_never_gets_into_an_address(name):
    seen = []
    with server({**version(), "/api/jobs/": (200, [job("a-1", "a", "/s/a")])}, seen) as url:
        cluster = Cluster(url)
        with pytest.raises(ClusterError, match="no such job"):
            list(cluster.logs(name))
        with pytest.raises(ClusterError, match="no such job"):
            cluster.stop_now(name)
    assert {path for path, _ in seen} == {"/api/version", "/api/jobs/"}


def test_a_study_whose_job_lives_is_not_submitted_again(tmp_path):
    (tmp_path / "s.yaml").write_text(
        "name: a\nquestion: '?'\nrecipe: {optimiser: sam}\ngrid: {gamma: [0.1]}\nstorage: /s\n"
    )
    for status, already in (("RUNNING", "running"), ("PENDING", "running")):
        with cluster_of(job("a-1", "a", "/s/a", status)) as url:
            done = Cluster(url).submit(tmp_path / "s.yaml", storage=None)
            assert (done.job, done.already, done.folder) == ("a-1", already, "/s/a")
            assert Cluster(url).resume("/s/a").job == "a-1"


def test_a_log_is_given_in_lines():
    with server({**version(), "/api/jobs/": (200, [job("a-1", "a", "/s/a")]),
                 "/api/jobs/a-1/logs": (200, {"logs": "one\ntwo\n"})}) as url:  # fmt: skip
        assert list(Cluster(url).logs("a-1")) == ["one", "two"]


def test_pieces_of_a_log_become_whole_lines():
    assert list(_lines(iter(["on", "e\ntw", "o\n\nthr", "ee"]))) == ["one", "two", "", "three"]


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("/bin/sh: 1: python: not found", "no `python` on its PATH"),
        ("/usr/bin/python: Error while finding module specification for 'study.service.probe' "
         "(ModuleNotFoundError: No module named 'study')", "no sharpness-study in its `python`"),
        ("Traceback ...\nMemoryError", "the preflight has failed on the head: MemoryError"),
        ("", "it has printed nothing"),
    ],
)  # fmt: skip
def test_a_head_that_cannot_look_says_why(log, said):
    assert said in _unanswered(log)
