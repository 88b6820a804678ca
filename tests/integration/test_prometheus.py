"""Every query of the dashboard against a real Prometheus that scrapes a real study on a real Ray cluster."""

import json
import os
import shutil
import subprocess
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path

import processes
import pytest
from cluster import ACCESS, Node, free_port
from processes import descendants, end, start_study, wait_for

from study.reader import open_study

PROMETHEUS = shutil.which("prometheus") or os.environ.get("PROMETHEUS", "")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not PROMETHEUS, reason="prometheus is not installed (Debian package prometheus)"),
]

DEPLOY = Path(__file__).parents[2] / "deploy" / "grafana"
DASHBOARD = json.loads((DEPLOY / "study.json").read_text())

STUDY = {
    "name": "seen",
    "question": "Is it seen?",
    "recipe": {"dataset": "synthetic", "model": "mlp", "batch_size": 8, "epochs": 20_000, "lr": 0.05},
    "arms": {"fsam": {"optimiser": "fsam"}, "sgd": {"optimiser": "sgd"}},
    "grid": {"gamma": [0.05, 0.5]},
    "resources": {"cpu": 1, "gpu": 0},
    "price": "3.60 EUR",
    "budget": {"cost": 100},
}

#: A CPU has no such memory, and a healthy study skips no step.
NOTHING = {"Device memory of a trial's worker", "Skipped steps"}


class Prometheus:
    def __init__(self, folder, ray):
        config = (DEPLOY / "prometheus.yml").read_text().replace("/tmp/ray/", f"{ray}/").replace("10s", "2s")
        (folder / "prometheus.yml").write_text(config)
        self.url = f"http://127.0.0.1:{free_port()}"
        self.log = folder / "prometheus.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [PROMETHEUS, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
                 f"--web.listen-address={self.url.removeprefix('http://')}"],
                stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def ask(self, query):
        """The result of an instant query."""
        address = f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        with urllib.request.urlopen(address, timeout=10) as answer:
            content = json.load(answer)
        assert content["status"] == "success", content
        return content["data"]["result"]

    def up(self):
        try:
            return self.ask("up") or True
        except OSError:
            return False


def queries():
    return [(p["title"], t["expr"]) for p in DASHBOARD["panels"] for t in p["targets"]]


def filled(query):
    return query.replace("$study", "seen").replace("$arm", ".*").replace("$__rate_interval", "1m")


@pytest.fixture(scope="module")
def scraped(tmp_path_factory):
    """Prometheus and the folder of a study that is in training: with its driver its series end."""
    path = tmp_path_factory.mktemp("seen")
    file = path / "seen.yaml"
    file.write_text(json.dumps(STUDY))
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="ray-prom-", ignore_cleanup_errors=True) as temporary,
    ):
        for key, value in ACCESS.items():
            patch.setitem(processes.ENVIRONMENT, key, value)
        port, ray = free_port(), f"{temporary}/0"
        head = Node(
            ["--head", f"--port={port}", "--include-dashboard=true", "--dashboard-host=127.0.0.1",
             f"--dashboard-port={free_port()}", "--num-cpus=2", "--num-gpus=0", "--no-monitor",
             f"--ray-client-server-port={free_port()}", f"--temp-dir={ray}"],
            temporary, {"RAY_metrics_report_interval_ms": "5000"},
        )  # fmt: skip
        prometheus = process = None
        family = []
        try:
            wait_for(lambda: "Ray runtime started" in head.log.read_text(), seconds=120)
            prometheus = Prometheus(path, ray)
            wait_for(prometheus.up, seconds=60)
            process = start_study("run", file, "--storage", path, "--no-report", "--address", f"127.0.0.1:{port}")
            wait_for(lambda: len(prometheus.ask('ray_study_epoch{study="seen"} > 5')) >= 2, seconds=200, every=1)
            wait_for(lambda: prometheus.ask(filled(RATE)), seconds=60, every=1)
            family = descendants(process.pid)
            yield prometheus, path / "seen", process
        finally:
            if process:
                end(process, family)
            if prometheus:
                prometheus.process.terminate()
                prometheus.process.wait(30)
            head.remove()


RATE = next(expr for _, expr in queries() if "rate(" in expr)


@pytest.mark.parametrize(("title", "query"), queries())
def test_every_query_of_the_dashboard_finds_something(scraped, title, query):
    found = scraped[0].ask(filled(query))
    assert found or title in NOTHING, query


def test_the_variables_find_the_study_and_its_arms(scraped):
    prometheus = scraped[0]
    for variable in DASHBOARD["templating"]["list"][1:]:
        metric, name = variable["definition"].removeprefix("label_values(").removesuffix(")").rsplit(", ", 1)
        values = {row["metric"][name] for row in prometheus.ask(filled(metric))}
        assert values == ({"seen"} if name == "study" else {"fsam", "sgd"})


def test_what_prometheus_has_is_what_the_study_recorded(scraped):
    prometheus, folder, _ = scraped
    before = {row["metric"]["cell"]: float(row["value"][1]) for row in prometheus.ask("ray_study_epoch")}
    values = {row["metric"]["cell"]: float(row["value"][1]) for row in prometheus.ask("ray_study_train_loss_nats")}
    after = {row["metric"]["cell"]: float(row["value"][1]) for row in prometheus.ask("ray_study_epoch")}
    # The records are written every few seconds: wait for those epochs.
    (history,) = wait_for(lambda: _covers(open_study(str(folder)).history(), after), seconds=60, every=1)
    for name, value in values.items():
        rows = history[history["cell"].str.startswith(name.rsplit(" ", 1)[1])]
        near = rows[rows["epoch"].between(before[name] - 1, after[name] + 1)]["train_loss"]
        assert any(abs(value - known) < 1e-9 for known in near), (name, value)
    states = prometheus.ask("sum by (study) (ray_study_cells)")
    assert [float(row["value"][1]) for row in states] == [3.0]
    (cost,), (used,) = (
        prometheus.ask(q) for q in ("ray_study_cost_used", 'ray_study_device_used_seconds{device="cpu"}')
    )
    # 3.60 an hour is a thousandth a second; the two were read one after the other.
    assert float(cost["value"][1]) == pytest.approx(float(used["value"][1]) / 1000, abs=0.02)
    assert cost["metric"]["currency"] == "EUR"


def _covers(history, epochs):
    last = history.groupby("cell")["epoch"].max()
    known = {cell[:6]: epoch for cell, epoch in last.items()}
    return [history] if all(known.get(n.rsplit(" ", 1)[1], 0) >= e for n, e in epochs.items()) else []


def test_the_dashboard_is_whole():
    titles = [p["title"] for p in DASHBOARD["panels"]]
    assert len(set(titles)) == len(titles)
    boxes = [p["gridPos"] for p in DASHBOARD["panels"]]
    places = [(x, y) for b in boxes for x in range(b["x"], b["x"] + b["w"]) for y in range(b["y"], b["y"] + b["h"])]
    assert len(set(places)) == len(places), "panels lie over each other"
    assert all(x < 24 for x, _ in places)
