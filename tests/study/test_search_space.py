"""A study's `search` section: what is a search, and one clear line for everything that is none."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from study.search_space import OBJECTIVES, Axis, Search
from trainables.recipe import Recipe

SPACE = {"gamma": {"low": 0.01, "high": 1.0, "log": True}}


def search(**keys) -> Search:
    return Search(**{"space": SPACE, "cells": 30, **keys})


def problems(**keys) -> list[tuple[str, str]]:
    """(dotted path, message) of everything that is wrong with a search of these keys."""
    with pytest.raises(ValidationError) as error:
        search(**keys)
    return [
        (".".join(map(str, item["loc"])), str(item.get("ctx", {}).get("error", item["msg"])))
        for item in error.value.errors()
    ]


@pytest.mark.parametrize(
    ("axis", "where", "line"),
    [
        ({"gama": {"low": 1, "high": 2}}, "gama", "unknown; did you mean gamma?"),
        ({"gamma": {"lo": 0.1, "low": 0.1, "high": 1}}, "gamma.lo", "unknown; did you mean low?"),
        ({"gamma": 0.1}, "gamma", "0.1 is neither a range ({low: ..., high: ...}) nor {choices: [...]}"),
        ({"gamma": {}}, "gamma", "needs low and high, or choices"),
        ({"gamma": {"low": 1}}, "gamma", "needs low and high, or choices"),
        ({"gamma": {"low": 2, "high": 1}}, "gamma", "low 2 is not below high 1"),
        ({"gamma": {"low": 1, "high": 1}}, "gamma", "low 1 is not below high 1"),
        ({"eta": {"low": 0, "high": 1, "log": True}}, "eta", "log needs low above 0 (it is 0)"),
        ({"gamma": {"low": -1, "high": 1}}, "gamma.low", "-1 is not above 0"),
        ({"momentum": {"low": 0.1, "high": 1.5}}, "momentum.high", "1.5 is not below 1"),
        ({"gamma": {"low": 0.1, "high": 1, "log": True, "step": 0.1}}, "gamma", "step does not go with log"),
        ({"gamma": {"low": 0.1, "high": 1, "step": -0.1}}, "gamma", "step -0.1 is not above 0"),
        ({"batch_size": {"low": 32, "high": 250, "step": 32}}, "batch_size", "take high 224"),
        ({"batch_size": {"low": 1, "high": 2, "step": 9}}, "batch_size", "take high 10"),
        ({"batch_size": {"low": 32.5, "high": 64}}, "batch_size.low", "32.5 is not a whole number, and batch_size is"),
        ({"batch_size": {"low": 32, "high": 64, "step": 0.5}}, "batch_size.step", "0.5 is not a whole number"),
        ({"optimiser": {"low": 1, "high": 2}}, "optimiser", "is no number; give choices: [...]"),
        ({"gamma": {"choices": []}}, "gamma", "choices is empty"),
        ({"gamma": {"choices": [1, 1.0]}}, "gamma", "choices has a value twice"),
        ({"gamma": {"choices": [0.1], "low": 1}}, "gamma", "has choices and low; give either a range or choices"),
        ({"gamma": {"choices": [0.1, "wide"]}}, "gamma.choices.1", "'wide' is not a number"),
        ({"optimiser": {"choices": ["sam", "azam"]}}, "optimiser.choices.1", "did you mean asam?"),
        ({"model": {"choices": ["digit_cnn"]}}, "model.choices.0", "did you mean digits_cnn?"),
        ({"augmentation": {"choices": [["flip"], "crop"]}}, "augmentation.choices.1", "'crop' is not a list"),
    ],
)
def test_a_wrong_axis_is_one_line_at_its_key(axis, where, line):
    found = problems(space=axis)
    assert len(found) == 1
    assert found[0][0] == f"space.{where}"
    assert line in found[0][1]


@pytest.mark.parametrize(
    ("keys", "where", "line"),
    [
        ({"sampelr": "tpe"}, "sampelr", "unknown; did you mean sampler?"),
        ({"cells": 0}, "cells", "greater than or equal to 1"),
        ({"space": {}}, "space", "at least 1 item"),
        ({"objectives": ["test_accuracy"]}, "objectives", "nothing is chosen by the test set"),
        ({"objectives": ["test_loss"]}, "objectives", "validation_loss is"),
        ({"objectives": ["validation_acuracy"]}, "objectives", "did you mean validation_accuracy?"),
        ({"objectives": ["train_loss", "train_loss"]}, "objectives", "twice"),
        ({"objectives": ["train_loss", "train_accuracy", "validation_loss"]}, "objectives", "at most two"),
        ({"sampler": "random", "startup": 3}, "startup", "belongs to tpe and cmaes; random does not use it"),
        ({"population": 5}, "population", "belongs to nsga2; tpe does not use it"),
        ({"startup": 30}, "startup", "30 of 30 cells leaves tpe nothing; sampler random is that"),
        ({"sampler": "cmaes", "objectives": ["train_loss", "validation_loss"]}, "sampler", "cmaes has one objective"),
        ({"sampler": "cmaes", "space": {"m": {"choices": [8, 16]}}}, "sampler", "cmaes only draws numbers from ranges"),
        ({"enqueue": [{"lr": 0.1}]}, "enqueue.0.lr", "is no axis of space"),
        ({"enqueue": [{"gamma": 0.1}, {"gamma": 2.0}]}, "enqueue.1.gamma", "2.0 is not among the values"),
        ({"cells": 2, "startup": 1, "enqueue": [{"gamma": 0.1 * i} for i in (1, 2, 3)]}, "enqueue", "3 settings for 2"),
        ({"storage": "search.db"}, "storage", "is no database's URL"),
        ({"storage": "redis://host/0"}, "storage", "is no database's URL"),
    ],
)
def test_a_wrong_search_is_one_line_at_its_key(keys, where, line):
    found = problems(**keys)
    assert len(found) == 1
    assert found[0][0] == where
    assert line in found[0][1]


def test_every_wrong_key_is_told_at_once():
    found = dict(problems(space={"gamma": {"lo": 1, "low": "x", "high": 1}, "lr": 3}, cels=4, objectives=["test_loss"]))
    assert set(found) >= {"space.gamma.lo", "space.lr", "cels", "objectives"}


@pytest.mark.parametrize(
    "url",
    ["postgresql://me:hunter2@host/db", "mysql+pymysql://me:hunter2@h:1/db", "postgresql://h/db?password=hunter2"],
)
def test_a_password_in_the_address_is_refused_and_not_repeated(url):
    ((where, line),) = problems(storage=url)
    assert where == "storage"
    assert "pgpass" in line
    assert "hunter2" not in line


@pytest.mark.parametrize("url", ["postgresql://me@host:5432/db", "postgresql+psycopg://h/db", "sqlite:////tmp/x.db"])
def test_an_address_without_a_password_is_taken(url):
    assert search(storage=url).storage == url


def test_asha_goes_with_one_objective_which_is_its_own():
    assert search().conflicts("asha") == []
    for keys, where in (
        ({"objectives": ["validation_accuracy", "train_seconds"]}, "objectives"),
        ({"objectives": ["validation_loss"]}, "objectives"),
        ({"sampler": "nsga2"}, "sampler"),
    ):
        assert [path for path, _ in search(**keys).conflicts("asha")] == [(where,)]
        assert search(**keys).conflicts("fifo") == []


def test_a_package_that_is_missing_is_named_before_anything_runs(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    ((path, line),) = search(sampler="cmaes").conflicts("fifo")
    assert path == ("sampler",)
    assert "pip install cmaes" in line
    ((path, line),) = search(storage="postgresql+nosuchdriver://host/db").conflicts("fifo")
    assert path == ("storage",)
    assert "not installed" in line or "no database's URL" in line


def test_numbers_take_the_type_of_the_recipe_s_field():
    space = search(space={"gamma": {"low": 1, "high": 2}, "batch_size": {"low": 16, "high": 64, "log": True}}).space
    assert not space["gamma"].whole
    assert space["batch_size"].whole
    assert space["batch_size"].size == 49
    assert space["gamma"].size == math.inf
    assert search(space={"gamma": {"choices": [1, 2]}}).space["gamma"].choices == (1.0, 2.0)


def test_an_arm_searches_only_the_axes_that_it_uses():
    whole = search(
        space={**SPACE, "lr": {"low": 0.01, "high": 0.3}},
        enqueue=[{"gamma": 0.1, "lr": 0.1}, {"gamma": 0.2, "lr": 0.1}, {"gamma": 0.3}],
    )
    own = whole.only({"lr", "weight_decay"})
    assert list(own.space) == ["lr"]
    assert own.enqueue == ({"lr": 0.1},)
    assert list(whole.space) == ["gamma", "lr"]


def test_ends_try_each_end_of_each_axis():
    tried = list(search(space={**SPACE, "optimiser": {"choices": ["sam", "asam", "fsam"]}}).ends())
    assert {settings["gamma"] for settings in tried} == {0.01, 1.0}
    assert {settings["optimiser"] for settings in tried} == {"sam", "asam", "fsam"}
    for settings in tried:
        Recipe.of(settings)


@given(
    low=st.integers(1, 500),
    steps=st.integers(1, 40),
    step=st.integers(1, 64),
    value=st.integers(-10, 4000),
)
def test_a_stepped_axis_has_exactly_its_steps(low, steps, step, value):
    axis = search(space={"batch_size": {"low": low, "high": low + steps * step, "step": step}}).space["batch_size"]
    values = {low + k * step for k in range(steps + 1)}
    assert axis.size == len(values)
    assert axis.has(value) == (value in values)


@given(st.integers(1, 30), st.floats(0.001, 0.5))
def test_a_float_axis_with_steps_ends_on_one_of_them_or_is_told_where_to_end(steps, step):
    step = round(step, 4)
    high = round(0.1 + steps * step, 4)
    axis = Axis(low=0.1, high=high, step=step)
    assert axis.size == steps + 1
    assert all(axis.has(round(0.1 + k * step, 4)) for k in range(steps + 1))
    with pytest.raises(ValidationError, match="take high"):
        Axis(low=0.1, high=high + step / 2, step=step)


def test_directions_follow_from_the_names():
    for name, direction in OBJECTIVES.items():
        assert direction == ("maximize" if name.endswith("_accuracy") else "minimize")
        assert not name.startswith("test_")
    assert search(objectives=["validation_accuracy", "train_seconds"]).directions == ["maximize", "minimize"]


def test_a_checked_search_is_checked_again_to_itself():
    first = search(
        space={**SPACE, "augmentation": {"choices": [[], ["crop", "flip"]]}, "m": {"choices": [None, 16]}},
        enqueue=[{"augmentation": ["crop", "flip"]}],
    )
    assert Search(**first.model_dump(mode="json")) == first
