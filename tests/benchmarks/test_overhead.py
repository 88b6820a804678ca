"""The benchmark of a trial's overhead takes the difference of whole processes, alike for all."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import made_up, overhead
from benchmarks.__main__ import main
from benchmarks.processes import fresh

SMALLEST = overhead.Scale(few=1, many=3, rounds=1)

#: Seconds that a trial costs in a made-up world, in which each process starts in 5 s.
COSTS = {overhead.OURS: 0.2, overhead.STILL: 0.1, overhead.FUNCTION: 2.0, overhead.CLASS: 0.1, overhead.BARE: 0.05}


def test_a_further_trial_is_free_of_the_start_and_each_has_its_ratio(monkeypatch):
    def pretended(module, function, **given):
        if function == "template":
            return [], SimpleNamespace(seconds=1.0)
        if module == "benchmarks.still":
            cells = json.loads(Path(given["file"]).read_text())["grid"]
            name, trials = overhead.STILL, len(cells["gamma"]) * len(cells["eta"])
        else:
            settings = {key: given[key] for key in ("as_function", "loggers")}
            name = next(name for name, of in overhead.PEERS.items() if of == settings)
            trials = given["trials"]
        return {}, SimpleNamespace(seconds=5 + trials * COSTS[name])

    monkeypatch.setattr(overhead, "fresh", pretended)
    monkeypatch.setattr(overhead, "_check", lambda *_: None)
    monkeypatch.setattr(overhead, "_ours", lambda scratch, trials, cpus: 5 + trials * COSTS[overhead.OURS])
    result = overhead.measure(overhead.Scale(few=2, many=12, rounds=2))
    assert set(overhead.GOALS) <= set(result.ratios)
    for name, cost in COSTS.items():
        assert result.samples[f"a further trial: {name}"].median == pytest.approx(cost)
        assert result.samples[f"12 trials, the process: {name}"].median == pytest.approx(5 + 12 * cost)
    assert result.ratios[f"a further trial: ours / {overhead.FUNCTION}"].median == pytest.approx(0.1)
    assert result.ratios[f"a further trial: ours / {overhead.CLASS}"].median == pytest.approx(2)
    assert result.ratios[f"12 trials, the process: ours / {overhead.CLASS}"].median == pytest.approx(7.4 / 6.2)


def test_a_study_that_is_not_complete_is_no_measurement(tmp_path):
    from study.plan import make_plan
    from study.spec import Study
    from study.store import StudyFolder

    study = Study.load(made_up.study_file(tmp_path, "nothing", 2, 1), ())
    folder = StudyFolder(str(tmp_path / "nothing"))
    folder.save_study(study.model_dump(mode="json"), "", make_plan(study, folder).rows())
    with pytest.raises(RuntimeError, match=r"not every trial is complete: {'missing': 2}"):
        overhead._check(tmp_path, 2)


@pytest.mark.long
def test_the_peers_function_reports_each_epoch_of_each_trial(tmp_path):
    template, _ = fresh("benchmarks.made_up", "template")
    given = {"trials": 2, "epochs": 3, "cpus": 2, "loggers": True, "storage": str(tmp_path), "name": "peer"}
    found, _ = fresh("benchmarks.plain_tune", "run", **given, template=template, as_function=True)
    assert found["results"] == 6
    reports = [path.read_text().splitlines() for path in tmp_path.rglob("result.json")]
    assert [len(lines) for lines in reports] == [3, 3]
    rows = [json.loads(line) for lines in reports for line in lines]
    assert len({row["pid"] for row in rows}) == 2  # an actor of its own for each trial
    assert set(template[0]) <= set(rows[0])


@pytest.mark.long
def test_a_record_has_every_contender(tmp_path, monkeypatch):
    monkeypatch.setattr(overhead, "QUICK", SMALLEST)
    assert main(["--quick", "--record", "--folder", str(tmp_path), "overhead"]) == 0
    (path,) = tmp_path.iterdir()
    record = json.loads(path.read_text())
    assert set(overhead.GOALS) <= set(record["ratios"])
    assert all(record["samples"][f"3 trials, the process: {name}"]["median"] > 0 for name in COSTS)
