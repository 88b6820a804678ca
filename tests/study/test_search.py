"""Optuna behind a search: what is asked and told, what a killed driver leaves, and what another process sees."""

import json
import math
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from study.search import End, OptunaSearch, SearchError, storage_url
from study.search_space import Search
from trainables.problems import Problem, RecipeError
from trainables.recipe import Recipe, digest

SPACE = {
    "gamma": {"low": 0.001, "high": 10.0, "log": True},
    "eta": {"low": 1e-4, "high": 1e4, "log": True},
}
CHOICES = {
    "batch_size": {"low": 32, "high": 96, "step": 32},
    "augmentation": {"choices": [[], ["flip"], ["crop", "flip"]]},
}


def identify(values) -> str:
    return digest(values)


def accuracy(values) -> float:
    """A smooth hill with its top, 1, at gamma 0.3 and eta 10."""
    return 1 - 0.05 * (math.log10(values["gamma"] / 0.3) ** 2 + 0.25 * math.log10(values["eta"] / 10) ** 2)


def begin(url=None, *, identify=identify, arm="fsam", **keys) -> OptunaSearch:
    """A search in the database at `url`, by default in memory."""
    url = url or optuna.storages.InMemoryStorage()
    return OptunaSearch(Search(**{"space": SPACE, "cells": 12, "startup": 4, **keys}), "toy", arm, url, identify)


def complete(value: float, **values) -> End:
    return End("complete", 5, {"validation_accuracy": value, **values})


def run(search: OptunaSearch, until: int | None = None) -> list[dict]:
    """Ask and tell one cell at a time; the settings in order."""
    found = []
    while (until is None or len(found) < until) and (suggestion := search.ask()) is not None:
        found.append(suggestion.settings)
        search.tell(suggestion.number, complete(accuracy(suggestion.settings)))
    return found


def stored(url, name: str = "toy.fsam") -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=name, storage=url).trials


@pytest.fixture
def url(tmp_path):
    return storage_url(None, str(tmp_path))


def test_as_many_cells_are_asked_as_the_search_says_and_none_twice():
    found = run(begin())
    assert len(found) == 12
    assert len({identify(values) for values in found}) == 12
    for values in found:
        assert 0.001 <= values["gamma"] <= 10
        assert 1e-4 <= values["eta"] <= 1e4


def test_settings_are_plain_values_that_a_recipe_takes():
    search = begin(space={**SPACE, **CHOICES, "m": {"choices": [None, 16]}}, cells=20)
    for _ in range(20):
        values = search.ask().settings
        assert json.loads(json.dumps(values)) == values
        assert type(values["batch_size"]) is int
        assert type(values["gamma"]) is float
        assert isinstance(values["augmentation"], list)
        Recipe.of(values)


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2"])
def test_the_seed_decides_what_is_suggested(sampler):
    keys = {"sampler": sampler, "startup": 4 if sampler == "tpe" else None}
    assert run(begin(**keys, seed=1)) == run(begin(**keys, seed=1))
    assert run(begin(**keys, seed=1)) != run(begin(**keys, seed=2))


def test_arms_that_search_the_same_axes_begin_with_the_same_cells():
    assert [begin(arm="sam").ask().settings] == [begin(arm="asam").ask().settings]


def test_random_cells_do_not_depend_on_when_earlier_ones_end():
    alone = run(begin(sampler="random", startup=None))
    search = begin(sampler="random", startup=None)
    assert [search.ask().settings for _ in range(12)] == alone
    assert search.ask() is None


def test_tpe_finds_more_than_random_search():
    """On a smooth hill with fixed seeds, by the mean over them: a check of the wiring, not of TPE."""

    def best(sampler: str, seed: int) -> float:
        search = begin(sampler=sampler, startup=6 if sampler == "tpe" else None, seed=seed, cells=24)
        return max(map(accuracy, run(search)))

    shortfall = {s: sum(1 - best(s, seed) for seed in range(3)) / 3 for s in ("tpe", "random")}
    assert shortfall["tpe"] < 0.7 * shortfall["random"]


def test_the_best_cell_of_one_objective_is_the_highest():
    search = begin()
    values = run(search)
    (found,) = search.best()
    assert found.values == [max(map(accuracy, values))]
    assert accuracy(found.settings) == found.values[0]


@pytest.fixture
def memory():
    return optuna.storages.InMemoryStorage()


# Ends


def test_ends_have_their_states_and_attributes_in_the_storage(url):
    search = begin(url)
    suggestions = [search.ask() for _ in range(5)]
    for epoch in (1, 2):
        search.report(suggestions[1].number, epoch, 0.2 * epoch)
    ends = [
        complete(0.9),
        End("stopped", 2, {"validation_accuracy": 0.4}),
        End("diverged", 3, {}),
        End("failed"),
    ]
    for suggestion, end in zip(suggestions, ends, strict=False):
        search.tell(suggestion.number, end)
    trials = stored(url)
    assert [t.state.name for t in trials] == ["COMPLETE", "PRUNED", "PRUNED", "FAIL", "RUNNING"]
    assert [t.value for t in trials] == [0.9, 0.4, None, None, None]
    assert trials[1].intermediate_values == {1: 0.2, 2: 0.4}
    assert [t.user_attrs.get("status") for t in trials] == ["complete", "stopped", "diverged", "failed", None]
    assert [t.user_attrs.get("epoch") for t in trials] == [5, 2, 3, None, None]
    assert {t.user_attrs["arm"] for t in trials} == {"fsam"}
    assert [t.user_attrs["cell"] for t in trials] == [s.cell for s in suggestions]
    assert [t.constraints for t in trials] == [{}, {}, {"diverged": 1.0}, {}, {}]


def test_a_complete_cell_whose_objective_is_not_finite_counts_as_diverged(memory):
    search = begin(memory)
    search.tell(search.ask().number, complete(math.nan))
    (trial,) = stored(memory)
    assert (trial.state.name, trial.user_attrs["status"]) == ("PRUNED", "diverged")


def test_a_complete_cell_without_its_objective_is_an_error():
    search = begin(objectives=["validation_loss"])
    with pytest.raises(SearchError, match="a complete cell has no validation_loss"):
        search.tell(search.ask().number, complete(0.5))


def test_an_end_that_is_none_is_refused():
    with pytest.raises(ValueError, match="'done' is no end of a cell"):
        End("done")


def test_a_second_end_and_late_or_repeated_reports_change_nothing(memory):
    search = begin(memory)
    number = search.ask().number
    search.report(number, 1, 0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search.report(number, 1, 0.7)
        search.tell(number, complete(0.5))
        search.tell(number, End("diverged"))
        search.report(number, 2, 0.9)
    (trial,) = stored(memory)
    assert (trial.state.name, trial.value, trial.intermediate_values) == ("COMPLETE", 0.5, {1: 0.3})


def test_diverged_cells_keep_tpe_away_from_where_they_were():
    """The upper half of the space looks better for as long as it trains, which is longer than the lower half does."""

    def share(end: End) -> float:
        """Of the upper half among the cells that are asked, where its cells end like that."""
        search = begin(space={"gamma": {"low": 0.0001, "high": 1.0}}, cells=30, startup=8, seed=3)
        upper = 0
        while (s := search.ask()) is not None:
            gamma = s.settings["gamma"]
            upper += gamma > 0.5
            search.report(s.number, 1, 1 + gamma if gamma > 0.5 else 1 - abs(gamma - 0.2))
            search.tell(s.number, end if gamma > 0.5 else End("stopped", 1))
        return upper / 30

    assert share(End("diverged", 30)) < 0.35
    # Merely stopped, they would be what TPE likes best: why diverged cells are told as infeasible.
    assert share(End("stopped", 30, {"validation_accuracy": 0.9})) > 0.65


# Two objectives


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_two_objectives_give_the_front_that_nothing_dominates(sampler):
    search = begin(
        sampler=sampler,
        startup=5 if sampler == "tpe" else None,
        objectives=["validation_accuracy", "train_seconds"],
        cells=25,
    )
    seen = []
    while (s := search.ask()) is not None:
        point = (round(accuracy(s.settings), 6), s.settings["gamma"])
        search.report(s.number, 1, 0.5)
        search.tell(s.number, complete(point[0], train_seconds=point[1]))
        seen.append(point)
    front = {p for p in seen if not any(q != p and q[0] >= p[0] and q[1] <= p[1] for q in seen)}
    assert {tuple(found.values) for found in search.best()} == front
    assert search.importances(least=1) is None


# Going on


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2"])
@pytest.mark.parametrize("after", [3, 7])
def test_a_search_that_is_taken_up_again_suggests_what_an_uninterrupted_one_does(sampler, after, url):
    keys = {"sampler": sampler, "startup": 4 if sampler == "tpe" else None}
    whole = run(begin(**keys))
    first = begin(url, **keys)
    part = run(first, until=after)
    first.close()
    assert part + run(begin(url, **keys)) == whole


def test_cells_that_are_open_are_handed_out_again_first_with_their_numbers(url):
    first = begin(url)
    asked = [first.ask() for _ in range(4)]
    first.tell(asked[1].number, complete(0.5))
    again = begin(url)
    assert [again.ask() for _ in range(3)] == [asked[0], asked[2], asked[3]]
    assert again.ask().number == 4


@pytest.mark.parametrize("where", ["asked", "asking"])
def test_a_driver_killed_between_ask_and_tell_loses_no_cell(where, url):
    """kill -9 of a real process: after the suggestion, or within it, before it is whole."""
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_search as t
search = t.begin({url!r})
t.run(search, until=5)
if {where!r} == "asking":
    search._note = lambda *args, **attributes: os.kill(os.getpid(), signal.SIGKILL)
print(*search.ask(), sep="|", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    search = begin(url)
    suggestion = search.ask()
    if where == "asked":
        assert "|".join(map(str, suggestion)) == ended.stdout.strip()
    assert stored(url)[5].state.name == ("RUNNING" if where == "asked" else "FAIL")
    search.tell(suggestion.number, complete(accuracy(suggestion.settings)))
    rest = run(search)
    everything = [t.params for t in stored(url) if t.state.name == "COMPLETE"]
    assert suggestion.settings in everything
    assert len(rest) == 6
    assert everything == run(begin())


def test_what_ended_in_the_folder_is_told_and_not_handed_out(memory):
    first = begin(memory)
    asked = [first.ask() for _ in range(3)]
    again = begin(memory)
    again.reconcile({asked[0].cell: complete(0.7), asked[2].cell: End("stopped", 1, {"validation_accuracy": 0.1})})
    assert again.ask() == asked[1]
    assert [t.state.name for t in stored(memory)] == ["COMPLETE", "RUNNING", "PRUNED"]
    assert [t.value for t in stored(memory)] == [0.7, None, 0.1]


def test_a_lost_database_is_made_again_from_the_folder(tmp_path):
    keys = {"space": {**SPACE, **CHOICES}, "sampler": "random", "startup": None}
    before = begin(storage_url(None, str(tmp_path)), **keys)
    asked = [before.ask() for _ in range(6)]
    before.close()
    (tmp_path / "search.db").unlink()
    ended = {s.cell: End("complete", 5, {"validation_accuracy": 0.1 * s.number}, s.settings) for s in asked[:4]}
    after = begin(storage_url(None, str(tmp_path)), **keys)
    after.reconcile(ended, {s.cell: s.settings for s in asked})
    trials = stored(storage_url(None, str(tmp_path)))
    assert [t.value for t in trials[:4]] == [0.1 * s.number for s in asked[:4]]
    assert [after.ask()[1:] for _ in range(2)] == [s[1:] for s in asked[4:]]
    assert sum(1 for _ in iter(after.ask, None)) == 6


def test_settings_in_the_folder_that_the_space_does_not_have_are_passed_over(memory):
    search = begin(memory)
    outside = {"gamma": 100.0, "eta": 1.0}
    search.reconcile({"elsewhere": End("complete", 5, {"validation_accuracy": 0.9}, outside)})
    assert stored(memory) == []
    assert len(run(search)) == 12


def test_a_cell_that_the_folder_has_lost_is_trained_again(memory):
    first = begin(memory)
    asked = [first.ask() for _ in range(3)]
    for s, end in zip(asked, (complete(0.5), End("failed"), complete(0.6)), strict=True):
        first.tell(s.number, end)
    again = begin(memory)
    again.reconcile({asked[2].cell: complete(0.6)})
    suggestions = [again.ask() for _ in range(3)]
    assert [s.cell for s in suggestions[:2]] == [asked[0].cell, asked[1].cell]
    assert [stored(memory)[s.number].user_attrs["again"] for s in suggestions[:2]] == [0, 1]
    assert suggestions[2].cell not in {s.cell for s in asked}
    # Killed once more, they are still open and no further trial is made of them.
    third = begin(memory)
    third.reconcile({asked[2].cell: complete(0.6)})
    assert [third.ask() for _ in range(3)] == suggestions
    assert sum(1 for _ in iter(third.ask, None)) == 12 - 4


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_however_often_a_driver_dies_every_cell_ends_once_and_the_number_is_kept(data):
    """Side by side, with all kinds of ends, a folder that knows more than the database, and drivers that vanish."""
    url = optuna.storages.InMemoryStorage()
    keys = {"space": {**SPACE, **CHOICES}, "cells": 8, "startup": 2}
    folder: dict[str, End] = {}
    chosen: dict[str, dict] = {}
    for _ in range(5):
        search = begin(url, **keys)
        search.reconcile(folder, chosen)
        training = []
        for step in data.draw(st.lists(st.sampled_from(["ask", "tell", "end in the folder only"]), max_size=10)):
            if step == "ask":
                suggestion = search.ask()
                if suggestion is not None:
                    assert suggestion.cell not in folder
                    training.append(suggestion)
                    chosen[suggestion.cell] = suggestion.settings
            elif training:
                suggestion = training.pop(0)
                outcome = data.draw(st.sampled_from(["complete", "stopped", "diverged"]))
                end = End(outcome, 3, {"validation_accuracy": 0.5}, suggestion.settings)
                folder[suggestion.cell] = end
                if step == "tell":
                    search.tell(suggestion.number, end)
        search.close()
    last = begin(url, **keys)
    last.reconcile(folder, chosen)
    for suggestion in iter(last.ask, None):
        assert suggestion.cell not in folder
        folder[suggestion.cell] = End("complete", 3, {"validation_accuracy": 0.5}, suggestion.settings)
        last.tell(suggestion.number, folder[suggestion.cell])
    assert len(folder) == 8
    ended = [t.user_attrs["cell"] for t in stored(url) if t.state.name in ("COMPLETE", "PRUNED")]
    assert sorted(ended) == sorted(folder)
    assert not [t for t in stored(url) if t.state.name == "RUNNING"]


# Cells that are one, and settings that are none


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr("study.search.GIVES_UP", 15)


def test_settings_that_make_a_known_cell_are_not_handed_out_and_get_its_end(memory):
    """Two halves of gamma make two cells."""
    search = begin(
        memory,
        space={"gamma": {"low": 0.1, "high": 1.0}},
        cells=2,
        sampler="random",
        startup=None,
        identify=lambda v: "low" if v["gamma"] < 0.9 else "high",
    )
    first = search.ask()
    second = search.ask()
    assert {first.cell, second.cell} == {"low", "high"}
    copies = [t for t in stored(memory) if "copy_of" in t.user_attrs]
    assert copies
    assert {t.state.name for t in copies} == {"RUNNING"}
    search.tell(first.number, complete(0.3))
    search.tell(second.number, complete(0.4))
    values = {t.user_attrs["cell"]: t.value for t in stored(memory) if "copy_of" not in t.user_attrs}
    copies = [t for t in stored(memory) if "copy_of" in t.user_attrs]
    assert all((t.state.name, t.value) == ("COMPLETE", values[t.user_attrs["cell"]]) for t in copies)
    assert search.ask() is None
    assert [f.cell for f in search.best()] == [second.cell]


def test_a_copy_gets_its_end_even_where_its_driver_died(memory, impatient):
    one = {"space": {"gamma": {"low": 0.1, "high": 1.0}}, "identify": lambda v: "the only cell"}
    first = begin(memory, cells=2, startup=1, **one)
    suggestion = first.ask()
    assert first.ask() is None
    assert "15 suggestions in a row were no new cell" in first.exhausted
    again = begin(memory, cells=2, startup=1, **one)
    again.reconcile({suggestion.cell: End("diverged", 2)})
    assert {(t.state.name, t.user_attrs["status"]) for t in stored(memory)} == {("PRUNED", "diverged")}


def test_a_finite_space_is_searched_to_its_end_and_says_so():
    search = begin(space=CHOICES, cells=50)
    found = []
    while (s := search.ask()) is not None:
        found.append(s.cell)
        search.tell(s.number, complete(0.5))
    assert len(set(found)) == len(found) == 9
    assert search.exhausted == "the space has no more than 9 cells"


def test_an_arm_that_uses_no_axis_has_one_cell():
    search = OptunaSearch(
        Search(space=SPACE, cells=12).only({"lr"}), "toy", "sgd", optuna.storages.InMemoryStorage(), identify
    )
    assert search.ask().settings == {}
    assert search.ask() is None


def test_settings_that_make_no_recipe_are_passed_over_and_recorded(memory):
    def picky(values):
        if values["gamma"] > 0.1:
            raise RecipeError([Problem("gamma", "is too wide for this model")])
        return digest(values)

    search = begin(memory, identify=picky)
    found = run(search)
    assert len(found) == 12
    assert all(values["gamma"] <= 0.1 for values in found)
    refused = [t for t in stored(memory) if t.user_attrs.get("status") == "refused"]
    assert refused
    assert all(t.params["gamma"] > 0.1 and t.constraints == {"refused": 1.0} for t in refused)
    assert {t.user_attrs["reason"] for t in refused} == {"gamma: is too wide for this model"}


def test_a_space_without_a_single_recipe_is_an_error_that_says_why(impatient):
    def never(values):
        raise RecipeError([Problem("m", "64 is more than batch_size 32")])

    with pytest.raises(SearchError, match=r"15 settings in a row make no recipe \(m: 64 is more than batch_size 32"):
        begin(identify=never).ask()


# What is tried first


def test_enqueued_settings_come_first_and_what_they_leave_out_is_sampled(memory):
    paper = [{"gamma": 0.1, "eta": 1.0}, {"gamma": 0.5}]
    search = begin(memory, enqueue=paper)
    first, second = search.ask(), search.ask()
    assert first.settings == paper[0]
    assert second.settings["gamma"] == 0.5
    again = begin(memory, enqueue=[*paper, {"gamma": 2}])
    assert [again.ask().settings for _ in range(2)] == [first.settings, second.settings]
    assert again.ask().settings["gamma"] == 2.0
    assert [again.ask().settings["gamma"] in (0.1, 0.5, 2.0) for _ in range(5)] == [False] * 5


def test_an_enqueued_list_is_stored_as_text_and_handed_out_as_a_list(url):
    search = begin(url, space={**SPACE, **CHOICES}, enqueue=[{"augmentation": ["crop", "flip"], "batch_size": 64}])
    values = search.ask().settings
    assert (values["augmentation"], values["batch_size"]) == (["crop", "flip"], 64)
    assert stored(url)[0].params["augmentation"] == "crop+flip"


# What others see


def test_another_process_sees_the_trials_as_a_dashboard_does(url):
    search = begin(url, space={**SPACE, **CHOICES})
    a, b, c = (search.ask() for _ in range(3))
    search.report(b.number, 1, 0.25)
    search.tell(a.number, complete(0.8))
    search.tell(b.number, End("stopped", 1, {"validation_accuracy": 0.25}))
    other = begin(url, arm="sgd")
    other.ask()
    script = f"""
import json, optuna
print(optuna.get_all_study_names({url!r}))
study = optuna.load_study(study_name="toy.fsam", storage={url!r})
rows = [[t.number, t.state.name, t.value, t.intermediate_values, t.user_attrs["cell"]] for t in study.trials]
print(json.dumps(rows))
print(study.direction.name, study.best_value)
"""
    seen = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert seen[0] == "['toy.fsam', 'toy.sgd']"
    assert json.loads(seen[1]) == [
        [0, "COMPLETE", 0.8, {}, a.cell],
        [1, "PRUNED", 0.25, {"1": 0.25}, b.cell],
        [2, "RUNNING", None, {}, c.cell],
    ]
    assert seen[2] == "MAXIMIZE 0.8"


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2"])
def test_optuna_says_and_warns_nothing(sampler, capfd, url):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search = begin(url, sampler=sampler, startup=4 if sampler == "tpe" else None, space={**SPACE, **CHOICES})
        run(search, until=7)
    assert capfd.readouterr() == ("", "")


def test_the_axis_that_matters_is_the_important_one():
    search = begin(sampler="random", startup=None, cells=25)
    while (s := search.ask()) is not None:
        if s.number == 19:
            assert search.importances() is None
        search.tell(s.number, complete(-(math.log10(s.settings["gamma"]) ** 2)))
    shares = search.importances()
    assert list(shares) == ["gamma", "eta"]
    assert shares["gamma"] > 0.8
    assert sum(shares.values()) == pytest.approx(1)


# Storage


def test_the_database_is_in_the_folder_unless_the_study_says_where():
    assert storage_url(None, "/data/results/toy") == "sqlite:////data/results/toy/search.db"
    assert storage_url("postgresql://host/db", "/data/results/toy") == "postgresql://host/db"
    with pytest.raises(SearchError, match="a study whose folder is not local needs a database"):
        storage_url(None, None)


@pytest.mark.parametrize("name", ["with space", "a{b}c", "what?", "100%25", "täst#1", "a&b=c"])
def test_the_database_is_in_the_folder_whatever_its_name(name, tmp_path):
    folder = tmp_path / name
    folder.mkdir()
    search = begin(storage_url(None, str(folder)))
    search.ask()
    search.close()
    assert os.listdir(folder) == ["search.db"]
    assert os.listdir(tmp_path) == [name]


def test_a_database_that_cannot_be_opened_is_one_line(tmp_path):
    with pytest.raises(SearchError, match="unable to open database file") as error:
        begin(storage_url(None, str(tmp_path / "missing")))
    assert "\n" not in str(error.value)
    (tmp_path / "search.db").write_bytes(b"no database at all, but long enough to be read as one" * 40)
    with pytest.raises(SearchError, match="file is not a database") as error:
        begin(storage_url(None, str(tmp_path)))
    assert "\n" not in str(error.value)


def test_a_database_that_breaks_under_a_search_is_one_line(tmp_path):
    search = begin(storage_url(None, str(tmp_path)))
    number = search.ask().number
    search.close()
    (tmp_path / "search.db").write_bytes(b"overwritten" * 5000)
    for failing in (search.ask, lambda: search.tell(number, complete(0.5)), lambda: search.report(number, 1, 0.5)):
        with pytest.raises(SearchError, match="the database failed") as error:
            failing()
        assert "\n" not in str(error.value)


def test_a_search_for_something_else_under_the_same_name_is_refused(url):
    begin(url)
    with pytest.raises(SearchError, match="looks for something else; give the study another name"):
        begin(url, objectives=["validation_loss"])


def test_other_choices_under_the_same_name_are_refused(memory):
    begin(memory, space={**SPACE, **CHOICES}).ask()
    search = begin(memory, space={**SPACE, **CHOICES, "augmentation": {"choices": [[], ["flip"]]}})
    with pytest.raises(SearchError, match="begun with another space; give the study another name"):
        list(iter(search.ask, None))


def test_cells_of_an_earlier_range_are_not_handed_out(memory):
    wide = begin(memory)
    asked = [wide.ask() for _ in range(6)]
    narrow = begin(memory, space={**SPACE, "gamma": {"low": 0.1, "high": 1.0, "log": True}})
    inside = [s for s in asked if 0.1 <= s.settings["gamma"] <= 1]
    found = list(iter(narrow.ask, None))
    assert found[: len(inside)] == inside
    assert len(found) == 12
    assert all(0.1 <= s.settings["gamma"] <= 1 for s in found)
