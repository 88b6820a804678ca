"""A plan is the difference between what a study asks and what its folder has."""

import resource
import subprocess
import sys

import pytest
from recorded import decided, ended

from study.plan import make_plan, trial_id
from study.spec import Study, StudyError
from study.store import StudyFolder

CONTENT = {
    "name": "p",
    "question": "q",
    "recipe": {"dataset": "synthetic", "model": "mlp", "epochs": 9, "batch_size": 32},
    "arms": {"fsam": {"optimiser": "fsam"}, "sam": {"optimiser": "sam"}, "sgd": {"optimiser": "sgd"}},
    "grid": {"gamma": [0.05, 0.1], "eta": [0.1, 1.0]},
    "seeds": [0, 1],
}


@pytest.fixture
def folder(tmp_path):
    return StudyFolder(str(tmp_path / "p"))


def plan(folder, **changes):
    return make_plan(Study.of({**CONTENT, **changes}), folder)


def finish(folder, trial, status="complete", epoch=9, scheduler="fifo"):
    ended(folder,
        trial.id,
        [
            {"cell": trial.cell.id, "seed": s, "status": status, "epoch": epoch, "scheduler": scheduler,
             "validation_accuracy": 0.5}
            for s in trial.seeds
        ],
    )  # fmt: skip


def decision(cell):
    return {
        "cell": cell, "rung": 1, "epoch": 1, "value": 0.1, "cutoff": 0.5, "rank": 3, "n": 3, "stop": True,
        "scheduler": "asha(grace_period=1, reduction_factor=3)", "run": "r", "sequence": 1,
    }  # fmt: skip


def test_an_empty_folder_misses_everything_once(folder):
    p = plan(folder)
    assert [len([c for c in p.cells if c.arm == a]) for a in ("fsam", "sam", "sgd")] == [4, 2, 1]
    assert len({t.id for t in p.todo}) == 7
    assert (p.replicates, p.done) == (14, 0)


def test_what_ended_is_not_planned_again(folder):
    for trial, status in zip(plan(folder).todo, ["complete", "diverged", "complete"], strict=False):
        finish(folder, trial, status)
    p = plan(folder)
    assert (len(p.todo), p.done) == (4, 6)


def test_what_failed_is_tried_again_under_its_id(folder):
    trial = plan(folder).todo[0]
    finish(folder, trial, "failed")
    assert trial.id in {t.id for t in plan(folder).todo}


def test_more_seeds_and_a_wider_grid_add_only_the_difference(folder):
    for trial in plan(folder).todo:
        finish(folder, trial)
    seeds = plan(folder, seeds=[0, 1, 2]).todo
    assert len(seeds) == 7
    assert all(t.seeds == (2,) for t in seeds)
    wider = plan(folder, grid={"gamma": [0.05, 0.1, 0.5], "eta": [0.1, 1.0]}).todo
    assert sorted(t.cell.arm for t in wider) == ["fsam", "fsam", "sam"]
    assert {t.cell.recipe.gamma for t in wider} == {0.5}


def test_a_seed_that_is_added_to_a_stopped_cell_stops_where_the_cell_did(folder):
    asha = {"name": "asha", "grace_period": 1, "reduction_factor": 3}
    name = "asha(grace_period=1, reduction_factor=3)"
    first = plan(folder, scheduler=asha).todo[0]
    finish(folder, first, "stopped", epoch=3, scheduler=name)
    added = next(t for t in plan(folder, scheduler=asha, seeds=[0, 1, 2]).todo if t.cell.id == first.cell.id)
    assert (added.seeds, added.until, added.epochs) == ((2,), 3, 3)


def test_a_stop_by_another_scheduler_is_no_end(folder):
    first = plan(folder).todo[0]
    finish(folder, first, "stopped", epoch=3, scheduler="asha(grace_period=1, reduction_factor=3)")
    again = plan(folder).todo[0]
    assert (again.id, again.until) == (first.id, None)


def test_a_recorded_stop_without_its_end_is_carried_out(folder):
    """The driver was killed between the decision and the trial's end."""
    asha = {"name": "asha", "grace_period": 1, "reduction_factor": 3}
    first = plan(folder, scheduler=asha).todo[0]
    decided(folder, first.id, [decision(first.cell.id)])
    p = plan(folder, scheduler=asha)
    assert next(t for t in p.todo if t.id == first.id).until == 1
    assert p.ashas()[first.cell.arm].report("new", 1, 0.05).n == 2, "the rung remembers"
    others = [asha for arm, asha in p.ashas().items() if arm != first.cell.arm]
    assert [asha.report("new", 1, 0.05).n for asha in others] == [1, 1], "an arm has rungs of its own"


def test_asha_does_not_see_the_cells_in_the_grids_order(folder):
    axis = {"gamma": [0.01 * i for i in range(1, 31)], "eta": [1.0]}
    asha = plan(folder, scheduler="asha", grid=axis, arms={"fsam": {"optimiser": "fsam"}})
    order = [t.cell.recipe.gamma for t in asha.todo]
    assert order != sorted(order)
    assert order == [
        t.cell.recipe.gamma
        for t in plan(folder, scheduler="asha", grid=axis, arms={"fsam": {"optimiser": "fsam"}}).todo
    ]
    fifo = plan(folder, grid=axis, arms={"fsam": {"optimiser": "fsam"}})
    assert [t.cell.recipe.gamma for t in fifo.todo] == sorted(order)


def test_one_recipe_in_two_arms_is_refused(folder):
    """Its seeds would count twice: n would double and the interval narrow, from nothing."""
    with pytest.raises(StudyError, match=r"arms\.b: is the same recipe as arm a at gamma 0\.05"):
        plan(
            folder,
            arms={"a": {"optimiser": "sam"}, "b": {"optimiser": "sam", "gamma": 0.05}},
            grid={"gamma": [0.05, 0.1]},
        )


def test_a_recorded_stop_holds_when_seeds_are_added_before_it_was_carried_out(folder):
    asha = {"name": "asha", "grace_period": 1, "reduction_factor": 3}
    first = plan(folder, scheduler=asha).todo[0]
    decided(folder, first.id, [decision(first.cell.id)])
    added = plan(folder, scheduler=asha, seeds=[2, 1, 0])
    assert next(t for t in added.todo if t.cell.id == first.cell.id).until == 1
    asha = added.ashas()[first.cell.arm]
    assert asha.report(first.cell.id, 1, 0.9) is None, "a cell has one place in a rung, whatever its seeds"


def test_the_order_of_the_seeds_names_no_other_trial(folder):
    assert [t.id for t in plan(folder, seeds=[1, 0]).todo] == [t.id for t in plan(folder).todo]


def test_a_diverged_cell_is_ended_under_every_scheduler(folder):
    trial = plan(folder).todo[0]
    rows = [
        {"cell": trial.cell.id, "seed": seed, "status": status, "epoch": 2, "scheduler": None}
        for seed, status in ((0, "diverged"), (1, "stopped"))
    ]
    ended(folder, trial.id, rows)
    for scheduler in ("fifo", {"name": "asha", "grace_period": 2}):
        assert trial.cell.id not in {t.cell.id for t in plan(folder, scheduler=scheduler).todo}


def test_ids_name_recipe_seeds_and_data(folder):
    cell = plan(folder).cells[0]
    assert trial_id(cell, (0, 1)) != trial_id(cell, (0, 2))
    assert plan(folder).cells[0].id == cell.id


def test_the_work_of_sam_is_twice_that_of_sgd(folder):
    sam, sgd = (plan(folder, arms={"a": {"optimiser": o}}, grid={}).work() for o in ("sam", "sgd"))
    assert sam["gradients"] == 2 * sgd["gradients"]
    assert sam["images"] == sgd["images"]


def test_ten_thousand_cells_are_planned_in_two_seconds(tmp_path):
    file = tmp_path / "wide.yaml"
    axis = ", ".join(str(round(0.001 * i, 6)) for i in range(1, 101))
    file.write_text(
        "name: wide\nquestion: q\nrecipe: {dataset: digits, model: digits_cnn, optimiser: fsam}\n"
        f"grid:\n  gamma: [{axis}]\n  eta: [{axis}]\nscheduler: asha\n"
    )
    command = [sys.executable, "-m", "study", "plan", str(file), "--storage", str(tmp_path)]
    times = []
    for _ in range(3):  # CPU seconds, the least of three: other work on the machine is not what is tested
        start = resource.getrusage(resource.RUSAGE_CHILDREN)
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        end = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime)
    assert "10,000 cells" in out
    assert min(times) < 2.0, times


def test_one_file_of_weights_by_two_paths_makes_one_cell(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pt").write_bytes(b"weights")
    (tmp_path / "copy.pt").write_bytes(b"weights")
    axis = {"pretrained": ["w.pt", "./w.pt", str(tmp_path / "w.pt"), "copy.pt"]}
    assert len(plan(folder, arms={"sgd": {"optimiser": "sgd"}}, grid=axis).cells) == 1
    arms = {"a": {"optimiser": "sgd", "pretrained": "w.pt"}, "b": {"optimiser": "sgd", "pretrained": "copy.pt"}}
    with pytest.raises(StudyError, match="is the same training as arm a"):
        plan(folder, arms=arms, grid={})
    (tmp_path / "copy.pt").write_bytes(b"other weights")
    assert len(plan(folder, arms=arms, grid={}).cells) == 2


def test_a_size_that_takes_everything_is_the_same_recipe_as_none(folder):
    arms = {"sgd": {"optimiser": "sgd"}}
    axis = {"test_size": [256, 255]}
    assert len(plan(folder, arms=arms, grid=axis).cells) == 2
    whole = plan(folder, arms=arms, grid={}).cells[0].id
    assert plan(folder, arms=arms, grid={"test_size": [256]}).cells[0].id == whole
    assert plan(folder, arms=arms, grid={"train_size": [384]}).cells[0].id == whole
