"""A study's search over many runs, its space and seeds changing between them, without Ray's loop around it."""

from collections import Counter

import pytest
from recorded import ended

from study.plan import make_plan
from study.sampling import Sampling
from study.spec import Study, StudyError
from study.store import StudyFolder
from study.trouble import Trouble

GAMMA = {"low": 0.01, "high": 2.0}
KINDS = {"choices": ["symmetric", "uniform"]}
LR = {"low": 0.01, "high": 0.2}


class Driver:
    """Runs of one study; each trial ends at once as complete, and none may be trained a second time."""

    def __init__(self, path):
        self.folder = StudyFolder(str(path / "s"))
        self.exhausted = []

    def study(self, *, space=None, cells=6, arms=None, seeds=(0,), **more):
        return Study.of(
            {
                "name": "s",
                "question": "q",
                "recipe": {"dataset": "synthetic", "model": "mlp", "epochs": 1},
                "arms": arms or {"a": {"optimiser": "sam"}},
                "seeds": list(seeds),
                "search": {"space": space or {"gamma": GAMMA}, "cells": cells, "sampler": "random"},
                **more,
            }
        )

    def run(self, until=99, then_open=0, **keys):
        """End `until` trials, leave `then_open` asked and not told; the plan with what was done."""
        study = self.study(**keys)
        plan = make_plan(study, self.folder)
        self.folder.save_study(study.model_dump(mode="json"), "", plan.rows())
        trials = []
        sampling = Sampling(plan, self.folder, lambda trial: trials.append(trial) or {}, [], Trouble())
        self.trained = []
        for i in range(until + then_open):
            if sampling.suggest(f"t{i}") == "FINISHED":
                break
            trial = trials[-1]
            assert not self.folder.rows("ends", ["seed"], [trial.id]), "trained twice"
            if i >= until:
                continue
            rows = [self.row(trial.cell.id, seed) for seed in trial.seeds]
            ended(self.folder, trial.id, rows)
            self.trained.append(trial)
            result = {"epoch": 1, "outcome": "complete", "replicates": rows}
            sampling.on_trial_complete(f"t{i}", result)
        self.exhausted = sampling.exhausted
        self.states = Counter(
            trial.state.name for search in sampling._searches.values() for trial in search._study.get_trials()
        )
        self.values = [t.value for t in sampling._searches["a"]._study.get_trials() if t.value is not None]
        for search in sampling._searches.values():
            search.close()
        return make_plan(study, self.folder)

    def row(self, cell, seed):
        metrics = dict.fromkeys(("validation_loss", "train_loss", "train_accuracy", "train_seconds"), 0.1)
        return {
            "cell": cell, "seed": seed, "status": "complete", "scheduler": None, "run": "r", "epoch": 1,
            "validation_accuracy": 0.5 + 0.1 * seed, "gradient_evaluations": 3, **metrics,
        }  # fmt: skip


@pytest.fixture
def driver(tmp_path):
    return Driver(tmp_path)


def ids(plan):
    return {cell.id for cell in plan.cells}


def over(plan):
    return not plan.todo and not any(plan.unsampled().values())


def test_cells_outside_a_narrowed_space_do_not_count_and_come_back_with_it(driver):
    wide = driver.run()
    assert len(wide.cells) == 6
    narrow = driver.run(space={"gamma": {"low": 0.01, "high": 0.1}})
    assert len(narrow.cells) == 6
    assert all(cell.recipe.gamma <= 0.1 for cell in narrow.cells)
    again = driver.run()
    assert driver.trained == []
    assert ids(wide) <= ids(again), "also what the narrow search has found"


def test_open_cells_outside_a_narrowed_space_are_not_waited_for(driver):
    driver.run(4, then_open=2)
    assert over(driver.run(space={"gamma": {"low": 0.01, "high": 0.1}}))
    assert over(driver.run())


def test_an_axis_that_is_taken_away_and_put_back_finds_its_cells_again(driver):
    both = {"gamma": GAMMA, "lr": LR}
    first = driver.run(space=both)
    driver.run(space={"gamma": GAMMA})
    last = driver.run(space=both, cells=12)
    assert len(driver.trained) == 6
    assert ids(first) < ids(last)
    assert len(last.cells) == 12


@pytest.mark.parametrize(
    "space",
    [
        {"label_noise": {"choices": [0.0, 0.4]}, "label_noise_kind": KINDS, "gamma": GAMMA},
        {"m": {"choices": [16, 32, 128]}, "lr": LR},
        {"augmentation": {"choices": [["flip"], ["flip", "crop"]]}, "lr": LR},
    ],
    ids=["conditional", "whole batch", "order"],
)  # fmt: skip
def test_a_lost_database_loses_no_cell_whatever_its_recipe_makes_of_the_values(driver, space):
    driver.run(3, then_open=3, space=space)
    chosen = {row["cell"] for row in driver.folder.chosen()}
    assert len(chosen) == 6
    driver.folder.delete("search.db")
    plan = driver.run(space=space)
    assert ids(plan) == chosen
    assert len(driver.trained) == 3


def test_seeds_that_are_added_are_told_with_the_ones_that_were_there(driver):
    driver.run(cells=3)
    plan = driver.run(cells=3, seeds=(0, 1))
    assert [trial.seeds for trial in driver.trained] == [(1,)] * 3
    assert over(plan)
    assert driver.states["RUNNING"] == 0
    assert driver.values.count(pytest.approx(0.55)) == 3, "the mean of both seeds"


def test_a_search_that_finds_no_more_cells_says_so_and_trains_nothing_again(driver):
    space = {"label_noise": {"choices": [0.0, 0.4]}, "label_noise_kind": KINDS}
    plan = driver.run(space=space, cells=4)
    assert len(plan.cells) == 3, "without noise its kind makes no difference"
    assert driver.exhausted == ["a: the space has no more than 3 cells"]
    driver.run(space=space, cells=4)
    assert (driver.trained, driver.exhausted) == ([], ["a: the space has no more than 3 cells"])


def test_more_cells_than_a_space_has_are_refused_at_the_door(driver):
    with pytest.raises(StudyError, match="6 of arm a, whose axes have no more than 2 different settings"):
        driver.study(space={"lr": {"choices": [0.1, 0.2]}})


def test_two_arms_that_search_the_same_recipes_are_refused_at_the_door(driver):
    with pytest.raises(StudyError, match="searches the same recipes as arm a"):
        driver.study(arms={"a": {"optimiser": "sam"}, "b": {"optimiser": "sam"}})


def test_a_cell_belongs_to_the_arm_that_chose_it_first(driver):
    arms = {"a": {"optimiser": "sam", "momentum": 0.8}, "b": {"optimiser": "sam"}}
    space = {"momentum": {"choices": [0.8, 0.9]}, "lr": {"choices": [0.1, 0.2]}}
    plan = driver.run(arms=arms, space=space, cells=2)
    assert len(ids(plan)) == len(plan.cells) == 4


def test_what_is_wrong_with_the_weights_is_said_before_a_cell_is_drawn(driver):
    recipe = {"dataset": "synthetic", "model": "mlp", "epochs": 1, "pretrained": "nowhere.pt"}
    with pytest.raises(ValueError, match=r"no weights at nowhere\.pt"):
        make_plan(driver.study(recipe=recipe), driver.folder)


def test_settings_that_the_data_cannot_give_are_refused_and_the_search_goes_on(driver, tmp_path):
    space = {"train_size": {"choices": [2, 384]}, "lr": LR}
    plan = driver.run(space=space)
    assert len(plan.cells) == 6
