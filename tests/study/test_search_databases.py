"""A search in a real PostgreSQL server, and CMA-ES, whose state lives in the database."""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import optuna
import pytest
from test_search import accuracy, begin, complete, run

SERVER = shutil.which("initdb") or next(map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))), None)


def user():
    """PostgreSQL will not run as root: the account that it is run as, or None for our own."""
    if os.geteuid():
        return None
    import pwd

    return next((p for name in ("postgres", "nobody") for p in pwd.getpwall() if p.pw_name == name), None)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory):
    """The URL of a database in a server of our own."""
    if SERVER is None:
        pytest.skip("needs PostgreSQL's server (initdb)")
    pytest.importorskip("psycopg")
    place = Path("/tmp") / f"sharpness-study-pg-{os.getpid()}"  # a path that the other account may enter
    place.mkdir()
    account = user()
    if account:
        os.chown(place, account.pw_uid, account.pw_gid)

    def command(name, *arguments):
        program = str(Path(SERVER).resolve().with_name(name))
        more = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
        return subprocess.run(
            [program, *arguments], check=True, capture_output=True, text=True, cwd=place, timeout=60, **more
        )

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    data = str(place / "data")
    try:
        command("initdb", "-D", data, "-U", "owner", "-A", "trust", "--no-sync")
        options = f"-p {port} -h 127.0.0.1 -k {place} -F"
        command("pg_ctl", "-D", data, "-o", options, "-l", str(place / "log"), "-w", "start")
        try:
            yield f"postgresql+psycopg://owner@127.0.0.1:{port}/postgres"
        finally:
            command("pg_ctl", "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(place, ignore_errors=True)


def test_a_search_in_postgresql_goes_on_where_it_was_left(postgres):
    first = begin(postgres, cells=6)
    found = run(first, until=3)
    open_cell = first.ask()
    first.close()
    second = begin(postgres, cells=6)
    second.reconcile({})
    handed_again = second.ask()
    while handed_again.settings != open_cell.settings:  # what had ended is handed out again without a folder
        second.tell(handed_again.number, complete(accuracy(handed_again.settings)))
        handed_again = second.ask()
    second.tell(handed_again.number, complete(accuracy(handed_again.settings)))
    found += run(second)
    second.close()
    trials = optuna.load_study(study_name="toy.fsam", storage=postgres).trials
    cells = {t.user_attrs["cell"] for t in trials}
    assert len(cells) == 6


def test_two_arms_write_to_one_server_at_a_time(postgres):
    searches = [begin(postgres, cells=5, arm=arm) for arm in ("one", "two")]
    asked = [s.ask() for s in searches]
    for search, suggestion in zip(searches, asked, strict=True):
        search.tell(suggestion.number, complete(0.5))
        search.close()
    names = optuna.get_all_study_names(postgres)
    assert {"toy.one", "toy.two"} <= set(names)


def test_a_server_that_is_gone_is_one_line():
    from study.search_storage import SearchError

    start = time.monotonic()
    with pytest.raises(SearchError) as caught:
        begin("postgresql+psycopg://owner@127.0.0.1:9/searches?connect_timeout=2")
    assert "\n" not in str(caught.value)
    assert "cannot be opened" in str(caught.value)
    assert time.monotonic() - start < 30


def test_cma_es_learns_and_goes_on_from_the_database(tmp_path):
    url = f"sqlite:///{tmp_path}/search.db"
    first = begin(url, sampler="cmaes", cells=40, startup=5)
    early = run(first, until=20)
    first.close()
    second = begin(url, sampler="cmaes", cells=40, startup=5)
    late = run(second)
    second.close()
    assert len(early) + len(late) == 40
    mean = [sum(map(accuracy, part)) / len(part) for part in (early[:5], late[-10:])]
    assert mean[1] > mean[0]
    assert max(map(accuracy, late)) > 0.97
